"""Every score is what its definition says, computed a second way, and leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CLASSES, NETWORKS, SHAPE, batches, conv_chain, everything, mlp

from synflow_lib.errors import InputError
from synflow_lib.pruning import (
    SALIENCIES,
    grasp,
    loss_saliency,
    magnitude,
    prunable,
    random,
    snip,
    synaptic_saliency,
    synflow,
)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, [m.training for m in model.modules()]


@pytest.mark.parametrize("method", SALIENCIES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("train_mode", [False, True])
def test_scores_have_the_shapes_of_the_weights_and_leave_the_model_as_it_was(method, network, train_mode):
    model = NETWORKS[network]().train()
    state, modes = snapshot(model)
    scores = SALIENCIES[method](model, input_shape=SHAPE, batches=batches(), train_mode=train_mode, seed=0)
    assert {name: score.shape for name, score in scores.items()} == {n: w.shape for n, w in prunable(model).items()}
    assert all(score.dtype == torch.float64 and not score.requires_grad for score in scores.values())
    after, modes_after = snapshot(model)
    assert all(torch.equal(state[name], after[name]) for name in state) and modes == modes_after
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["snip", "synflow"])
def test_the_model_keeps_its_modes_when_scoring_fails(method):
    model = conv_chain().train()
    state, modes = snapshot(model)
    wrong = [(torch.zeros(2, 5, 8, 8), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(InputError, match="cannot take an input of shape"):
        SALIENCIES[method](model, input_shape=(5, 8, 8), batches=wrong)
    after, modes_after = snapshot(model)
    assert all(torch.equal(state[name], after[name]) for name in state) and modes == modes_after


def test_synflow_of_a_linear_chain_is_the_product_of_path_sums():
    # S(w_ij in layer l) = [1' prod_{k>l} |W_k|]_i |w_ij| [prod_{k<l} |W_k| 1]_j
    model = mlp(bias=False)
    weights = [weight.detach().abs() for weight in prunable(model).values()]
    for index, (weight, score) in enumerate(zip(weights, synflow(model, input_shape=SHAPE).values(), strict=True)):
        before, after = torch.ones(weights[0].shape[1]).double(), torch.ones(CLASSES).double()
        for earlier in weights[:index]:
            before = earlier @ before
        for later in reversed(weights[index + 1 :]):
            after = later.T @ after
        assert torch.allclose(score, after[:, None] * weight * before, rtol=1e-12, atol=0)


def loss(model, parameters):
    total = sum(len(labels) for _, labels in batches())
    return sum(
        F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y) * len(y) / total for x, y in batches()
    )


def test_snip_is_the_slope_of_the_loss_along_a_gate_on_each_weight():
    model, step = mlp(), 1e-6
    signed = loss_saliency(model, batches=batches())
    name, weight = next(iter(prunable(model).items()))
    for position in ((0, 0), (3, 100), (11, 191)):
        shifted = {}
        for sign in (1, -1):
            moved = weight.detach().clone()
            moved[position] *= 1 + sign * step
            shifted[sign] = loss(model, {name: moved}).item()
        slope = (shifted[1] - shifted[-1]) / (2 * step)
        assert signed[name][position].item() == pytest.approx(slope, rel=1e-3, abs=1e-12)
    assert all(
        torch.equal(a, b.abs()) for a, b in zip(snip(model, batches=batches()).values(), signed.values(), strict=True)
    )


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    model = mlp(activation=nn.Tanh, sizes=(192, 4, 3))
    names = list(prunable(model))
    weights = tuple(prunable(model).values())

    def objective(*values):
        return loss(model, dict(zip(names, values, strict=True)))

    gradient = torch.autograd.grad(objective(*weights), weights)
    _, product = torch.autograd.functional.hvp(objective, weights, gradient)
    scores = grasp(model, batches=batches())
    for name, weight, column in zip(names, weights, product, strict=True):
        assert torch.allclose(scores[name], weight * column, rtol=1e-9, atol=1e-15)


def test_grasp_says_how_removing_a_weight_changes_the_gradient_norm():
    # d/ds |g((1-s) theta_j)|^2 / 2 at s = 0 is -theta_j (H g)_j.
    model, step = mlp(activation=nn.Tanh, sizes=(192, 4, 3)), 1e-5
    name, weight = next(iter(prunable(model).items()))
    score = grasp(model, batches=batches())[name]
    position = tuple(int(i) for i in (score == score.max()).nonzero()[0])

    def half_norm(factor):
        moved = weight.detach().clone()
        moved[position] *= factor
        values = {n: (moved if n == name else w.detach().clone()).requires_grad_() for n, w in prunable(model).items()}
        gradient = torch.autograd.grad(loss(model, values), list(values.values()))
        return sum((g**2).sum().item() for g in gradient) / 2

    slope = (half_norm(1 - step) - half_norm(1 + step)) / (2 * step)
    assert slope == pytest.approx(-score[position].item(), rel=1e-4)


def test_batches_of_any_size_give_the_score_of_all_examples_together():
    model = conv_chain()
    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    for method in (snip, grasp):
        split, joint = method(model, batches=batches()), method(model, batches=whole)
        assert all(
            torch.allclose(a, b, rtol=1e-9, atol=1e-14) for a, b in zip(split.values(), joint.values(), strict=True)
        )


def test_train_mode_scores_with_the_statistics_of_the_batch():
    model = conv_chain()
    still, moving = (snip(model, batches=batches(), train_mode=mode) for mode in (False, True))
    assert not torch.allclose(still["0.weight"], moving["0.weight"], rtol=0.1)


def test_magnitude_is_the_absolute_weight_and_random_only_depends_on_the_seed():
    model = mlp()
    scores = magnitude(model)
    assert all(torch.equal(scores[name], weight.abs()) for name, weight in prunable(model).items())
    first, again, other = (random(model, seed=seed)["1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() > 0 and first.max() <= 1 and first.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", SALIENCIES)
def test_a_masked_weight_scores_nothing(method):
    model = mlp()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    masks["1.weight"][:, ::2] = False
    scores = SALIENCIES[method](model, masks, input_shape=SHAPE, batches=batches(), seed=0)
    assert not scores["1.weight"][:, ::2].any() and scores["1.weight"][:, 1::2].any()


def test_synflow_ignores_running_means_and_signs():
    model = conv_chain()
    before = synflow(model, input_shape=SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.where(torch.rand_like(parameter) < 0.5, -1.0, 1.0)
        model[1].running_mean += 3
    after = synflow(model, input_shape=SHAPE)
    assert all(torch.allclose(before[name], after[name], rtol=1e-12) for name in before)


def test_synflow_turns_to_float64_where_float32_overflows():
    deep = mlp(bias=False, sizes=(192, *(40,) * 60)).float()
    with torch.no_grad():
        for weight in deep.parameters():
            weight *= 4
    scores = synflow(deep, input_shape=SHAPE)
    reference = synflow(deep.double(), input_shape=SHAPE)
    assert all(torch.equal(scores[name], reference[name]) for name in scores)
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max


def test_synflow_says_so_where_float64_overflows_too():
    model = mlp(bias=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1e200
    with pytest.raises(InputError, match="even in float64"):
        synflow(model, input_shape=SHAPE)


def test_synaptic_saliency_of_the_loss_is_loss_saliency():
    model, ((images, labels),) = conv_chain(), batches(sizes=(6,))
    general = synaptic_saliency(model, images, lambda outputs: F.cross_entropy(outputs, labels))
    special = loss_saliency(model, batches=[(images, labels)], parameters=everything(model))
    assert list(general) == list(special)
    assert all(torch.allclose(general[name], special[name], rtol=1e-12) for name in general)


def test_prunable_finds_attention_counts_shared_weights_once_and_refuses_a_model_without_any():
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "first": nn.Linear(8, 8)})
    attention["second"] = nn.Linear(8, 8)
    attention["second"].weight = attention["first"].weight
    assert list(prunable(attention)) == ["attention.in_proj_weight", "attention.out_proj.weight", "first.weight"]
    with pytest.raises(InputError, match="no convolution or linear layer"):
        prunable(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))


IMAGES = torch.zeros(4, *SHAPE)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "pass batches"),
        ([], "pass batches"),
        ([IMAGES], r"sequence of \(images, labels\)"),
        ([(IMAGES, torch.zeros(3, dtype=torch.long))], "labels must be integers of shape"),
        ([(IMAGES, torch.zeros(4))], "labels must be integers of shape"),
        ([(IMAGES, torch.full((4,), CLASSES))], "do not fit outputs"),
        ([(IMAGES, torch.full((4,), -1))], "do not fit outputs"),
        ([(IMAGES[:, :2], torch.zeros(4, dtype=torch.long))], "cannot take an input of shape"),
    ],
)
@pytest.mark.parametrize("method", [snip, grasp])
def test_a_wrong_batch_gives_one_sentence(method, given, sentence):
    with pytest.raises(InputError, match=sentence):
        method(conv_chain(), batches=given)


def test_synflow_without_an_input_shape_says_what_to_pass():
    with pytest.raises(InputError, match="pass input_shape"):
        synflow(mlp())
