"""An interrupted training goes on to the same bits, and a file that cannot be used costs nothing but time."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import conv_chain, mlp

import synflow_lib as sf
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import Checkpoint, Recipe, Stopped, checkpoint, train

PLAIN = Recipe("mine", 4, 32, 0.05, 5e-4, "test", schedule="one-cycle", warm_up=1.0)
REPEATED = Recipe("mine", 4, 32, 0.02, 5e-4, "test", updates=(("*.bias", 2), ("*", 3)))
IN_TURN = replace(PLAIN, uncropped=2, flip="alternating")
ABOUT = {"run": "toy", "numbers": (1, 2)}


@pytest.fixture
def stop():
    """Whether trainings are asked to stop; cleared after the test."""
    yield checkpoint.STOP
    checkpoint.STOP.clear()


def network() -> nn.Module:
    return nn.Sequential(conv_chain(), nn.Dropout(0.3)).float()


def trained(toy_data, recipe, saved=None, speed=None):
    model = network()
    masks = sf.prune(model, "magnitude", 3)
    speed = speed or Speed(bfloat16=True, channels_last=True, fused=True)
    history = train(model, toy_data, recipe, masks, seed=5, device="cpu", speed=speed, checkpoint=saved)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.curve], model.state_dict(), history


@pytest.mark.parametrize("recipe", [PLAIN, REPEATED, IN_TURN], ids=["plain", "repeated", "in turn"])
def test_stopped_after_every_epoch_it_ends_with_the_same_bits(recipe, toy_data, tmp_path, stop):
    curve, state, _ = trained(toy_data, recipe)
    stop.set()
    for epoch in range(1, recipe.epochs + 1):
        with pytest.raises(Stopped, match=r"toy\.safetensors"):
            trained(toy_data, recipe, Checkpoint(tmp_path / "toy.safetensors", ABOUT))
        stored = Checkpoint(tmp_path / "toy.safetensors", ABOUT)
        assert len(stored.state["history"]["curve"]) == epoch + 1
    stop.clear()
    again, resumed, history = trained(toy_data, recipe, stored)
    assert again == curve
    assert all(torch.equal(resumed[name], tensor) for name, tensor in state.items())
    seconds = [row["seconds"] for row in history.curve]
    assert seconds == sorted(seconds)


def test_saving_does_not_change_the_training(toy_data, tmp_path):
    saved = Checkpoint(tmp_path / "toy.safetensors", every=0)
    assert trained(toy_data, PLAIN, saved)[0] == trained(toy_data, PLAIN)[0]
    assert list(tmp_path.iterdir()) == [saved.path]


@pytest.mark.parametrize("diverges", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def test_it_is_written_at_the_end_where_that_is_wanted(at_end, diverges, toy_data, tmp_path):
    file = tmp_path / "toy.safetensors"
    recipe = replace(PLAIN, lr=1e30) if diverges else PLAIN
    curve, state, history = trained(toy_data, recipe, Checkpoint(file, ABOUT, every=1e9, at_end=at_end))
    assert file.exists() == at_end and (history.status == "diverged") == diverges
    if at_end:
        again, same, _ = trained(toy_data, recipe, Checkpoint(file, ABOUT, every=1e9))
        assert again == curve
        assert all(torch.equal(same[name], tensor) or diverges for name, tensor in state.items())


def test_it_is_written_when_the_interval_has_passed(toy_data, tmp_path, monkeypatch):
    clock, written = iter(range(0, 1000, 25)), []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(clock))
    saved = Checkpoint(tmp_path / "toy.safetensors", every=60)
    monkeypatch.setattr(saved, "_write", lambda *_: written.append(len(_[-1]["history"]["curve"]) - 1))
    trained(toy_data, Recipe("mine", 8, 64, 0.05, 0, "test"), saved)
    # Looks at 25 s, 50, 75 (the first past 60, whose writing ends at 100), 125, 150, 175 and so on.
    assert written == [3, 6]


@pytest.mark.parametrize("about", [{"run": "other"}, {**ABOUT, "numbers": [1, 3]}, {}])
def test_another_training_begins_anew(about, toy_data, tmp_path):
    path = tmp_path / "toy.safetensors"
    trained(toy_data, PLAIN, Checkpoint(path, ABOUT, every=0))
    assert Checkpoint(path, json.loads(json.dumps(ABOUT))).state is not None
    assert Checkpoint(path, about).state is None


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "foreign": lambda content: content.replace(b"synflow-", b"sinflow-"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_as_good_as_none(damage, toy_data, tmp_path, caplog):
    path = tmp_path / "toy.safetensors"
    curve, _, _ = trained(toy_data, PLAIN, Checkpoint(path, ABOUT, every=0))
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        damaged = Checkpoint(path, ABOUT)
    assert damaged.state is None and "toy.safetensors is damaged" in caplog.text
    assert trained(toy_data, PLAIN, damaged)[0] == curve


def test_a_file_that_is_gone_while_it_is_read_is_as_good_as_none(toy_data, tmp_path, monkeypatch, caplog):
    path = tmp_path / "toy.safetensors"
    trained(toy_data, PLAIN, Checkpoint(path, ABOUT, every=0))
    opened = torch.UntypedStorage.from_file

    def gone(*arguments, **options):
        path.unlink()
        return opened(*arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", gone)
    assert Checkpoint(path, ABOUT).state is None and not path.exists() and not caplog.records


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(toy_data, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise InputError("cannot write: No space left on device")

    monkeypatch.setattr(checkpoint.tensors, "write", full)
    with caplog.at_level(logging.WARNING):
        curve, _, _ = trained(toy_data, PLAIN, Checkpoint(tmp_path / "toy.safetensors", every=0))
    assert len(curve) == 5 and "No space left" in caplog.text and not list(tmp_path.iterdir())


def test_masks_and_notes_are_kept_beside_the_training(toy_data, tmp_path):
    path = tmp_path / "toy.safetensors"
    saved = Checkpoint(path, ABOUT, every=0)
    saved.extra, saved.notes = {"0.weight": torch.tensor([True, False])}, {"seconds": 0.1}
    trained(toy_data, PLAIN, saved)
    stored = Checkpoint(path, ABOUT)
    assert stored.notes == {"seconds": 0.1} and stored.extra["0.weight"].tolist() == [True, False]
    assert stored.extra["0.weight"].dtype == torch.bool


def test_a_diverged_training_is_over(toy_data, tmp_path):
    recipe = Recipe("mine", 5, 32, 1e30, 0.0, "test")
    saved = Checkpoint(tmp_path / "toy.safetensors", every=0)
    first = train(mlp().float(), toy_data, recipe, device="cpu", checkpoint=saved)
    again = train(mlp().float(), toy_data, recipe, device="cpu", checkpoint=Checkpoint(saved.path))
    assert first.status == again.status == "diverged" and first.curve == again.curve


def test_the_state_of_another_model_is_refused(toy_data, tmp_path):
    path = tmp_path / "toy.safetensors"
    trained(toy_data, PLAIN, Checkpoint(path, every=0))
    with pytest.raises(InputError, match=r"toy\.safetensors is of another model"):
        train(mlp().float(), toy_data, PLAIN, device="cpu", checkpoint=Checkpoint(path))


@pytest.mark.parametrize("recipe", [PLAIN, REPEATED], ids=["plain", "repeated"])
def test_a_training_with_tied_weights_goes_on_with_the_same_bits(recipe, toy_data, tmp_path, stop):
    def network():
        model = mlp(sizes=(192, 9, 9, 9)).float()
        model[5].weight = model[3].weight
        return model

    def trained(saved=None):
        model = network()
        masks = sf.prune(model, "magnitude", 3)
        history = train(model, toy_data, recipe, masks, seed=5, device="cpu", checkpoint=saved)
        return [row["train_loss"] for row in history.curve], model

    losses, model = trained()
    path = tmp_path / "toy.safetensors"
    stop.set()
    for _ in range(2):
        with pytest.raises(Stopped, match="where it stood is in"):
            trained(Checkpoint(path))
    stop.clear()
    again, resumed = trained(Checkpoint(path))
    assert again == losses and resumed[5].weight is resumed[3].weight
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in resumed.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), torch.ones(1)], ids=["nan", "tensor"])
def test_what_json_has_no_word_for_costs_the_checkpoint_and_not_the_training(value, toy_data, tmp_path, caplog, stop):
    def run():
        saved = Checkpoint(tmp_path / "toy.safetensors", every=0)
        return train(mlp().float(), toy_data, PLAIN, device="cpu", on_epoch=lambda *_: {"x": value}, checkpoint=saved)

    with caplog.at_level(logging.WARNING):
        history = run()
    assert len(history.curve) == 5 and "what on_epoch returns must be plain values" in caplog.text
    assert not list(tmp_path.iterdir())
    stop.set()
    with pytest.raises(Stopped, match="could not be saved"):
        run()


def test_tensors_without_a_word_in_the_format_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*toy\.safetensors"):
        checkpoint.tensors.write(tmp_path / "toy.safetensors", {"x": torch.eye(3, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())
