"""What a single operation of a traced graph is: its one name, what it reads, the sizes that it names."""

import operator
import re
from collections.abc import Mapping, Sequence

from torch import fx, nn

# Keywords that change nothing of what leads where, or are read by the flow graph; none of them belongs to a sum.
UNDERSTOOD = {"inplace", "negative_slope", "p", "training", "memory_format", "start_dim", "end_dim", "output_size"}
UNDERSTOOD |= {"dim", "keepdim", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad"}
SUMS, MEANS, FLATTENS, RESHAPES = {"add", "iadd"}, {"mean"}, {"flatten"}, {"view", "reshape"}
AUGMENTED = {"add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"}
LIBRARIES = {"torch", "torchvision", "_operator", "builtins", "math"}
PROBABILITIES = {"softmax", "logsoftmax", "sigmoid", "logsigmoid"}
RESHAPED = {"squeeze", "unsqueeze", "contiguous", *FLATTENS, *RESHAPES}  # what may be done to them before they end
ONWARDS = {"log", "clamp", "clip", "float", "double", "to", *RESHAPED}


def kind(operation: object) -> str:
    """The one name of an operation, as module (MaxPool2d), function (max_pool2d) or method (relu_): maxpool, relu.

    What others have written is told by its module too, whatever it is called.
    """
    return re.sub(r"(\dd)?_?$", "", _name(operation)).lower().replace("_", "")


def pools_over(operation: object) -> int | None:
    """The number of dimensions, 1 to 3, that a pooling goes over; None for what is no pooling."""
    over = re.search(r"pool_?(\d)d$", _name(operation).lower())
    return over and int(over[1])


def _name(operation: object) -> str:
    if isinstance(operation, str):
        return operation
    named = type(operation) if isinstance(operation, nn.Module) else operation
    name, home = getattr(named, "__name__", str(named)), getattr(named, "__module__", None) or "torch"
    return name if home.partition(".")[0] in LIBRARIES else f"{home}.{name}"


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The `kind` of what `node` computes with; "" for what computes nothing, as the input and the output."""
    if not node.op.startswith("call"):
        return ""
    return kind(modules[node.target] if node.op == "call_module" else node.target)


def in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether `node` may change its first argument instead of making something new of it."""
    if node.op == "call_module":
        return bool(getattr(modules[node.target], "inplace", False))
    if not node.op.startswith("call"):
        return False
    name = _name(node.target)
    augmented = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i") and name[1:] in AUGMENTED
    return augmented or name.endswith("_") != name.endswith("__") or node.kwargs.get("inplace") is True


def only_ends(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether `node` makes probabilities of the outputs, or goes on from them to others, and nothing else reads them.

    So with torch.sigmoid(x).squeeze(1) and with the logarithm of a softmax, clamped or not.
    """
    made = node
    while made.args and isinstance(made.args[0], fx.Node) and kind_of(made, modules) in ONWARDS:
        made = made.args[0]
    return kind_of(made, modules) in PROBABILITIES and bool(made.args) and _leads_to_output(made, modules)


def _leads_to_output(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    def goes_on(user: fx.Node) -> bool:
        return kind_of(user, modules) in ONWARDS and user.all_input_nodes == [node] and _leads_to_output(user, modules)

    return all(user.op == "output" or goes_on(user) for user in node.users)


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


def reshapes(node: fx.Node) -> bool:
    """Whether `node` is a view or reshape in the code."""
    return node.op in ("call_function", "call_method") and kind(node.target) in RESHAPES


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


def reshaped_to(node: fx.Node) -> list[object]:
    """The sizes that a reshape is given, one by one or together."""
    together = len(node.args) == 2 and isinstance(node.args[1], Sequence)
    return list(node.args[1] if together else node.args[1:])
