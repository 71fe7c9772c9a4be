"""What happens to a network before its last training."""

import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from synflow_lib import data, models
from synflow_lib.benchmark import preparation, run
from synflow_lib.benchmark.preparation import NEW_WEIGHTS, pruned, surviving
from synflow_lib.benchmark.run import execute
from synflow_lib.devices import Speed
from synflow_lib.pruning import LOSSES, SALIENCIES, Masks, apply_masks, prune
from synflow_lib.theory import approximate_isometry
from synflow_lib.training import History

CPU = torch.device("cpu")
module = sys.modules["synflow_lib.benchmark.run"]


@pytest.fixture
def trainings(monkeypatch):
    """Every training of the test: its network at the start, its masks; nothing is learned, the weights only move."""
    seen = []

    def train(model, dataset, recipe, masks=None, **options):
        if masks is not None:
            apply_masks(model, masks)
        seen.append(({name: tensor.clone() for name, tensor in model.state_dict().items()}, masks))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(len(seen))
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator) * (parameter != 0)
            for name, buffer in model.named_buffers():
                if "running" in name:
                    buffer += 1
        return History([{"epoch": 0, "test_accuracy": 10.0}])

    monkeypatch.setattr(module, "train", train)
    return seen


@pytest.mark.parametrize("cycles", [1, 3])
def test_survivors_start_every_cycle_from_their_initial_values(cycles, quick, trainings):
    spec = replace(quick, model="vgg11", width=0.03, cycles=cycles)
    execute(spec, CPU, Speed())
    initial = models.build("vgg11", "digits", width=0.03, seed=spec.seed).state_dict()
    assert len(trainings) == cycles + 1
    kept = []
    for state, masks in trainings:
        for name, tensor in state.items():
            alive = masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor[alive], initial[name][alive]) and not tensor[~alive].any()
        kept.append(masks.compression)
    assert kept == pytest.approx([10 ** (i / cycles) for i in range(cycles + 1)], rel=5e-3)


def test_without_rewinding_training_goes_on_from_where_it_was(quick, trainings):
    execute(replace(quick, cycles=2, rewind=False), CPU, Speed())
    (first, _), (second, masks), _ = trainings
    name = next(iter(masks))
    assert not torch.equal(first[name][masks[name]], second[name][masks[name]])


@pytest.mark.parametrize("pruner", ["random", "magnitude", "grasp", "synflow"])
@pytest.mark.parametrize("invert", [False, True])
def test_a_pruned_weight_never_comes_back_in_a_later_cycle(pruner, invert, quick, trainings):
    execute(replace(quick, pruner=pruner, cycles=3, invert=invert), CPU, Speed())
    for before, after in pairwise(masks for _, masks in trainings):
        assert after.kept < before.kept
        assert all(not (after[name] & ~before[name]).any() for name in before)


def test_a_cycle_that_diverges_ends_the_run(quick, monkeypatch):
    history = History([{"epoch": 0, "test_accuracy": 10.0}], diverged_epoch=1)
    calls = []
    monkeypatch.setattr(module, "train", lambda *a, **k: calls.append(1) or history)
    record = execute(replace(quick, cycles=2), CPU, Speed())
    assert record["status"] == "diverged" and len(calls) == 1
    assert [row["cycle"] for row in record["cycle_results"]] == [1]


def test_the_seconds_of_cycles_are_those_of_their_trainings_whenever_they_were_done(quick):
    """Of a training that was interrupted, or that another run shares, this process sees but the end."""
    _, notes = preparation.prepared(
        replace(quick, cycles=2),
        models.build("mlp", "digits", width=0.25),
        data.load("digits"),
        lambda *_: History([{"epoch": 1, "test_accuracy": 9.0, "seconds": 100.0}]),
    )
    assert 200 <= notes["prune_seconds"] < 220


def test_cycles_are_recorded(quick):
    record = run(replace(quick, cycles=2), device="cpu")
    assert [row["cycle"] for row in record["cycle_results"]] == [1, 2]
    assert all(0 <= row["accuracy_last"] <= row["accuracy_best"] for row in record["cycle_results"])


def test_shuffling_moves_the_masks_and_keeps_every_layers_density(quick, trainings):
    plain, moved = (execute(replace(quick, shuffle=shuffle), CPU, Speed()) for shuffle in (False, True))
    assert plain["layers"] == moved["layers"]
    (_, before), (_, after) = trainings
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_reinitialising_draws_other_weights_under_the_same_masks(quick, trainings):
    execute(quick, CPU, Speed())
    execute(replace(quick, reinitialise=True), CPU, Speed())
    (old, before), (new, after) = trainings
    expected = models.reinitialise(models.build("mlp", "digits", width=0.25), NEW_WEIGHTS).state_dict()
    for name, mask in before.items():
        assert torch.equal(mask, after[name])
        assert not torch.equal(old[name], new[name])
        assert torch.equal(new[name], expected[name] * mask)


@pytest.mark.parametrize("reinitialise", [False, True])
def test_isometry_repairs_the_kept_weights_before_training(reinitialise, quick, trainings):
    spec = replace(quick, isometry=True, reinitialise=reinitialise)
    record = execute(spec, CPU, Speed())
    ((state, masks),) = trainings
    model = models.build("mlp", "digits", width=0.25)
    assert masks.overlap(pruned(quick, model, data.load("digits"))) == 1
    if reinitialise:
        models.reinitialise(model, NEW_WEIGHTS)
    repair = approximate_isometry(model, masks)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert record["isometry_results"] == {
        **{"before": repair.curve[0], "after": repair.curve[-1], "steps": len(repair.curve) - 1, "converged": True}
    }
    assert repair.curve[-1] < repair.curve[0] / 2
    assert record["layers"] == execute(replace(quick, reinitialise=reinitialise), CPU, Speed())["layers"]


