"""A training step as a CUDA graph: its kernels are recorded once and then started together.

A small network computes faster than Python can launch its kernels, one by one. Replaying a graph costs one launch. What
is recorded is everything from a batch to the masked gradients; the optimiser's step stays outside, so that its learning
rate may change.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError

Step = Callable[[Tensor, Tensor], Tensor]
WARM_UP = 3  # steps before the recording, in which libraries choose their algorithms and take their memory


class Replayed:
    """`step(images, labels)`, which puts the gradients of `model` in place and returns the loss, as a CUDA graph.

    It is recorded at the first batch and replayed for all of that shape; others are done step by step. Recording does
    steps that leave nothing behind: statistics of BatchNorm and random states are put back, and the gradients replaced.
    The loss, and the gradients, are good until the next call. `step` must set the gradients to None before it makes
    new ones, and may neither look at values on the device nor depend on anything but the batch and the model.
    """

    def __init__(self, step: Step, model: nn.Module):
        self.step, self.model = step, model
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch (images [B, C, H, W], labels [B]), a scalar on the device; InputError where the
        step cannot be recorded.
        """
        if self._replay is None:
            self._images, self._labels = images.clone(), labels.clone()
            self._replay, self._loss = record(self.step, self.model, self._images, self._labels)
            self._gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        elif images.shape != self._images.shape:
            return self.step(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._replay()
        for parameter, gradient in self._gradients:  # a step done in between made others
            parameter.grad = gradient
        return self._loss


def record(step: Step, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Callable[[], None], Tensor]:
    """Record `step` on these two tensors; return what replays it on whatever they hold then, and its loss."""
    device = images.device
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    random = torch.cuda.get_rng_state(device)
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UP - 1):
                    step(images, labels)
                with no_waiting():
                    step(images, labels)
            torch.cuda.current_stream().wait_stream(side)
            # Other threads of the process may use the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = step(images, labels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = f"{error}".partition("\n")[0]
            raise InputError(
                f"the training step of this network cannot be a CUDA graph ({reason}): switch graphs off, by "
                "speed=replace(Speed.auto(device), graphs=False) or by --without graphs"
            ) from error
        finally:
            for buffer, value in kept:
                buffer.copy_(value)
            torch.cuda.set_rng_state(random, device)
    return graph.replay, loss


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise RuntimeError where the block waits for the device, as no recording may.

    A recording that fails leaves PyTorch's random numbers on the device unusable, so it is found out before. For the
    time of the block it holds for other threads too: one step, a few milliseconds.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_waiting("error")
        yield
    finally:
        _set_waiting(before)


def _set_waiting(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # that it is a prototype
        torch.cuda.set_sync_debug_mode(mode)
