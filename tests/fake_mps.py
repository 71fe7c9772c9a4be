"""A device without float64, as Apple's MPS is, played on the CPU: what would not run there raises here, too.

Tensors of the class `OnMPS` say that they lie on "mps". They cannot be float64, and no operation takes one of them
together with a tensor of the CPU, but for what copies from one to the other and for scalars.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps", 0)
COPIES = {"copy_", "to", "set_", "__set__", "type_as"}


class OnMPS(Tensor):
    """A tensor that says it lies on "mps"."""

    device = property(lambda self: DEVICE)

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy = self.detach().clone()
        memo[id(self)] = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
        return memo[id(self)]


class FakeMPS(TorchFunctionMode):
    """The rules of that device, for the block."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func is torch.autograd.grad:
            leaves = list(args[1])
            found = func(*args, **kwargs)
            return tuple(_put(g) if isinstance(x, OnMPS) else g for g, x in zip(found, leaves, strict=True))
        target = _target(name, args, kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name not in COPIES and any(isinstance(t, OnMPS) for t in tensors):
            strangers = [t for t in tensors if not isinstance(t, OnMPS) and t.ndim]
            if strangers:
                raise RuntimeError(f"Expected all tensors of {name} to be on the same device")
        args, kwargs = tree_map(_named_cpu, (args, kwargs))
        result = func(*args, **kwargs)
        if target is not None:
            return _put(result) if target.type == "mps" else _taken(result)
        return tree_map(_checked, result)


def _target(name: str, args: tuple, kwargs: dict) -> torch.device | None:
    """The device that an operation is told to put its result on; None: where its arguments are."""
    if name == "cpu":
        return torch.device("cpu")
    if (device := kwargs.get("device")) is not None:
        return torch.device(device)
    if name in ("to", "type_as"):
        for argument in args[1:]:
            if isinstance(argument, torch.device | str):
                return torch.device(argument)
            if isinstance(argument, Tensor):
                return DEVICE if isinstance(argument, OnMPS) else torch.device("cpu")
    return None


def _named_cpu(value: object) -> object:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "mps" else value


def _checked(value: object) -> object:
    if isinstance(value, OnMPS) and value.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return value


def _put(tensor: Tensor) -> Tensor:
    return _checked(tensor if isinstance(tensor, OnMPS) else tensor.as_subclass(OnMPS))


def _taken(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if isinstance(tensor, OnMPS) else tensor


@contextmanager
def on_mps(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with its parameters and buffers on that device, and its rules, for the block."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_put(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _put(buffer)
    with FakeMPS():
        yield model
