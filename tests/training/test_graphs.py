"""Training with the step replayed as a CUDA graph; what surrounds the recording is tested without a GPU as well."""

import warnings
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from toys import conv_chain

import synflow_lib as sf
from synflow_lib.benchmark import grid, run
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import Checkpoint, Recipe, Stopped, checkpoint, graphs, train

RECIPE = Recipe("mine", 3, 32, 0.05, 5e-4, "test", schedule="one-cycle", warm_up=1.0)  # 130 images: a last batch of 2
PLAIN = Speed(channels_last=True, fused=True)
GRAPHS = replace(PLAIN, graphs=True)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network() -> nn.Module:
    """Convolutions, BatchNorm and dropout in float32."""
    return nn.Sequential(conv_chain(), nn.Dropout(0.3)).float()


def state(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().cpu().clone() for tensor in model.state_dict().values()]


def test_graphs_are_refused_where_there_is_no_cuda(toy_data):
    with pytest.raises(InputError, match="CUDA graphs need a CUDA device, not 'cpu'"):
        train(network(), toy_data, RECIPE, device="cpu", speed=GRAPHS)
    (spec,) = grid(["digits"], ["vgg11"], ["synflow"], [1.0], [0], ["smoke"], width=0.06)
    with pytest.raises(InputError, match="switch graphs off"):
        run(spec, "cpu", speed=GRAPHS)


def test_batches_of_the_recorded_shape_are_replayed_and_others_done_step_by_step(monkeypatch):
    """With a recording that computes when it is replayed, into the same tensors each time, as a graph does."""
    replays, steps = [], []

    def recorded(step, model, images, labels):
        loss = step(images, labels).clone()
        gradients = [parameter.grad for parameter in model.parameters()]

        def replay():
            replays.append(len(images))
            before = [parameter.grad for parameter in model.parameters()]
            loss.copy_(step(images, labels))
            for parameter, gradient, shown in zip(model.parameters(), gradients, before, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = shown  # a graph fills its own tensors and puts none in anybody's place

        return replay, loss

    monkeypatch.setattr(graphs, "record", recorded)
    model = nn.Linear(3, 2)

    def step(images, labels):
        steps.append(len(images))
        model.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    replayed = graphs.Replayed(step, model)
    for size in (4, 4, 2, 4):
        images, labels = torch.randn(size, 3), torch.randint(2, (size,))
        loss = float(replayed(images, labels))
        found = [parameter.grad.clone() for parameter in model.parameters()]
        assert loss == float(step(images, labels))
        assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))
    assert replays == [4, 4, 4]
    assert steps == [4, *(4, 4), *(4, 4), *(2, 2), *(4, 4)]  # recorded once; then ours or the replay's, and the test's


def test_waiting_for_the_device_is_allowed_again_after_the_block(monkeypatch):
    """As PyTorch does it, which warns that this is a prototype."""
    mode = [0]

    def change(wanted):
        mode[0] = wanted
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", change)
    with pytest.raises(RuntimeError, match="waits"), graphs.no_waiting():
        assert mode == ["error"]
        raise RuntimeError("it waits")
    assert mode == [0]


@needs_cuda
@pytest.mark.parametrize("updates", [(), (("*", 4),)])
@pytest.mark.parametrize("speed", [PLAIN, replace(PLAIN, bfloat16=True)])
def test_replaying_gives_the_same_bits(speed, updates, toy_data):
    found = []
    for use in (speed, replace(speed, graphs=True)):
        model = network()
        masks = sf.prune(model, "magnitude", 4)
        history = train(model, toy_data, replace(RECIPE, updates=updates), masks, device="cuda", speed=use)
        assert all(not model.state_dict()[name].cpu()[~mask].any() for name, mask in masks.items())
        found.append((state(model), [(row["train_loss"], row["test_loss"]) for row in history.curve]))
    (plain, losses), (replayed, replayed_losses) = found
    assert losses == replayed_losses
    assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True))


@needs_cuda
def test_an_interrupted_training_goes_on_to_the_same_bits(toy_data, tmp_path):
    whole = network()
    train(whole, toy_data, RECIPE, device="cuda", speed=GRAPHS)
    model = network()
    with pytest.raises(Stopped):
        stop = {"epoch": 2}

        def on_epoch(epoch, _):
            if epoch == stop["epoch"]:
                checkpoint.STOP.set()

        try:
            saved = Checkpoint(tmp_path / "state", asdict(GRAPHS))
            train(model, toy_data, RECIPE, device="cuda", speed=GRAPHS, on_epoch=on_epoch, checkpoint=saved)
        finally:
            checkpoint.STOP.clear()
    model = network()
    train(
        model, toy_data, RECIPE, device="cuda", speed=GRAPHS, checkpoint=Checkpoint(tmp_path / "state", asdict(GRAPHS))
    )
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(model), strict=True))


@needs_cuda
def test_the_gpu_trains_as_the_cpu_does_in_float64(toy_data):
    """Without augmentation, whose draws differ; the order of the images differs as well, so one batch of all.

    What is left are the last bits of the float32 images: a GPU divides by 255 by multiplying.
    """
    recipe = replace(RECIPE, batch_size=130, augment=False)
    found = []
    for device, speed in (("cpu", Speed()), ("cuda", Speed(channels_last=True, fused=True, graphs=True))):
        model = conv_chain()
        train(model, toy_data, recipe, device=device, speed=speed)
        found.append(state(model))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@needs_cuda
def test_a_step_that_cannot_be_recorded_is_explained(toy_data):
    class Looks(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    looks = nn.Sequential(Looks(), network())
    before = state(looks)
    with pytest.raises(InputError, match=r"cannot be a CUDA graph .*switch graphs off"):
        train(looks, toy_data, RECIPE, device="cuda", speed=GRAPHS)
    assert all(torch.equal(a, b) for a, b in zip(before, state(looks), strict=True))
    train(looks, toy_data, RECIPE, device="cuda", speed=PLAIN)  # with dropout: random numbers are as good as before


@needs_cuda
def test_a_compiled_step_is_replayed_too(toy_data):
    plain, compiled = network(), network()
    train(plain, toy_data, replace(RECIPE, epochs=1), device="cuda", speed=PLAIN)
    train(compiled, toy_data, replace(RECIPE, epochs=1), device="cuda", speed=replace(GRAPHS, compile=True))
    assert all(tensor.isfinite().all() for tensor in state(compiled))
    torch.testing.assert_close(state(plain)[0], state(compiled)[0], rtol=0, atol=0.05)
