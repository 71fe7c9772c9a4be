"""Algorithm 1: exact counts, ties by position, and agreement with the naive loop on any scores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import NETWORKS, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.pruning import (
    SALIENCIES,
    SCHEDULES,
    apply_masks,
    keep_best,
    magnitude,
    number_kept,
    prunable,
    prune,
    rho_max,
)

OPTIONS = {"input_shape": SHAPE, "batches": batches()}


@pytest.mark.parametrize("method", SALIENCIES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compression", [1, 1.5, 10, 37.5])
def test_exactly_the_share_that_the_compression_asks_for_is_removed(method, network, compression):
    model = NETWORKS[network]()
    masks = prune(model, method, compression, iterations=3, **OPTIONS)
    assert masks.kept == masks.total - math.floor((1 - 1 / compression) * masks.total + 1e-9)
    assert list(masks) == list(prunable(model))


def naive(scores, compression, live):
    """Sort all weights, best first, later before earlier among equals; keep the first so many."""
    total = sum(score.numel() for score in scores.values())
    number = total - math.floor((1 - 1 / compression) * total + 1e-9)
    places = [(name, index) for name in scores for index in range(scores[name].numel())]
    flat = {place: float(scores[place[0]].flatten()[place[1]]) for place in places}
    alive = [place for place in places if bool(live[place[0]].flatten()[place[1]])]
    best = sorted(range(len(alive)), key=lambda i: (flat[alive[i]], i), reverse=True)[:number]
    kept = {name: torch.zeros(score.shape, dtype=torch.bool).flatten() for name, score in scores.items()}
    for i in best:
        kept[alive[i][0]][alive[i][1]] = True
    return {name: kept[name].view_as(scores[name]) for name in scores}


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, -1e300, 3.0]) | st.floats(-10, 10)


@settings(max_examples=200, deadline=None)
@given(
    layers=st.lists(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=12), min_size=1, max_size=4),
    compression=st.floats(1, 30),
)
def test_the_best_weights_stay_whatever_the_scores(layers, compression):
    scores = {str(i): torch.tensor([v for v, _ in layer], dtype=torch.float64) for i, layer in enumerate(layers)}
    live = {str(i): torch.tensor([alive for _, alive in layer]) for i, layer in enumerate(layers)}
    expected = naive(scores, compression, live)
    result = keep_best(scores, live, 1 / compression)
    assert all(torch.equal(result[name], expected[name]) for name in scores)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_iterative_pruning_scores_the_masked_network_each_time(schedule):
    model, n, compression = mlp(), 4, 20.0
    live = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    for k in range(1, n + 1):
        masked = apply_masks(mlp(), live)  # really masked, instead of masks handed to the score
        scores = SALIENCIES["synflow"](masked, input_shape=SHAPE)
        live = naive(scores, 1 / SCHEDULES[schedule](k, n, compression), live)
    masks = prune(model, "synflow", compression, iterations=n, schedule=schedule, **OPTIONS)
    assert all(torch.equal(masks[name], live[name]) for name in live)


def test_a_removed_weight_never_returns_even_where_live_scores_are_negative():
    model = residual()
    seen = []

    def recorded(model, masks, **options):
        seen.append({name: mask.clone() for name, mask in masks.items()})
        return SALIENCIES["grasp"](model, masks, **options)

    final = prune(model, recorded, 30, iterations=5, **OPTIONS)
    for earlier, later in zip(seen, [*seen[1:], final], strict=True):
        assert all(not (later[name] & ~earlier[name]).any() for name in earlier)


def test_layer_scope_keeps_the_same_share_of_every_layer():
    masks = prune(residual(), "magnitude", 8, scope="layer")
    assert all(kept == number_kept(size, 1 / 8) for size, kept in masks.layers()[["size", "kept"]].to_numpy())


def test_invert_keeps_the_lowest_scores():
    model = mlp(bias=False)
    best, worst = (prune(model, "magnitude", 10, invert=invert) for invert in (False, True))
    kept = {
        masks: torch.cat(
            [weight.detach().abs()[mask] for weight, mask in zip(prunable(model).values(), ms.values(), strict=True)]
        )
        for masks, ms in (("best", best), ("worst", worst))
    }
    assert kept["worst"].max() < kept["best"].min()


def test_a_method_may_be_any_function_with_the_signature_of_a_saliency():
    by_name = prune(mlp(), "magnitude", 5)
    squared = prune(mlp(), lambda model, masks, **_: {n: s**2 for n, s in magnitude(model, masks).items()}, 5)
    assert all(torch.equal(by_name[name], squared[name]) for name in by_name)


def test_the_defaults_are_one_hundred_iterations_for_synflow_and_one_for_the_rest():
    masks = {n: prune(mlp(), "synflow", 50, iterations=n, **OPTIONS) for n in (None, 100, 1)}
    assert all(torch.equal(masks[None][name], masks[100][name]) for name in masks[100])
    assert not all(torch.equal(masks[1][name], masks[100][name]) for name in masks[100])
    magnitudes = {n: prune(mlp(), "grasp", 20, iterations=n, **OPTIONS) for n in (None, 1)}
    assert all(torch.equal(magnitudes[None][name], magnitudes[1][name]) for name in magnitudes[1])


def test_iterations_and_the_exponential_schedule_are_what_saves_synflow_from_layer_collapse():
    # The paper's section 6 on a narrow VGG-11 whose rho_max is 10^4.2.
    model = models.build("vgg11", "cifar10", width=0.125).double()
    compression = 10**4

    def emptied(iterations, schedule="exponential"):
        return prune(
            model, "synflow", compression, input_shape=(3, 32, 32), iterations=iterations, schedule=schedule
        ).collapsed()

    assert emptied(1) and not emptied(100) and emptied(100, "linear")


def test_rho_max_is_the_mean_layer_size_and_synflow_reaches_it_one_weight_at_a_time():
    model = mlp(sizes=(192, 4, 3), bias=False)
    weights = prunable(model)
    total, layers = sum(weight.numel() for weight in weights.values()), len(weights)
    assert rho_max(model) == total / layers
    masks = prune(model, "synflow", rho_max(model), iterations=total - layers, schedule="linear", **OPTIONS)
    assert masks.layers()["kept"].tolist() == [1] * layers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("synflo", 10), "unknown pruning method 'synflo'; did you mean 'synflow'"),
        (("synflow", 0.5), "compression must be a ratio from 1 to rho_max"),
        (("synflow", 1e9), "compression must be a ratio from 1 to rho_max"),
        (("synflow", float("nan")), "compression must be a ratio from 1 to rho_max"),
    ],
)
def test_a_method_or_compression_that_cannot_be_used_gives_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        prune(mlp(), *arguments, **OPTIONS)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"scope": "layers"}, "unknown scope 'layers'; did you mean 'layer'"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_an_option_that_cannot_be_used_gives_one_sentence(option, sentence):
    with pytest.raises(InputError, match=sentence):
        prune(mlp(), "magnitude", 10, **option)


def test_scores_that_are_not_finite_are_an_error():
    model = mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="infinite or not a number"):
        prune(model, "magnitude", 10)


def test_a_model_without_weights_gives_one_sentence():
    with pytest.raises(InputError, match="no convolution or linear layer"):
        prune(nn.Sequential(nn.ReLU()), "magnitude", 2)


def test_bypass_norm_is_synflows_and_excludes_train_mode():
    model = conv_chain()
    with pytest.raises(InputError, match="bypass_norm is for synflow"):
        prune(model, "magnitude", 2, bypass_norm=True)
    with pytest.raises(InputError, match="choose one"):
        prune(model, "synflow", 2, input_shape=SHAPE, bypass_norm=True, train_mode=True)


def test_blocks_that_begin_at_zero_are_pruned_by_their_weights_only_with_batch_norm_bypassed():
    model = residual()
    torch.nn.init.zeros_(model.norm.weight)
    with pytest.warns(UserWarning, match=r"the scale of norm is zero in every channel.*bypass_norm=True"):
        lost = prune(model, "synflow", 2, input_shape=SHAPE)
    assert not lost["inner.weight"].any() and not lost["outer.weight"].any()
    masks = prune(model, "synflow", 2, input_shape=SHAPE, bypass_norm=True)
    assert masks["inner.weight"].any() and masks["outer.weight"].any()


def test_scores_that_a_saliency_keeps_are_not_changed():
    """Of a single tensor too, and inverted: a method may return the same scores at every call."""
    model = torch.nn.Linear(4, 3, bias=False)
    kept = {"weight": torch.arange(12.0).view(3, 4)}
    masks = prune(model, lambda *_, **__: kept, 4, iterations=3, invert=True)
    assert torch.equal(kept["weight"], torch.arange(12.0).view(3, 4))
    assert torch.equal(masks["weight"].flatten().nonzero().flatten(), torch.arange(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["synflow", "magnitude", "random"])
def test_a_gpu_finds_the_masks_of_a_cpu_in_double_precision(method):
    """In single, rounding decides, on either."""
    model = models.build("vgg11", "cifar10", width=0.25).double()
    here = prune(model, method, 1000, input_shape=(3, 32, 32))
    there = prune(model.cuda(), method, 1000, input_shape=(3, 32, 32))
    assert all(torch.equal(mask, there[name].cpu()) for name, mask in here.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_a_gpu_finds_the_same_masks_each_time(method):
    model = models.build("vgg11", "cifar10", width=0.25).cuda()
    images = [(torch.randn(64, 3, 32, 32), torch.arange(64) % 10)]
    one, two = (prune(model, method, 100, input_shape=(3, 32, 32), batches=images) for _ in range(2))
    assert one.overlap(two) == 1
