"""What a network costs: weights, FLOPs, memory, and the time of an inference and of a training step.

Chapter 09, on one core: SynFlow's masks at compression 100 make of a half-width VGG-11 a network with 4.4 % of the
weights, 13 % of the FLOPs, 28 % of the memory and about a third of the time of a training step.

The networks to compare take turns, so that all of them meet the same state of the machine, and the fastest turn of
each counts: what else a computer does can only add to a time (the reasoning of Python's `timeit`).
Counted by PyTorch's own operator counter and by following every tensor that is made, FLOPs and bytes are numbers of
the program, not of the machine: what kernels need for themselves, and the allocator's spare, are not in them.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from synflow_lib import devices
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.models.tracing import copied
from synflow_lib.pruning.masks import Masks, check_masks
from synflow_lib.pruning.passes import as_input, called, example_input
from synflow_lib.pruning.state import prunable
from synflow_lib.training.optim import mask_gradients, sgd
from synflow_lib.training.recipes import Recipe
from synflow_lib.training.train import logits

# A learning rate of 0 does all the work of a step and leaves the weights, hence the arithmetic, what they are.
STEP = Recipe("one step", 1, 1, lr=0.0, weight_decay=5e-4, source="as the paper trains, but for the learning rate")


def costs(
    networks: Mapping[str, tuple[nn.Module, Mapping[str, Tensor] | None]],
    images: Tensor,
    labels: Tensor,
    *,
    repeats: int = 5,
    device: str | torch.device = "auto",
    speed: Speed | None = None,
) -> pd.DataFrame:
    """Measure each of `networks`, pairs of a module and its masks (or None), on one batch; a row each, by name.

    Columns: `weights` (those that could be pruned, zeros included) and `kept` (by the masks); `flops` and `flops_kept`
    of one example, see `flops`; `inference_bytes` and `training_bytes`, the peak of all tensors alive at once:
    parameters, batch, activations and, in training, gradients, momentum and masks; `inference_seconds` and
    `step_seconds` for the whole batch, the fastest of `repeats` turns. A step is forward, backward, the masks on the
    gradients and SGD with momentum. `images` [B, C, H, W] are normalised (or what else the networks take, tokens too),
    `labels` [B]; `speed` is `Speed.auto(device)` unless given. The modules themselves are not changed, nor are the
    random states. Raises InputError for a batch of fewer than two images (BatchNorm needs two), without networks or
    repeats, and for masks of another model.
    """
    if not networks or repeats < 1:
        raise InputError(f"costs need at least one network and one repeat, not {len(networks)} and {repeats}")
    if len(images) < 2 or len(images) != len(labels):
        raise InputError(f"costs need a batch of two or more, not {len(images)} images and {len(labels)} labels")
    for model, masks in networks.values():
        if masks is not None:
            check_masks(model, masks)
    device = devices.resolve(device)
    speed = speed or Speed.auto(device)
    for model, _ in networks.values():
        speed = speed.suited(model, device)  # the same for all, which are compared
    batch = images.to(device, memory_format=speed.memory_format(images)), labels.to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
        runners = [_Runner(model, masks, batch, speed) for model, masks in networks.values()]
        rows = [runner.counts() | runner.memory() for runner in runners]
        turns = _fastest([turn for runner in runners for turn in (runner.infer, runner.step)], repeats, device)
    for row, inference, step in zip(rows, turns[::2], turns[1::2], strict=True):
        row |= {"inference_seconds": inference, "step_seconds": step}
    return pd.DataFrame(rows, index=pd.Index(list(networks), name="network"))


def flops(model: nn.Module, input_shape: Iterable[int], masks: Mapping[str, Tensor] | None = None) -> int:
    """Floating-point operations of one forward pass of one example: 2 for each product that is added up.

    Counted are convolutions and matrix products (`torch.utils.flop_counter`), attention's too, not biases, BatchNorm
    and activations. With `masks`, those of kept weights alone: what sparse kernels without overhead would do, and none
    does. Each weight of a layer is used equally often, so a layer counts in proportion to its density. Raises
    InputError for masks of another model, and for a shape that the model cannot take.
    """
    if masks is not None:
        check_masks(model, masks)
    return _flops(model, input_shape, masks)[1]


def _flops(model: nn.Module, input_shape: Iterable[int], masks: Mapping[str, Tensor] | None) -> tuple[int, int]:
    """All of them, and those of kept weights."""
    twin = copied(model).eval()
    with torch.no_grad():
        example = example_input(twin, 1, input_shape)
    with torch.no_grad(), _plain_attention(twin) as projections, FlopCounterMode(display=False) as counter:
        called(twin, example)
    total = kept = counter.get_total_flops()
    by_module = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    for name, mask in (masks or {}).items():
        used = twin.get_parameter(name)
        owners = [path for path, module in twin.named_modules() if module._parameters.get("weight") is used]
        own = sum(by_module.get(".".join(filter(None, (type(model).__name__, path))), 0) for path in owners)
        kept -= round(own * (1 - float(mask.cpu().double().mean())))
        for weight, tokens in projections:
            if weight is used:
                kept -= sum(2 * int((m == 0).sum()) * n for m, n in zip(mask.chunk(len(tokens)), tokens, strict=True))
    return total, kept


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[list[tuple[nn.Parameter, list[int]]]]:
    """Let attention do matrix products, which are counted, and none of the fused kernels, which are not.

    Its projections are no modules that are called. So the block is given, of each call of attention and each of its
    weights, how many tokens this projects: numbers for the equal parts of the weight, three of `in_proj_weight`.
    """
    calls: list[tuple[nn.Parameter, list[int]]] = []

    def note(module: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        q, k, v = (given[name].numel() // given[name].shape[-1] for name in ("query", "key", "value"))
        parts = {"in_proj_weight": [q, k, v], "q_proj_weight": [q], "k_proj_weight": [k], "v_proj_weight": [v]}
        weights = module._parameters
        calls.extend((weights[name], tokens) for name, tokens in parts.items() if weights.get(name) is not None)
        calls.append((module.out_proj.weight, [q]))

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(note, with_kwargs=True)
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield calls
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class LiveBytes(TorchDispatchMode):
    """The bytes of all tensors made in the block that are alive `now`, and their `peak`; storage counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.follow(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors too that were there before; views and results in place add nothing."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Runner:
    """A copy of one network on the device, with the batch and what a training step needs."""

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor] | None, batch: tuple[Tensor, Tensor], speed: Speed
    ):
        images, self.labels = batch
        order = speed.memory_format(*model.parameters())
        self.model = copied(model).to(images.device, memory_format=order)
        self.images = as_input(self.model, images, next(self.model.parameters()))
        self.masks = masks and Masks(masks).to(self.images.device)
        self.speed, self.dtype = speed, next(model.parameters()).dtype

    def counts(self) -> dict[str, int]:
        weights = sum(weight.numel() for weight in prunable(self.model).values())
        flops, flops_kept = _flops(self.model, self.images.shape[1:], self.masks)
        kept = self.masks.kept if self.masks else weights
        return {"weights": weights, "kept": kept, "flops": flops, "flops_kept": flops_kept}

    def memory(self) -> dict[str, int]:
        """Peaks of an inference, then of two training steps: the second has the momentum of the first."""
        with LiveBytes() as live:
            live.follow([*self.model.parameters(), *self.model.buffers(), self.images, self.labels])
            self.infer()
            inference = live.peak
            self.optimiser = sgd(self.model, STEP, self.speed)
            self.zero_pruned = mask_gradients(self.model, self.masks)
            self.step()
            self.step()
        return {"inference_bytes": inference, "training_bytes": live.peak}

    @torch.no_grad()
    def infer(self) -> None:
        logits(self.model.eval(), self.images, self.speed, self.dtype)

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits(self.model.train(), self.images, self.speed, self.dtype), self.labels).backward()
        self.zero_pruned()
        self.optimiser.step()


def _fastest(turns: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Least seconds of each of `turns`, which are taken one after the other `repeats` times."""
    seconds: list[list[float]] = [[] for _ in turns]
    for _ in range(repeats):
        for turn, taken in zip(turns, seconds, strict=True):
            _wait(device)
            began = time.perf_counter()
            turn()
            _wait(device)
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in seconds]


def _wait(device: torch.device) -> None:
    """A GPU takes orders before it has carried them out."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
