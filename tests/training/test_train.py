import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import conv_chain, mlp

import synflow_lib as sf
from synflow_lib import data, devices
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import History, Recipe, evaluate, train

RECIPE = Recipe("mine", 3, 32, 0.05, 5e-4, "test", schedule="one-cycle", warm_up=1.0)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_the_history_has_the_untrained_network_and_every_epoch(toy_data):
    history = train(conv_chain(), toy_data, RECIPE, device="cpu")
    assert [row["epoch"] for row in history.curve] == [0, 1, 2, 3]
    assert history.curve[0]["train_loss"] is None
    assert history.status == "done" and history.diverged_epoch is None
    assert history.curve[-1]["train_loss"] < history.curve[1]["train_loss"]
    assert history.accuracy_last == history.curve[-1]["test_accuracy"] > 60
    assert json.loads(json.dumps(history.curve, allow_nan=False)) == history.curve


def test_best_and_last_are_both_kept():
    history = History([{"epoch": i, "test_accuracy": a} for i, a in enumerate((10.0, 50.0, 50.0, 40.0))])
    assert (history.accuracy_last, history.accuracy_best, history.best_epoch) == (40.0, 50.0, 1)


def test_it_is_plain_stochastic_gradient_descent(toy_data):
    """The loop against torch.optim written out naively, in float64 and to the last bits."""
    model, reference = conv_chain(), conv_chain()
    recipe = replace(RECIPE, schedule="steps", batch_size=48, milestones=(1, 2), gamma=0.5, label_smoothing=0.1)
    history = train(model, toy_data, recipe, seed=4, device="cpu", speed=Speed())
    optimiser, means = torch.optim.SGD(reference.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4), []
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [1, 2], 0.5)
    with devices.seeded(4, torch.device("cpu")) as generator:
        for _ in range(3):
            losses = []
            for images, labels in data.train_batches(toy_data, 48, generator):
                optimiser.zero_grad()
                loss = F.cross_entropy(reference(images.double()), labels, label_smoothing=0.1)
                loss.backward()
                optimiser.step()
                losses += [loss.item()] * len(labels)
            means.append(sum(losses) / len(toy_data.train_labels))
            schedule.step()
    assert len(toy_data.train_labels) % 48, "the last batch is smaller, and counts for less"
    assert [row["train_loss"] for row in history.curve[1:]] == pytest.approx(means, rel=1e-6)
    for ours, theirs in zip(weights(model), weights(reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(toy_data):
    def trained(seed: int) -> list[torch.Tensor]:
        model = nn.Sequential(conv_chain(), nn.Dropout(0.3)).float()
        history = train(model, toy_data, RECIPE, seed=seed, device="cpu")
        return [*weights(model), torch.tensor([row["test_loss"] for row in history.curve])]

    first, second, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.numel() > 4)


def test_the_callers_random_state_is_left_alone(toy_data):
    model = nn.Sequential(conv_chain(), nn.Dropout(0.3))
    before = torch.get_rng_state()
    train(model, toy_data, RECIPE, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("speed", [Speed(channels_last=True), Speed(fused=True)])
def test_memory_order_and_fusing_change_nothing_but_rounding(speed, toy_data):
    plain, fast = conv_chain(), conv_chain()
    train(plain, toy_data, RECIPE, device="cpu", speed=Speed())
    train(fast, toy_data, RECIPE, device="cpu", speed=speed)
    for ours, theirs in zip(weights(plain), weights(fast), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_bfloat16_learns_as_well(toy_data):
    history = train(conv_chain().float(), toy_data, RECIPE, device="cpu", speed=Speed(bfloat16=True))
    assert history.accuracy_last > 60


@pytest.mark.parametrize("epochs_until", [1, 2])
def test_a_run_that_diverges_stops_and_says_when(epochs_until, toy_data):
    recipe = replace(RECIPE, epochs=5, schedule="steps", lr=1e-3, milestones=(epochs_until - 1,), gamma=1e30)
    history = train(mlp().float(), toy_data, recipe, device="cpu")
    assert history.status == "diverged" and history.diverged_epoch == epochs_until
    assert [row["epoch"] for row in history.curve] == list(range(epochs_until + 1))
    assert history.curve[-1]["train_loss"] is None
    json.dumps(history.curve, allow_nan=False)


def test_a_long_epoch_is_left_soon_after_it_diverges(toy_data):
    steps = []
    model = mlp().float()
    model.register_forward_hook(lambda module, *_: steps.append(1) if module.training else None)
    train(model, toy_data, replace(RECIPE, batch_size=1, schedule="steps", lr=1e20), device="cpu")
    assert len(steps) == 50


def test_max_steps_cuts_every_epoch_short(toy_data):
    steps = []
    model = mlp()
    model.register_forward_hook(lambda module, *_: steps.append(1) if module.training else None)
    train(model, toy_data, replace(RECIPE, max_steps=2), device="cpu")
    assert len(steps) == 2 * RECIPE.epochs


def test_on_epoch_sees_the_model_and_adds_to_the_row(toy_data):
    seen = []

    def squared(epoch: int, model: nn.Module) -> dict | None:
        seen.append(model.get_parameter("1.weight").clone())
        return {"mean_square": float(seen[-1].square().mean())} if epoch else None

    history = train(mlp(), toy_data, RECIPE, device="cpu", on_epoch=squared)
    assert "mean_square" not in history.curve[0]
    assert [row["mean_square"] for row in history.curve[1:]] == [float(w.square().mean()) for w in seen[1:]]
    assert not torch.equal(seen[0], seen[-1])


def test_no_epochs_is_an_evaluation(toy_data):
    model = conv_chain()
    before = weights(model)
    history = train(model, toy_data, replace(RECIPE, epochs=0, warm_up=0.0), device="cpu")
    assert len(history.curve) == 1 and all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_evaluate_counts_every_test_image_in_eval_mode(toy_data):
    model = conv_chain()
    model.train()
    found = evaluate(model, toy_data, Speed())
    assert model.training
    model.eval()
    with torch.no_grad():
        outputs = model(data.normalise(toy_data.test_images, toy_data.spec).double())
    assert found["test_accuracy"] == 100 * (outputs.argmax(1) == toy_data.test_labels).double().mean()
    assert found["test_loss"] == pytest.approx(float(F.cross_entropy(outputs, toy_data.test_labels)), rel=1e-6)


def test_masks_are_applied_before_the_untrained_network_is_evaluated(toy_data):
    model = conv_chain()
    masks = sf.prune(model, "magnitude", 8)
    zeros = []
    train(model, toy_data, RECIPE, masks, device="cpu", on_epoch=lambda *_: zeros.append(all(
        not model.get_parameter(name)[~mask].any() for name, mask in masks.items())))  # fmt: skip
    assert zeros == [True] * 4


def test_bad_input_is_refused_before_anything_changes(toy_data):
    model = conv_chain()
    before = weights(model)
    with pytest.raises(InputError, match="another model"):
        train(model, toy_data, RECIPE, sf.prune(mlp(), "magnitude", 4), device="cpu")
    with pytest.raises(InputError, match="unknown device"):
        train(model, toy_data, RECIPE, device="tpu")
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_changes_nothing_but_rounding(toy_data):
    recipe = replace(RECIPE, epochs=1, warm_up=0.0, max_steps=2)
    plain, compiled = mlp(), mlp()
    curves = [
        train(model, toy_data, recipe, device="cpu", speed=Speed(compile=fast)).curve
        for model, fast in ((plain, False), (compiled, True))
    ]
    assert not torch.equal(plain.get_parameter("1.weight"), mlp().get_parameter("1.weight"))
    for ours, theirs in zip(weights(plain), weights(compiled), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert curves[0][-1]["test_loss"] == pytest.approx(curves[1][-1]["test_loss"], rel=1e-6)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The images [images, C, H, W] and labels of each epoch that is trained, as they were shown."""
    epochs, plain = [], data.train_batches

    def noted(*asked):
        batches = list(plain(*asked))
        epochs.append(tuple(map(torch.cat, zip(*batches, strict=True))))
        return iter(batches)

    monkeypatch.setattr(data, "train_batches", noted)
    return epochs


def single_points(toy_data: data.Dataset) -> data.Dataset:
    """The toy data with one bright pixel at row 4, column 3 of 8 in every image; its value is the image's number."""
    images = torch.zeros_like(toy_data.train_images)
    images[:, :, 4, 3] = torch.arange(1, len(images) + 1, dtype=torch.uint8)[:, None]
    return replace(toy_data, train_images=images)


def points(images: torch.Tensor, spec: data.DatasetSpec) -> dict[int, tuple[int, int]]:
    """Number of each image to where its bright pixel is."""
    values = (images[:, 0] * spec.std[0] + spec.mean[0]).mul(255).round().int()
    return {int(values[image, row, column]): (row, column) for image, row, column in values.nonzero().tolist()}


def test_images_are_shifted_as_far_as_the_recipe_says(toy_data, seen):
    recipe = replace(RECIPE, epochs=4, crop=2, uncropped=1)
    dataset = single_points(toy_data)
    train(mlp(), dataset, recipe, device="cpu")
    shown = [points(images, dataset.spec).values() for images, _ in seen]
    assert len(shown) == 4 and all(len(places) == len(dataset.train_labels) for places in shown)
    for places in shown[:3]:
        assert {row for row, _ in places} == {2, 3, 4, 5, 6} and {column for _, column in places} == set(range(1, 7))
    assert set(shown[3]) == {(4, 3), (4, 4)}  # mirrored as before
    settings = recipe.settings()
    assert (settings["crop"], settings["uncropped"]) == (2, 1) and "flip" not in settings


def test_alternating_shows_both_sides_of_each_image_in_two_epochs(toy_data, seen):
    dataset = single_points(toy_data)
    recipe = replace(RECIPE, epochs=4, crop=0, flip="alternating")
    for seed in (0, 1):
        train(mlp(), dataset, recipe, seed=seed, device="cpu")
    shown = [points(images, dataset.spec) for images, _ in seen]
    sides = {(4, 3), (4, 4)}
    for first, second in itertools.pairwise(shown[:4]):
        assert all({first[image], second[image]} == sides for image in first)
    mirrored = [sum(column == 4 for _, column in places.values()) for places in (shown[0], shown[4])]
    assert all(0.3 < count / len(shown[0]) < 0.7 for count in mirrored)  # of 130: five standard deviations
    assert shown[0] == shown[2] != shown[4]


@pytest.mark.parametrize(("augment", "flip"), [(False, True), (True, False)])
def test_alternating_mirrors_nothing_where_nothing_is_mirrored(toy_data, seen, augment, flip):
    dataset = single_points(toy_data)
    dataset = replace(dataset, spec=replace(dataset.spec, flip=flip))
    recipe = replace(RECIPE, epochs=2, crop=0, flip="alternating", augment=augment)
    train(mlp(), dataset, recipe, device="cpu")
    assert all(set(points(images, dataset.spec).values()) == {(4, 3)} for images, _ in seen)


def test_evaluate_leaves_every_module_in_its_mode(toy_data, monkeypatch):
    model = conv_chain().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    evaluate(model, toy_data)
    assert [module.training for module in model.modules()] == before

    def fails(*_, **__):
        raise RuntimeError("no more batches")

    monkeypatch.setattr(F, "cross_entropy", fails)
    with pytest.raises(RuntimeError, match="no more batches"):
        evaluate(model, toy_data)
    assert [module.training for module in model.modules()] == before


def test_the_model_is_left_in_train_mode_without_gradients(toy_data):
    model = conv_chain().eval()
    train(model, toy_data, RECIPE, device="cpu", speed=Speed(channels_last=True))
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model[4].weight.is_contiguous(memory_format=torch.channels_last)
