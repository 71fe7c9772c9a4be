"""A model's operations as a graph, traced without leaving anything behind in the model."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import fx, nn

from synflow_lib.errors import InputError
from synflow_lib.models.nodes import reshaped_to, reshapes, size_of

TENSORS_AND_MODULES = {"_parameters", "_buffers", "_modules"}


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

    It is called with one argument: what else it can take, as forward(x, features=False), is at its default. What keeps
    the batch and joins everything else, as x.view(x.size(0), -1), is told as torch.flatten(x, 1). Raises InputError
    where torch.fx cannot follow its code.
    """
    try:
        with attributes_kept(model):
            return _flattening(_with_one_argument(fx.symbolic_trace(model, _defaults(model) or None).graph))
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


def _defaults(model: nn.Module) -> dict[str, object]:
    others = list(inspect.signature(model.forward).parameters.values())[1:]
    plain = (type(None), bool, int, float, str)
    return {other.name: other.default for other in others if isinstance(other.default, plain)}


def _with_one_argument(graph: fx.Graph) -> fx.Graph:
    """Leave out the arguments behind the first that have a default or no use, and the checks that they are at it."""
    others = [node for node in graph.nodes if node.op == "placeholder"][1:]
    left_out = [node for node in others if node.args or not node.users]
    for node in graph.nodes:
        if node.all_input_nodes and all(one in left_out for one in node.all_input_nodes):
            left_out.append(node)
    for node in reversed(left_out):
        if not node.users:
            graph.erase_node(node)
    return graph


def _flattening(graph: fx.Graph) -> fx.Graph:
    """Write reshapes that flatten as what they are, x.view(x.size(0), 9) as x.view((-1, 9)); drop unread sizes."""
    for node in graph.nodes:
        if reshapes(node) and node.args and not node.kwargs:
            x, sizes = node.args[0], reshaped_to(node)
            of, dimension = (len(sizes) == 2 and size_of(sizes[0])) or (None, None)
            if dimension == 0 and sizes[1] == -1 and _same_batch(x, of):
                node.op, node.target, node.args = "call_function", torch.flatten, (x, 1)
            elif dimension == 0 and isinstance(sizes[1], int) and _same_batch(x, of):
                node.args = (x, (-1, sizes[1]))
    for node in reversed(graph.nodes):
        if size_of(node) and not node.users:
            graph.erase_node(node)
    return graph


def _same_batch(node: fx.Node, other: fx.Node) -> bool:
    """Whether `node` is `other` or made of it, with no reshape in between."""
    while node is not other and not reshapes(node) and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node is other
