"""Which weight leads from which unit to which: the network as the directed graph that the theorems speak of.

A unit is a neuron, or a channel of a convolution (its positions share their weights, so their saliencies add up).
A group of units is everything that carries one set of channels: the output of a layer, through BatchNorm, ReLU,
pooling and flattening, up to the layers that read it. A residual sum joins the groups that it adds, so a whole stage
of a ResNet is one group: into each of its channels write the stem or shortcut and the last convolution of every
block, and from it read the first convolutions and whatever follows the stage.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from synflow_lib.errors import InputError

BATCH_NORM = nn.modules.batchnorm._BatchNorm
CONVOLUTION = nn.modules.conv._ConvNd

# Channel by channel and linear where they act, or an activation: the units before and after are the same.
KEEPS_CHANNELS = (
    *(nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.ReLU6),
)
KEEPS_CHANNELS_CALLS = {torch.relu, F.relu, torch.tanh, torch.flatten, F.dropout, F.adaptive_avg_pool2d}
KEEPS_CHANNELS_METHODS = {"relu", "flatten", "contiguous", "view", "reshape", "tanh"}
SUMS = {operator.add, operator.iadd, torch.add}


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


def trace(model: nn.Module) -> fx.Graph:
    """The operations of `model` in eval mode, in order; raises InputError where torch.fx cannot follow its code."""
    try:
        with eval_mode(model):
            return fx.symbolic_trace(model).graph
    except Exception as error:  # the model's own code runs here, on stand-ins for tensors, and may raise anything
        raise InputError(f"{type(model).__name__} cannot be traced to a graph by torch.fx: {error}") from error


def flow_graph(model: nn.Module, input_shape: Sequence[int], traced: fx.Graph | None = None) -> FlowGraph:
    """Turn `model` into its flow graph; `input_shape` is that of one example, without the batch.

    Works for chains and residual networks made of convolutions, linear layers, BatchNorm, activations, pooling and
    sums: this library's models, torchvision's vgg, alexnet and resnet.
    Raises InputError, naming the operation, for anything else.
    """
    return _Builder(dict(model.named_modules()), input_shape[0]).build(traced or trace(model))


class _Builder:
    """Union-find over the values of the graph: values that carry the same units end in the same group."""

    def __init__(self, modules: dict[str, nn.Module], channels: int):
        self.modules, self.channels = modules, channels
        self.parent: list[int] = []
        self.size: list[int] = []
        self.label: list[str] = []
        self.value: dict[fx.Node, int] = {}
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
                start = self.value[node] = self.fresh(self.channels, "input")
            elif node.op == "output":
                end = self.value[self._one_tensor(node)]
            elif node.op == "call_module":
                self.value[node] = self._module(node)
            else:
                self.value[node] = self._call(node)
        return self._numbered(start, end)

    def _one_tensor(self, node: fx.Node) -> fx.Node:
        first = node.args[0]
        if not isinstance(first, fx.Node):
            raise InputError(f"the flow graph cannot follow {node.format_node()}: it takes more than one tensor")
        return first

    def _module(self, node: fx.Node) -> int:
        module, name = self.modules[node.target], node.target
        source = self.value[self._one_tensor(node)]
        if isinstance(module, nn.Linear | CONVOLUTION) and not getattr(module, "transposed", False):
            target = self.fresh(module.weight.shape[0], name)
            bias = None if module.bias is None else f"{name}.bias"
            self.layers.append(Layer(f"{name}.weight", bias, source, target, getattr(module, "groups", 1)))
            return target
        if isinstance(module, BATCH_NORM) and module.affine:
            self.scales.append(Scale(f"{name}.weight", f"{name}.bias", source))
            return source
        if isinstance(module, KEEPS_CHANNELS):
            return source
        raise InputError(f"the flow graph has no rule for {type(module).__name__} ({name})")

    def _call(self, node: fx.Node) -> int:
        if node.target in SUMS and all(isinstance(argument, fx.Node) for argument in node.args[:2]):
            first, second = (self.find(self.value[argument]) for argument in node.args[:2])
            self.parent[max(first, second)] = min(first, second)
            return min(first, second)
        if node.target in (KEEPS_CHANNELS_METHODS if node.op == "call_method" else KEEPS_CHANNELS_CALLS):
            self.reshapes |= node.target in ("view", "reshape")
            return self.value[self._one_tensor(node)]
        raise InputError(f"the flow graph has no rule for the operation {node.format_node()}")

    def _numbered(self, start: int, end: int) -> FlowGraph:
        roots = sorted({self.find(group) for group in range(len(self.parent))})
        number = {root: index for index, root in enumerate(roots)}

        def renamed(group: int) -> int:
            return number[self.find(group)]

        layers = [Layer(x.weight, x.bias, renamed(x.source), renamed(x.target), x.groups) for x in self.layers]
        scales = [Scale(x.weight, x.bias, renamed(x.group)) for x in self.scales]
        sizes, labels = [self.size[root] for root in roots], [self.label[root] for root in roots]
        return FlowGraph(sizes, labels, layers, scales, renamed(start), renamed(end), self.reshapes)


def flattens_from(module: nn.Module | None, node: fx.Node) -> tuple[int, int]:
    """The first and last dimension that a flattening joins: (1, -1) keeps nothing but the batch."""
    if module is not None:
        return module.start_dim, module.end_dim
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return start, node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
