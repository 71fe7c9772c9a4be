"""Chapter 10's experiments on two-layer networks: each table against its parts, computed by hand."""

from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from torch import nn

from synflow_lib import data, models
from synflow_lib.experiments import labels, sculpting
from synflow_lib.experiments import signal_propagation as module
from synflow_lib.experiments.signal_propagation import Setting, linear_twin
from synflow_lib.pruning import SALIENCIES, apply_masks, prunable, prune, snip
from synflow_lib.theory import approximate_isometry, isometry, jacobians


def network(seed=0, activation=nn.Tanh):
    model = models.mlp((3, 32, 32), 10, hidden=(8, 8), activation=activation)
    return models.initialise(model, "lecun", seed=seed)


@pytest.fixture
def setting():
    return Setting(network, "digits", recipe="smoke", device="cpu")


@pytest.fixture
def trainings(monkeypatch):
    """Every training of the test, in this process, which trains nothing: start, masks, data set, recipe, options."""
    seen = []

    def train(model, dataset, recipe, masks, **options):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen.append((state, masks, dataset, recipe, options))
        return module.History([{"epoch": 0, "train_loss": None, "test_accuracy": float(len(seen))}])

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setenv("SYNFLOW_PROCESSES", "1")
    return seen


def test_the_linear_twin_has_the_weights_and_no_activation_that_saturates():
    model = nn.Sequential(network(), nn.ReLU(), nn.Sigmoid())
    twin = linear_twin(model)
    kinds = [type(m) for m in twin.modules()]
    assert kinds.count(nn.Identity) == 3 and nn.Tanh not in kinds and kinds.count(nn.ReLU) == 1
    assert nn.Tanh in [type(m) for m in model.modules()]
    for name, weight in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], weight)


def test_synflow_is_scored_on_the_linear_twin_and_the_others_on_the_network_itself(setting):
    model, shape = network(), (3, 32, 32)
    linear = prune(linear_twin(model), "synflow", 10, input_shape=shape)
    assert setting.masks(model, "synflow", 10).overlap(linear) == 1
    with pytest.warns(UserWarning, match=r"scores all weights of 1\.weight 0"):  # an input of ones saturates tanh
        assert prune(model, "synflow", 10, input_shape=shape).overlap(linear) < 1
    assert setting.masks(model, "snip", 10).overlap(prune(model, "snip", 10, batches=setting.batches)) == 1
    assert setting.masks(model, "random", 10, 3).overlap(prune(model, "random", 10, seed=3)) == 1


def test_singular_values_are_those_of_each_state(setting):
    table = module.singular_values(setting, ["snip"], [50.0, 90.0])
    assert table["state"].tolist() == ["at initialisation"] * 2 + ["pruned", "pruned", *["after isometry"] * 2] * 2
    model, images = network(), setting.batches[0][0][:20]
    masks = setting.masks(model, "snip", 10)
    row = table.query("removed == 90 and state == 'pruned'").set_index("quantity")
    single = torch.cat([torch.linalg.svdvals(w.detach() * masks[n]) for n, w in prunable(model).items()])
    assert row.loc["single layers", "min"] == pytest.approx(float(single.min()), abs=1e-6)
    assert row.loc["single layers", "max"] == pytest.approx(float(single.max()), rel=1e-5)
    approximate_isometry(model, masks)
    whole = jacobians.input_output(model, images, masks)
    row = table.query("removed == 90 and state == 'after isometry'").set_index("quantity").loc["input to output"]
    expected = [float(f) for f in (whole.mean(), whole.std(correction=0), whole.min(), whole.max())]
    assert row[["mean", "std", "min", "max"]].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_spread_of_single_layers_counts_every_layer_alike(setting):
    model = network()
    values = [torch.linalg.svdvals(weight.detach().double()) for weight in prunable(model).values()]
    mean = sum(v.mean() for v in values) / 3
    std = (sum((v - mean).square().mean() for v in values) / 3).sqrt()
    found = module.spread(setting, model)["single layers"]
    assert found[:2] == pytest.approx((float(mean), float(std)), rel=1e-5)


def test_both_states_train_the_same_masks_from_different_weights(setting, trainings):
    table = module.trainability(setting, ["random", "snip"], [1.0], [0, 5])
    keys = ["pruner", "log10_compression", "seed", "state"]
    assert [tuple(row) for row in table[keys].to_numpy()] == list(
        product(["random", "snip"], [1.0], [0, 5], module.STATES)
    )
    assert table["test_accuracy"].tolist() == [float(i) for i in range(1, 9)]
    for (plain, masks, *_), (repaired, same, *_) in zip(trainings[::2], trainings[1::2], strict=True):
        assert masks.overlap(same) == 1
        assert isometry.deviations(*loaded(repaired, masks))["term"].sum() < (
            isometry.deviations(*loaded(plain, masks))["term"].sum()
        )
    first = apply_masks(network(seed=5), trainings[2][1]).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in trainings[2][0].items())
    assert [options["seed"] for *_, options in trainings] == [0, 0, 5, 5] * 2


def loaded(state, masks):
    model = network()
    model.load_state_dict(state)
    return model, masks


