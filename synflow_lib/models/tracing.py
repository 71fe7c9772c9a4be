"""A model's operations as a graph, traced without leaving anything behind in the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from torch import fx, nn

from synflow_lib.errors import InputError

TENSORS_AND_MODULES = {"_parameters", "_buffers", "_modules"}
# Keywords that change nothing of what leads where, or are read by the flow graph; none of them belongs to a sum.
UNDERSTOOD = {"inplace", "negative_slope", "p", "training", "memory_format", "start_dim", "end_dim", "output_size"}
UNDERSTOOD |= {"dim", "keepdim"}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode for the block, and every module of it back into its own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module back the attributes that it had, its lists and dictionaries with what they held.

    What the model's code stores in the block, as `self.features = x`, would stay otherwise: stand-ins for tensors, or
    tensors that hold a whole graph. Parameters, buffers and submodules are left alone.
    """
    before = {}
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in TENSORS_AND_MODULES}
        before[module] = own, [(value, copy(value)) for value in own.values() if type(value) in (list, dict)]
    try:
        yield
    finally:
        for module, (own, containers) in before.items():
            for name in set(vars(module)) - set(own) - TENSORS_AND_MODULES:
                del vars(module)[name]
            vars(module).update(own)
            for value, held in containers:
                value.clear()
                value.extend(held) if isinstance(value, list) else value.update(held)


def operations(model: nn.Module) -> fx.Graph:
    """The operations of `model` in the mode that it is in, in order, and nothing of it changed.

    Raises InputError where torch.fx cannot follow its code.
    """
    try:
        with attributes_kept(model):
            return fx.symbolic_trace(model).graph
    except Exception as error:  # the model's own code runs here, on stand-ins for tensors, and may raise anything
        raise InputError(f"{type(model).__name__} cannot be traced to a graph by torch.fx: {error}") from error


def trace(model: nn.Module) -> fx.Graph:
    """The `operations` of `model` in eval mode."""
    with eval_mode(model):
        return operations(model)


def hooked(model: nn.Module) -> list[str]:
    """The modules with forward hooks, which may change what they compute and are no part of a traced graph."""
    modules = model.named_modules()
    return [name or type(m).__name__ for name, m in modules if m._forward_hooks or m._forward_pre_hooks]


def reads_only(node: fx.Node, number: int = 1) -> bool:
    """Whether the first `number` arguments are all the tensors that `node` reads, with no keyword that is unknown.

    A module must have no other argument at all.
    """
    read: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), read.append)
    bare = node.op != "call_module" or (len(node.args) == number and not node.kwargs)
    return bare and len(read) == number and read == list(node.args[:number]) and set(node.kwargs) <= UNDERSTOOD
