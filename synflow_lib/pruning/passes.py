"""One pass through a model that is anyone's: what it takes, what it gives, and the sentence where it cannot."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synflow_lib.errors import InputError
from synflow_lib.models.nodes import ONWARDS, PROBABILITIES, RESHAPED, kind
from synflow_lib.models.tracing import attributes_kept, buffers_kept, eval_mode

TOKENS = (torch.int32, torch.int64)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)


def example_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """`input_shape` as a tuple; raises InputError unless it is the shape of one input without the batch."""
    try:
        sizes = tuple(operator.index(size) for size in input_shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"input_shape is that of one input without the batch, as (3, 32, 32) is, not {input_shape!r}")
    return sizes


def embeddings(model: nn.Module) -> list[str]:
    """The parameters whose rows are looked up, by whole numbers, as `named_parameters` calls them."""
    tables = {m._parameters.get("weight") for m in model.modules() if isinstance(m, EMBEDDING)}
    return [name for name, parameter in model.named_parameters() if parameter in tables]


def looks_up(model: nn.Module) -> bool:
    """Whether `model` has an embedding, which takes whole numbers."""
    return any(isinstance(module, EMBEDDING) for module in model.modules())


def as_input(model: nn.Module, x: Tensor, like: Tensor) -> Tensor:
    """`x` on the device and in the dtype of `like`; tokens (int32, int64) stay such for a model that looks them up,
    and truth values (a padding mask) for all.
    """
    if x.dtype == torch.bool:
        return x.to(like.device)
    return x.to(like.device) if x.dtype in TOKENS and looks_up(model) else x.to(like)


def example_input(model: nn.Module, number: int, input_shape: Sequence[int]) -> Tensor:
    """Zeros [number, *input_shape] such as `model` takes: in its dtype, or tokens where an embedding refuses those."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = torch.zeros(number, *example_shape(input_shape), dtype=weight.dtype, device=weight.device)
    if looks_up(model):  # only then is it worth a run
        try:
            with eval_mode(model), attributes_kept(model), buffers_kept(model):
                called(model, zeros)
        except InputError:
            return zeros.long()
    return zeros


def called(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> object:
    """What `model` gives for `x`, or several inputs; raises InputError where it cannot take that."""
    inputs = x if isinstance(x, tuple) else (x,)
    try:
        return model(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        if "out of memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if inputs[0].is_floating_point() and looks_up(model) and "indices" in reason:
            reason = (
                "its embedding looks up whole numbers (int64); what needs an input of ones, as synflow does, can be "
                "asked of the part behind it"
            )
        shapes = " and ".join(str(tuple(one.shape)) for one in inputs)
        raise InputError(f"{type(model).__name__} cannot take an input of shape {shapes}: {reason}") from error


def forward(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`called`, but raises InputError where the model gives something else than one tensor, too."""
    output = called(model, x)
    if not isinstance(output, Tensor):
        raise InputError(f"{type(model).__name__} must return one tensor to be scored, not {type(output).__name__}")
    return output


def logits(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`forward`, but for a softmax, log-softmax or sigmoid that the network ends with: what comes in front of it.

    What is done to the probabilities after that, as to squeeze them or take their logarithm, is the end as well.

    Cross entropies are of that, and the sum of probabilities, a constant or saturated, says nothing of paths.
    """
    with _Probabilities() as made:
        output = forward(model, x)
    return next((before for result, before in made.of if result is output), output)


class _Probabilities(TorchFunctionMode):
    """Notes what probabilities are made of while it lasts."""

    def __init__(self):
        super().__init__()
        self.of: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        what = kind(func)
        if what in PROBABILITIES:
            self.of.append((result, args[0] if args else kwargs["input"]))
        elif what in ONWARDS and args:
            for before in [logits for made, logits in self.of if made is args[0]]:
                # What is scored has the form of what is returned.
                self.of.append((result, func(before, *args[1:], **(kwargs or {})) if what in RESHAPED else before))
        return result