def test_scores_without_labels_are_compared_with_the_supervised_ones(setting, trainings):
    table = labels.without_labels(setting, [1.0], [0]).set_index("score")
    assert list(table.index) == ["supervised", "uniform", "entropy", "random labels", "synflow"]
    assert table["overlap"]["supervised"] == 1 > table["overlap"].drop("supervised").max()
    masks = dict(zip(table.index, (m for _, m, *_ in trainings), strict=True))
    unlabelled = [(images, None) for images, _ in setting.batches]
    expected = prune(network(), lambda *a, **k: snip(*a, **k | {"loss": "uniform", "batches": unlabelled}), 10)
    assert masks["uniform"].overlap(expected) == 1
    repaired = network()
    approximate_isometry(repaired, expected)
    assert all(torch.equal(trainings[1][0][name], tensor) for name, tensor in repaired.state_dict().items())


def test_halves_are_two_whole_tasks_with_labels_from_zero():
    digits = data.load("digits")
    low, high = labels.halves(digits).values()
    assert len(low.train_labels) + len(high.train_labels) == len(digits.train_labels)
    assert set(low.test_labels.tolist()) == set(high.train_labels.tolist()) == set(range(5))
    fives = digits.train_labels == 5
    assert torch.equal(high.train_images[high.train_labels == 0], digits.train_images[fives])
    assert not low.official


def test_a_mask_moves_to_every_task_and_is_trained_there(setting, trainings):
    tasks = labels.tasks("digits", "")
    table = labels.transfer(setting, "", 1.0, [0])
    names = list(tasks)
    assert [tuple(row) for row in table[["source", "target"]].to_numpy()] == list(
        product([*names, "random labels"], names)
    )
    trained = [dataset.train_images for _, _, dataset, *_ in trainings]
    assert all(map(torch.equal, trained, [tasks[name].train_images for name in names] * 3))
    masks = [m for _, m, *_ in trainings]
    assert masks[0].overlap(masks[1]) == 1 == masks[2].overlap(masks[3])
    assert len({masks[0].overlap(other) for other in (masks[2], masks[4])} | {1.0}) == 3
    own = prune(network(), "snip", 10, batches=data.scoring_batches(tasks["upper half"], 5))
    assert masks[2].overlap(own) == 1


def other_images(monkeypatch, name, **changes):
    """Let `name` be the digits with other words about them."""
    digits = data.load_once("digits")
    other = replace(digits, spec=replace(digits.spec, name=name, **changes))
    monkeypatch.setattr(labels.data, "load_once", lambda asked: other if asked == name else digits)


def test_other_images_are_trained_by_their_own_recipe(setting, trainings, monkeypatch):
    other_images(monkeypatch, "cifar10")
    labels.transfer(replace(setting, recipe="fast"), "cifar10", 1.0, [0])
    used = {dataset.spec.name: recipe for _, _, dataset, recipe, _ in trainings}
    assert used == {name: module.recipe("fast", name, "mlp") for name in ("digits", "cifar10")}


def test_tasks_of_other_sizes_are_one_sentence_before_any_work(setting, trainings, monkeypatch):
    other_images(monkeypatch, "cifar100", classes=100)
    with pytest.raises(labels.InputError, match="digits 3x32x32 with 10 classes, cifar100 3x32x32 with 100 classes"):
        labels.transfer(setting, "cifar100", 1.0, [0])
    assert trainings == []


def test_every_plan_ends_at_the_size_of_the_one_by_hand(setting, trainings):
    plans = sculpting.plans((3, 32, 32), 10)
    plans["own"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    table = sculpting.carved(setting, {"own": plans["own"]}, [0], ["snip", "random"])
    assert table["network"].tolist() == ["by hand", *(name for name in list(plans)[1:] for _ in range(2))]
    assert table["after"].nunique() == 1 and table["after"][0] == table["before"][0]
    for name, plan in plans.items():
        size = sum(weight.numel() for weight in prunable(plan()).values())
        assert set(table.loc[table["network"] == name, "before"]) == {size}
        assert plan()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert all(masks.kept == table["after"][0] for _, masks, *_ in trainings)
    assert trainings[0][1].density == 1


def test_both_theories_are_measured_on_the_pruned_network(setting):
    model = network(activation=nn.ReLU).double()
    options = {"input_shape": (3, 32, 32), "batches": setting.batches}
    table = module.two_theories(model, [0.0, 1.0], **options)
    assert table.groupby("pruner", sort=False).size().to_dict() == dict.fromkeys(SALIENCIES, 6)
    conserved = table.groupby("pruner")["conservation"].max()
    assert conserved["synflow"] < 1e-10 < conserved.drop("synflow").min()
    masks = prune(model, "magnitude", 10, **options)
    rows = table.query("pruner == 'magnitude' and log10_compression == 1")
    assert rows["isometry"].tolist() == isometry.deviations(model, masks)["rms"].tolist()
    totals = [float((weight.detach() * masks[name]).abs().sum()) for name, weight in prunable(model).items()]
    assert rows["conservation"].tolist() == pytest.approx([abs(t / (sum(totals) / 3) - 1) for t in totals])


def test_processes_give_the_rows_of_one(monkeypatch):
    """The experiments that train, in fresh processes and here."""
    small = Setting(module.Chain("digits", 3, width=8), "digits", recipe="smoke", device="cpu")
    found = []
    for number in ("1", "2"):
        monkeypatch.setenv("SYNFLOW_PROCESSES", number)
        curves = module.trainability(small, ["snip"], [1.0], [0, 1]).drop(columns="seconds")
        scored = labels.without_labels(small, [1.0], [0])
        found.append((curves, scored, labels.transfer(small, "", 1.0, [0])))
    for one, two in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, two)
