"""A model's operations as a graph, traced without leaving anything behind in the model."""

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import fx, nn

from synflow_lib.errors import InputError

TENSORS_AND_MODULES = {"_parameters", "_buffers", "_modules"}
# Keywords that change nothing of what leads where, or are read by the flow graph; none of them belongs to a sum.
UNDERSTOOD = {"inplace", "negative_slope", "p", "training", "memory_format", "start_dim", "end_dim", "output_size"}
UNDERSTOOD |= {"dim", "keepdim", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad"}
RESHAPES = {"view", "reshape", torch.reshape}
PROBABLE = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid)
PROBABILITIES = {"softmax", "log_softmax", "sigmoid", "log_sigmoid"}  # what they and functions call


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
        if node.target in RESHAPES and node.args and not node.kwargs:
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


def reshaped_to(node: fx.Node) -> list[object]:
    """The sizes that a reshape is given, one by one or together."""
    together = len(node.args) == 2 and isinstance(node.args[1], Sequence)
    return list(node.args[1] if together else node.args[1:])


def _same_batch(node: fx.Node, other: fx.Node) -> bool:
    """Whether `node` is `other` or made of it, with no reshape in between."""
    while node is not other and node.target not in RESHAPES and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node is other


def size_of(node: object) -> tuple[fx.Node, int | slice | None] | None:
    """The tensor whose size `node` is, and along which dimensions (None: all); None where it is no size."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size":
        return node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return node.args[0], None
    if node.op == "call_function" and node.target is operator.getitem:
        whole = size_of(node.args[0])
        if whole and whole[1] is None and isinstance(node.args[1], int | slice):
            return whole[0], node.args[1]
    return None


def trace(model: nn.Module) -> fx.Graph:
    """The `operations` of `model` in eval mode."""
    with eval_mode(model):
        return operations(model)


def only_ends(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether `node` makes probabilities, or their logarithms, of the outputs, and nothing reads them."""
    if node.op == "call_module":
        makes = isinstance(modules[node.target], PROBABLE)
    else:
        makes = node.op.startswith("call") and getattr(node.target, "__name__", node.target) in PROBABILITIES
    return makes and bool(node.args) and all(user.op == "output" for user in node.users)


def hooked(model: nn.Module) -> list[str]:
    """The modules with forward hooks, which may change what they compute and are no part of a traced graph."""
    modules = model.named_modules()
    return [name or type(m).__name__ for name, m in modules if m._forward_hooks or m._forward_pre_hooks]


def reads_only(node: fx.Node, number: int = 1) -> bool:
    """Whether the first `number` arguments are all the tensors that `node` reads, with no keyword that is unknown.

    How many positions a tensor has may be read besides, as in avg_pool2d(x, x.size(3)). A module must have no other
    argument at all.
    """
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    read = [one for one in found if not _counts_positions(one)]
    bare = node.op != "call_module" or (len(node.args) == number and not node.kwargs)
    return bare and len(read) == number and read == list(node.args[:number]) and _understood(node.kwargs)


def _counts_positions(node: fx.Node) -> bool:
    _, dimension = size_of(node) or (None, None)
    first = dimension.start if isinstance(dimension, slice) else dimension
    return isinstance(first, int) and first > 1


def _understood(keywords: Mapping[str, object]) -> bool:
    """Whether all keywords are, or ask for nothing (indices of a maximum)."""
    return all(name in UNDERSTOOD or (name == "return_indices" and not value) for name, value in keywords.items())
