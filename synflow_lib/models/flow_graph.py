"""Which weight leads from which unit to which: the network as the directed graph that the theorems speak of.

A unit is a neuron, or a channel of a convolution (its positions share their weights, so their saliencies add up).
A group of units is everything that carries one set of channels: the output of a layer, through BatchNorm, ReLU,
pooling and flattening, up to the layers that read it. A residual sum joins the groups that it adds, so a whole stage
of a ResNet is one group: into each of its channels write the stem or shortcut and the last convolution of every
block, and from it read the first convolutions and whatever follows the stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from synflow_lib.errors import InputError
from synflow_lib.models.nodes import (
    FLATTENS,
    MEANS,
    SUMS,
    kind,
    only_ends,
    pools_over,
    reads_only,
    reshaped_to,
    reshapes,
    size_of,
)
from synflow_lib.models.tracing import hooked, trace

BATCH_NORM = nn.modules.batchnorm._BatchNorm
CONVOLUTION = nn.modules.conv._ConvNd

# Channel by channel and linear where they act, or an activation: the units before and after are the same.
KEEPS_CHANNELS = {
    *("identity", "contiguous", "flatten", "view", "reshape", "dropout"),
    *("maxpool", "avgpool", "adaptiveavgpool", "adaptivemaxpool"),
    *("relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish"),
    *("tanh", "sigmoid", "softplus"),
}
INPUT = 0  # the first group that is met; all its units stay, whatever is cut out behind them


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: its parameters lead from group `source` to group `target`."""

    weight: str
    bias: str | None
    source: int
    target: int
    groups: int = 1  # of a grouped convolution


@dataclass(frozen=True)
class Scale:
    """One BatchNorm with scale gamma and shift beta, acting within one group."""

    weight: str
    bias: str
    group: int


@dataclass
class FlowGraph:
    """Groups of units, numbered from 0, and the layers between them; `input` and `output` are two of the groups."""

    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    input: int = 0
    output: int = 0
    reshapes: bool = False  # somewhere the code may name a size, so units cannot be cut out of the weights alone

    @property
    def hidden(self) -> list[int]:
        """The groups that are neither input nor output."""
        return [group for group in range(len(self.sizes)) if group not in (self.input, self.output)]


def per_edge(layer: Layer, weight_saliency: Tensor, graph: FlowGraph) -> Tensor:
    """Sum the saliency of one layer's weights to a matrix [units of the target, units of the source].

    Kernel positions of a convolution are added up; so are the inputs of a linear layer that are positions of one
    channel (after flattening).
    """
    out = weight_saliency.shape[0]
    matrix = weight_saliency.reshape(out, weight_saliency.shape[1], -1).sum(2)
    sources = graph.sizes[layer.source]
    if layer.groups == 1:
        return matrix.reshape(out, sources, -1).sum(2)
    full = matrix.new_zeros(out, sources)
    for index, rows in enumerate(matrix.chunk(layer.groups)):
        height, width = rows.shape
        full[index * height : (index + 1) * height, index * width : (index + 1) * width] = rows
    return full


def flow_graph(model: nn.Module, input_shape: Sequence[int], traced: fx.Graph | None = None) -> FlowGraph:
    """Turn `model` into its flow graph; `input_shape` is that of one example, without the batch.

    Works for chains and residual networks made of convolutions, linear layers, BatchNorm, activations, pooling, sums
    and a softmax at the end, as modules or in code: this library's models, torchvision's vgg, alexnet, resnet, resnext,
    regnet_x, mobilenet_v2 and mnasnet.
    Raises InputError, naming the operation, for anything else; also for forward hooks, and where units and tensors do
    not match: a linear layer along one dimension of several, a partial flattening, a sum of different shapes.
    """
    if names := hooked(model):
        raise InputError(
            f"{names[0]!r} has a forward hook or a forward of its own, which may change what it computes: remove that "
            "first"
        )
    return _Builder(dict(model.named_modules()), input_shape).build(traced or trace(model))