def test_after_cycles_isometry_comes_once_before_the_last_training(quick, trainings):
    execute(replace(quick, cycles=2, isometry=True), CPU, Speed())
    initial = models.build("mlp", "digits", width=0.25).state_dict()
    same = [
        all(torch.equal(state[name][mask], initial[name][mask]) for name, mask in masks.items())
        for state, masks in trainings
    ]
    assert same == [True, True, False]


def test_weights_that_diverged_are_not_repaired(quick, monkeypatch):
    history = History([{"epoch": 0, "test_accuracy": 10.0}], diverged_epoch=1)
    monkeypatch.setattr(module, "train", lambda *a, **k: history)
    monkeypatch.setattr(preparation, "isometric", lambda *_: pytest.fail("repaired"))
    assert execute(replace(quick, cycles=1, isometry=True), CPU, Speed())["status"] == "diverged"


@pytest.mark.parametrize("pruner", ["snip", "grasp"])
def test_the_loss_reaches_the_scores(pruner, quick):
    dataset, model = data.load_once("digits"), models.build("mlp", "digits", width=0.25)
    spec = replace(quick, pruner=pruner)
    batches = data.scoring_batches(dataset, seed=spec.seed)
    for loss in LOSSES:
        masks = pruned(replace(spec, loss=loss), model, dataset)
        by_hand = prune(model, partial(SALIENCIES[pruner], loss=loss), 10, batches=batches)
        assert masks.overlap(by_hand) == 1
    assert masks.overlap(pruned(spec, model, dataset)) < 1


@pytest.mark.parametrize("cycles", [0, 1])
def test_the_source_is_what_is_scored_on_and_nothing_else(cycles, quick, monkeypatch, trainings):
    digits = data.load_once("digits")
    other = replace(digits, train_images=digits.train_images.flip(0, 3), fingerprint="other")
    known = {"digits": digits, "cifar10": other}
    monkeypatch.setattr(data, "load_once", lambda name, device: known[name])
    scored = []
    original = data.scoring_batches
    monkeypatch.setattr(data, "scoring_batches", lambda d, **k: scored.append(d) or original(d, **k))
    datasets = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda m, d, *a, **k: datasets.append(d) or train(m, d, *a, **k))
    spec = replace(quick, pruner="snip", cycles=cycles)
    found = [execute(replace(spec, source=source), CPU, Speed()) for source in ("", "cifar10")]
    assert [d.fingerprint for d in scored] == [digits.fingerprint, "other"]
    assert all(d is digits for d in datasets) and len(datasets) == 2 * (cycles + 1)
    assert [record["source_fingerprint"] for record in found] == [digits.fingerprint, "other"]
    (*_, (_, before)), (*_, (_, after)) = trainings[: cycles + 1], trainings[cycles + 1 :]
    assert before.overlap(after) < 1 and before.kept == after.kept


@pytest.mark.parametrize("pruner", ["snip", "grasp"])
def test_methods_that_need_data_score_on_the_training_set(pruner, quick, monkeypatch):
    seen = []
    original = data.scoring_batches
    monkeypatch.setattr(data, "scoring_batches", lambda *a, **k: seen.append(k) or original(*a, **k))
    execute(replace(quick, pruner=pruner, seed=4), CPU, Speed())
    assert seen == [{"seed": 4}]


@pytest.mark.parametrize(("pruner", "iterations"), [("synflow", 100), ("magnitude", 1)])
@pytest.mark.parametrize("cycles", [0, 2])
def test_in_cycles_too_a_method_scores_as_often_as_its_name_says(pruner, iterations, cycles, quick, monkeypatch):
    seen, original = [], preparation.prune
    monkeypatch.setattr(preparation, "prune", lambda *a, **k: seen.append(k["iterations"]) or original(*a, **k))
    execute(replace(quick, pruner=pruner, cycles=cycles), CPU, Speed())
    assert seen == [iterations] * max(cycles, 1)


def test_options_reach_the_pruning(quick):
    dataset = data.load_once("digits")
    model = models.build("mlp", "digits", width=0.25)
    plain = pruned(quick, model, dataset)
    by_layer = pruned(replace(quick, scope="layer"), model, dataset)
    inverted = pruned(replace(quick, invert=True), model, dataset)
    assert (by_layer.layers()["density"] - 0.1).abs().max() < 0.01 < (plain.layers()["density"] - 0.1).abs().max()
    assert not any((plain[name] & inverted[name]).any() for name in plain)


def test_surviving_only_lowers_the_scores_of_what_is_gone():
    model = models.build("mlp", "digits", width=0.1)
    live = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if "weight" in name}
    among = Masks(
        {name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, mask in live.items()}
    )
    plain = SALIENCIES["magnitude"](model, among)
    scores = surviving(SALIENCIES["magnitude"], among, invert=False)(model, live)
    for name, score in scores.items():
        assert torch.equal(score[among[name]], plain[name][among[name]])
        assert (score[~among[name]] < 0).all()
