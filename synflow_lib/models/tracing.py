"""A model's operations as a graph, traced without leaving anything behind in the model."""

import inspect
import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy

import torch
from torch import fx, nn

from synflow_lib.errors import InputError
from synflow_lib.models.nodes import AUGMENTED, in_place, reshaped_to, reshapes, size_of

CONTAINERS = (list, dict, set, deque)
TENSORS_AND_MODULES = {"_parameters", "_buffers", "_modules"}


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put `model` into eval mode (`training`: train mode) for the block, then every module back into its own mode."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module back the attributes that it had, containers with what they held.

    What the model's code stores in the block, as `self.features = x`, would stay otherwise: stand-ins for tensors, or
    tensors that hold a whole graph. What is in parameters and buffers is left alone.
    """
    before = []
    for module in model.modules():
        own = dict(vars(module))
        parts = [(part, dict(part)) for part in (module._buffers, module._modules) if isinstance(part, dict)]
        stored = {name: value for name, value in own.items() if name not in TENSORS_AND_MODULES}
        containers = [(part, copy(part)) for part in _parts(stored, set()) if type(part) in CONTAINERS]
        before.append((module, own, parts, containers))
    try:
        yield
    finally:
        for module, own, parts, containers in before:
            for name in set(vars(module)) - set(own):
                del vars(module)[name]
            vars(module).update(own)
            for value, held in parts + containers:
                value.clear()
                value.update(held) if isinstance(value, dict | set) else value.extend(held)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Write back what the buffers held, as BatchNorm's running statistics."""
    before = [(b, b.detach().clone(), b._version) for b in model.buffers() if not b.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, held, version in before:
                if buffer._version != version:
                    buffer.copy_(held)


def _parts(value: object, seen: set[int]) -> Iterator[object]:
    """`value` and what it holds, through containers within containers, each once."""
    if id(value) not in seen:
        seen.add(id(value))
        yield value
        if type(value) in (list, dict, tuple, deque):
            for part in value.values() if isinstance(value, dict) else value:
                yield from _parts(part, seen)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model`. What its code stored of a pass, as `self.features = x`, comes without its history."""
    stored = (part for module in model.modules() for part in _parts(vars(module), set()))
    made = [part for part in stored if isinstance(part, torch.Tensor) and not part.is_leaf]
    return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in made})


def operations(model: nn.Module) -> fx.Graph:
    """The operations of `model` in the mode that it is in, in order, and nothing of it changed.

    It is called with one argument: what else it can take, as forward(x, features=False), is at its default. What keeps
    the batch and joins everything else, as x.view(x.size(0), -1), is told as torch.flatten(x, 1). Raises InputError
    where torch.fx cannot follow its code.
    """
    try:
        with attributes_kept(model), buffers_kept(model):
            graph = _Tracer().trace(model, _defaults(model) or None)
            return _flattening(_in_new_places(_with_one_argument(graph), dict(model.named_modules())))
    except Exception as error:  # the model's own code runs here, on stand-ins for tensors, and may raise anything
        raise InputError(f"{type(model).__name__} cannot be traced to a graph by torch.fx: {error}") from error


def _augmented(function: Callable[..., object]) -> Callable[..., fx.Proxy]:
    def change(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return change


IN_PLACE = {f"__i{name}__": _augmented(getattr(operator, f"i{name}")) for name in AUGMENTED}
_Value = type("_Value", (fx.Proxy,), IN_PLACE)


class _Tracer(fx.Tracer):
    """Tells x += y from x = x + y, which differ where something else still holds x."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


def trace(model: nn.Module) -> fx.Graph:
    """The `operations` of `model` in eval mode."""
    with eval_mode(model):
        return operations(model)


def alike_in_train_mode(model: nn.Module, traced: fx.Graph) -> bool:
    """Whether the code of `model` does what was `traced` in train mode too, but for what dropout and BatchNorm do."""
    with eval_mode(model, training=True):
        return _told(operations(model)) == _told(traced)


def _told(graph: fx.Graph) -> list[tuple[object, ...]]:
    number = {node: index for index, node in enumerate(graph.nodes)}
    told = []
    for node in graph.nodes:
        options = {name: value for name, value in node.kwargs.items() if name != "training"}  # of dropout
        told.append((node.op, node.target, fx.node.map_arg((node.args, options), number.get)))
    return told


def hooked(model: nn.Module) -> list[str]:
    """The modules with forward hooks or a forward of their own, which a traced graph may not have in it."""
    modules = {name or type(module).__name__: module for name, module in model.named_modules()}
    return [n for n, m in modules.items() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]


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


def _in_new_places(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> fx.Graph:
    """Let what reads a value after it was changed in place, as by x += y, read what came out of that."""
    for node in graph.nodes:
        if node.args and isinstance(node.args[0], fx.Node) and in_place(node, modules):
            later = [user for user in node.args[0].users if node < user]
            for user in later:
                user.replace_input_with(node.args[0], node)
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
