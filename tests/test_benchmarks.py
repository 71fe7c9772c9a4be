"""The benchmark scripts run, and both sides of them do the same work; no test asserts a time."""

import copy
import importlib.util
import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import plain_training
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import synflow_lib as sf
from synflow_lib import data, training
from synflow_lib.devices import Speed
from synflow_lib.pruning import Masks, apply_masks

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def script(name: str) -> ModuleType:
    """The module of a script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., list[dict]]:
    """A function (script, *options) -> the rows that it prints."""

    def printed(name: str, *options: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--device", "cpu", "--json", *options])
        script(name).main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return printed


@pytest.fixture(scope="module")
def benchmark_training() -> ModuleType:
    return script("training")


@pytest.fixture(params=["vgg11", "resnet18"])
def pruned(request) -> tuple[nn.Module, Masks]:
    """A narrow network in float64 whose masks remove half of every layer."""
    network = sf.models.build(request.param, "cifar10", width=0.06).double()
    return network, sf.prune(network, "random", 2.0, input_shape=(3, 32, 32), scope="layer")


def test_both_sides_have_the_same_loss_and_masked_gradients(benchmark_training, pruned):
    network, masks = pruned
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (6,), generator=generator)
    plain = plain_training.masked(copy.deepcopy(network), masks)
    ours = apply_masks(copy.deepcopy(network), masks)
    losses = []
    for model, zero_pruned in ((plain, lambda: None), (ours, training.mask_gradients(ours, masks))):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        zero_pruned()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, **EXACT)
    own = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, **EXACT)
        if name in masks:
            assert not parameter.grad[~masks[name]].any() and parameter.grad.any()


def test_plain_steps_and_train_give_the_same_network(benchmark_training, pruned):
    """All images in one batch, so that the order in which each side draws them does not matter."""
    network, masks = pruned
    dataset, real = benchmark_training.images_of("cifar10", steps=1, batch_size=8, evaluate=False)
    assert not real
    recipe = training.recipe("described", "cifar10", "vgg11")
    recipe = replace(recipe, epochs=3, batch_size=8, lr=0.05, weight_decay=0.01, milestones=(), augment=False)
    plain = plain_training.masked(copy.deepcopy(network), masks)
    optimiser = plain_training.sgd(plain, recipe)
    images = data.normalise(dataset.train_images, dataset.spec).double()
    losses = [plain_training.step(plain, optimiser, images, dataset.train_labels, recipe) for _ in range(recipe.epochs)]
    ours = copy.deepcopy(network)
    speed = Speed(bfloat16=True, channels_last=True, fused=True)
    history = training.train(ours, dataset, recipe, masks, device="cpu", speed=speed)
    # train adds its losses up in float32
    assert [row["train_loss"] for row in history.curve[1:]] == pytest.approx(losses, rel=1e-6)
    state = ours.state_dict()
    for name, tensor in plain.state_dict().items():
        if name in masks:
            tensor = tensor * masks[name]
        if not name.endswith(".mask"):
            torch.testing.assert_close(tensor, state[name], rtol=1e-7, atol=1e-9)
    before = apply_masks(network, masks).state_dict()
    assert all(not torch.equal(state[name], before[name]) for name in masks)


def test_both_sides_normalise_alike(benchmark_training):
    dataset, _ = benchmark_training.images_of("cifar10", steps=1, batch_size=5, evaluate=True)
    plain = plain_training.Images(dataset.train_images, dataset.train_labels, dataset.spec, augment=False)
    assert torch.equal(torch.stack([image for image, _ in plain]), data.normalise(dataset.train_images, dataset.spec))
    assert [label for _, label in plain] == dataset.train_labels.tolist()
    assert len(dataset.test_labels) == 1  # a fifth


def test_the_plain_loader_gives_augmented_batches_and_the_seconds_they_took(benchmark_training):
    dataset, _ = benchmark_training.images_of("cifar10", steps=2, batch_size=4, evaluate=False)
    batches = list(plain_training.loader(dataset, 4, 3, torch.device("cpu")))
    assert [tuple(images.shape) for (images, _), _ in batches] == [(4, 3, 32, 32)] * 3
    assert all(0 <= seconds < math.inf for _, seconds in batches)


def test_a_row_counts_the_median_turn_after_the_warm_up(benchmark_training):
    turns = {"plain": [9, 2, 4, 3], "ours x2": [5, 1, 1, 1]}
    turns = {side: [{"wall": wall, "cpu": 2 * wall} for wall in taken] for side, taken in turns.items()}
    about = {"plain": {"flops": 5, "share": 1.0, "runs": 1}, "ours x2": {"flops": 5, "share": 1.0, "runs": 2}}
    plain, ours = benchmark_training.rows_of(turns, about, rate=100.0, images=6, clock="wall", passes=3)
    assert plain["images_per_second"] == 2 and plain["fastest"] == 3 and plain["warm_up"] == 6
    assert plain["cpu_ms"] == 1000 and plain["of_rate"] == pytest.approx(3 * 5 * 2 / 100)
    assert ours["images_per_second"] == 12 and ours["ratio"] == 6  # two runs of 6 images in a second
    assert ours["ratio_per_core"] == pytest.approx(6)


def test_training_runs(rows):
    options = ("--models", "vgg11", "--width", "0.06", "--batch-size", "4", "--steps", "1", "--turns", "1")
    plain, ours, compact, eager = rows("training", *options, "--compact", "--eager", "--evaluate")
    assert [row["side"] for row in (plain, ours, compact, eager)] == ["plain", "ours", "compact", "eager"]
    assert plain["ratio"] == 1 and min(row["images_per_second"] for row in (plain, ours, compact)) > 0
    assert compact["share"] < 1 == ours["share"]


def test_all_networks_can_be_started_at_once_and_several_of_ours_run_beside_each_other(rows):
    options = ("--models", "vgg11", "resnet18", "--width", "0.06", "--batch-size", "4", "--steps", "1", "--turns", "1")
    found = rows("training", *options, "--together", "--runs-at-once", "2")
    sides = ["plain", "ours", "ours x2"]
    assert [(row["model"], row["side"]) for row in found] == [
        (m, side) for m in ("vgg11", "resnet18") for side in sides
    ]
    assert all(row["images_per_second"] > 0 for row in found)


def test_a_row_of_ours_is_compiled_or_without_graphs_alone(benchmark_training):
    gpu = torch.device("cuda", 0)
    ours, eager, compiled = (benchmark_training.our_speed(gpu, side) for side in ("ours", "eager", "compiled"))
    assert ours.graphs and not ours.compile and not ours.compact
    assert eager == replace(ours, graphs=False) and compiled == replace(ours, compile=True)


def test_precision_runs_and_keeps_its_records(rows, tmp_path):
    options = ("--width", "0.05", "--recipe", "smoke", "--seeds", "0", "1", "--compression", "0")
    (row,) = rows("precision", *options, "--records", str(tmp_path))
    records = {
        side: [json.loads(file.read_text()) for file in (tmp_path / side).glob("*.json")]
        for side in ("bfloat16", "float32")
    }
    assert {side: {record["speed"]["bfloat16"] for record in found} for side, found in records.items()} == {
        "bfloat16": {True},
        "float32": {False},
    }
    for side, found in records.items():
        assert row[side] == pytest.approx(sum(record["accuracy_last"] for record in found) / 2)
    assert rows("precision", *options, "--records", str(tmp_path)) == [row]


def test_the_comparison_of_two_sets_of_accuracies():
    compared = script("precision").compared
    row = compared([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    # Welch by hand: variances 1 and 4, so t = -2 / sqrt(5/3); degrees of freedom (5/3)^2 / (1/18 + 16/18) = 50/17
    assert row["difference"] == -2 and row["deviations"] == (1.0, 2.0)
    assert row["p"] == pytest.approx(0.2209, abs=2e-3)
    assert row["interval"][0] < -2 < 0 < row["interval"][1]
    assert compared([5.0, 5.0], [5.0, 5.0])["p"] == 1 and compared([5.0, 5.0], [4.0, 4.0])["p"] == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_the_allocator_costs_is_printed_for_both_sides(monkeypatch, capsys):
    options = ["--steps", "1", "--turns", "1", "--width", "0.1", "--recipes", "published"]
    monkeypatch.setattr(sys, "argv", ["allocator.py", *options])
    script("allocator").main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["published", "default"], ["published", "kept"]]
    assert all(float(line[2]) > 0 for line in lines) and lines[0][-1] == "1.00x"