class _Builder:
    """Union-find over the values of the graph: values that carry the same units end in the same group."""

    def __init__(self, modules: dict[str, nn.Module], input_shape: Sequence[int]):
        self.modules, self.input_shape = modules, input_shape
        self.parent: list[int] = []
        self.size: list[int] = []
        self.label: list[str] = []
        self.value: dict[fx.Node, int] = {}
        self.rank: dict[fx.Node, int] = {}  # of the tensor, batch included
        self.layers: list[Layer] = []
        self.scales: list[Scale] = []
        self.reshapes = False

    def fresh(self, size: int, label: str) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.label.append(label)
        return len(self.parent) - 1

    def find(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def build(self, graph: fx.Graph) -> FlowGraph:
        """Walk the traced graph once and return what it says of units, layers and scales."""
        start = end = -1
        for node in graph.nodes:
            if node.op == "placeholder" and start < 0:
                start = self.value[node] = self.fresh(self.input_shape[0], "input")
                self.rank[node] = len(self.input_shape) + 1
            elif node.op == "output":
                end = self.value[self._one_tensor(node)]
            elif only_ends(node, self.modules):
                self.value[node], self.rank[node] = self.value[node.args[0]], self.rank[node.args[0]]
            elif node.op == "call_module":
                self.value[node] = self._module(node)
            elif size_of(node) is None:
                self.value[node] = self._call(node)
        return self._numbered(start, end)

    def _one_tensor(self, node: fx.Node) -> fx.Node:
        if not reads_only(node):
            raise InputError(
                f"the flow graph cannot follow {node.name!r}: it must take one tensor, as its first argument, and "
                "nothing else that changes it"
            )
        return node.args[0]

    def _module(self, node: fx.Node) -> int:
        module, name = self.modules[node.target], node.target
        before = self._one_tensor(node)
        source, self.rank[node] = self.value[before], self.rank[before]
        if isinstance(module, nn.Linear | CONVOLUTION) and not getattr(module, "transposed", False):
            self._check_reads_units(module, name, source, self.rank[node])
            target = self.fresh(module.weight.shape[0], name)
            bias = None if module.bias is None else f"{name}.bias"
            self.layers.append(Layer(f"{name}.weight", bias, source, target, getattr(module, "groups", 1)))
            return target
        if isinstance(module, BATCH_NORM) and module.affine:
            self.scales.append(Scale(f"{name}.weight", f"{name}.bias", source))
            return source
        if isinstance(module, nn.Flatten):
            self.rank[node] = self._flat_rank(module, node)
        if kind(module) in KEEPS_CHANNELS:
            self._check_pools_positions(module, node)
            return source
        raise InputError(f"the flow graph has no rule for {type(module).__name__} ({name})")

    def _call(self, node: fx.Node) -> int:
        what = kind(node.target)
        if what in SUMS and reads_only(node, 2):
            return self._sum(node)
        if what in MEANS:
            return self._mean(node)
        if what in KEEPS_CHANNELS:
            if reshapes(node) and any(map(size_of, node.all_input_nodes)):
                raise InputError(f"the flow graph cannot follow {node.name!r}: use flatten(1) where it flattens")
            before = self._one_tensor(node)
            self.rank[node] = self.rank[before]
            self._check_pools_positions(node.target, node)
            if reshapes(node):
                self.reshapes |= self.find(self.value[before]) != INPUT
                self.rank[node] = self._reshaped_rank(node)
            elif what in FLATTENS:
                self.rank[node] = self._flat_rank(None, node)
            return self.value[before]
        raise InputError(f"the flow graph has no rule for the operation {node.format_node()}")

    def _sum(self, node: fx.Node) -> int:
        one, two = node.args[:2]
        first, second = self.find(self.value[one]), self.find(self.value[two])
        if self.size[first] != self.size[second] or self.rank[one] != self.rank[two]:
            raise InputError(f"the sum {node.name!r} adds tensors of different shapes, so their units do not match")
        self.rank[node] = self.rank[one]
        self.parent[max(first, second)] = min(first, second)
        return min(first, second)

    def _mean(self, node: fx.Node) -> int:
        """A mean over positions, such as x.mean((2, 3)), pools the channels; one over anything else is refused."""
        before = self._one_tensor(node)
        rank, (dimensions, kept) = self.rank[before], means_over(node)
        if not dimensions or any(dimension % rank < 2 for dimension in dimensions):
            raise InputError(f"the mean {node.name!r} is not one over positions, as x.mean((2, 3)), so units are mixed")
        self.rank[node] = rank if kept else rank - len(dimensions)
        return self.value[before]

    def _reshaped_rank(self, node: fx.Node) -> int:
        sizes = reshaped_to(node)
        if not sizes or not all(isinstance(size, int) for size in sizes):
            raise InputError(f"the flow graph cannot follow {node.format_node()}: it must name sizes")
        return len(sizes)

    def _flat_rank(self, module: nn.Module | None, node: fx.Node) -> int:
        rank = self.rank[node.args[0]]
        start, end = (dimension % rank for dimension in flattens_from(module, node))
        if start < end and (start, end) != (1, rank - 1):
            raise InputError(f"{node.name!r} does not flatten everything but the batch, so units would be mixed")
        return rank - (end - start)

    def _check_pools_positions(self, operation: object, node: fx.Node) -> None:
        over = pools_over(operation)
        if over and self.rank[node] != over + 2:
            raise InputError(f"{node.name!r} pools over {over} dimensions, which are not just the positions of units")

    def _check_reads_units(self, module: nn.Module, name: str, source: int, rank: int) -> None:
        units, linear = self.size[self.find(source)], isinstance(module, nn.Linear)
        if linear and rank != 2:
            raise InputError(f"{name!r} reads a tensor that is not flat, so its inputs are not units: flatten first")
        read = module.in_features if linear else module.in_channels
        if read % units if linear else read != units:
            raise InputError(f"{name!r} reads {read} values, but what comes to it has {units} units")

    def _numbered(self, start: int, end: int) -> FlowGraph:
        roots = sorted({self.find(group) for group in range(len(self.parent))})
        number = {root: index for index, root in enumerate(roots)}

        def renamed(group: int) -> int:
            return number[self.find(group)]

        layers = [Layer(x.weight, x.bias, renamed(x.source), renamed(x.target), x.groups) for x in self.layers]
        scales = [Scale(x.weight, x.bias, renamed(x.group)) for x in self.scales]
        sizes, labels = [self.size[root] for root in roots], [self.label[root] for root in roots]
        return FlowGraph(sizes, labels, layers, scales, renamed(start), renamed(end), self.reshapes)


def means_over(node: fx.Node) -> tuple[Sequence[int], bool]:
    """The dimensions that a mean is taken over, none where it is over everything, and whether they stay, of size 1."""
    named = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    dimensions = named.get("dim")
    return [dimensions] if isinstance(dimensions, int) else dimensions or (), bool(named.get("keepdim"))


def flattens_from(module: nn.Module | None, node: fx.Node) -> tuple[int, int]:
    """The first and last dimension that a flattening joins: (1, -1) keeps nothing but the batch."""
    if module is not None:
        return module.start_dim, module.end_dim
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return start, node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
