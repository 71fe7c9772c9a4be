"""From masks to a smaller network: remove the channels and neurons that can carry no signal, exactly.

SynFlow's masks of VGG-16 for CIFAR-10 (n = 100) fit into a dense network of about 36 %, 4.5 % and 0.43 % of the weights
at compression 10, 100 and 1,000; random masks of the same size leave nearly every channel in use.

A unit of the flow graph goes where removing it changes neither the function, with BatchNorm in train or in eval mode,
nor the training of what is left:

(a) no kept weight that matters reads it, so that it influences nothing; or
(b) whatever reads it reads an exact zero, now and after any training step: no kept weight brings it a signal, its
    biases, betas and running means are zero, and the zero lies in front of a ReLU, which lets no gradient through
    where its input is 0, so they stay zero.

Everything else is kept. A channel without inputs but with a bias, a beta or a running mean other than zero carries a
constant; the beta of a dead branch in a residual sum is trained by the sum's gradient; in front of an activation other
than ReLU the gradient reaches the bias at 0. Pruned weights inside the smaller tensors remain, as zeros.

torch-pruning's dependency graph would remove a given set of channels just as consistently, but which channels may go
without changing anything, constants and residual sums included, is the whole question here, and it does not answer it;
the flow graph already knows who reads and writes each channel, so a dependency would add nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import FlowGraph, Layer, Scale, flow_graph, per_edge
from synflow_lib.models.nodes import PROBABILITIES, SUMS, kind_of, size_of
from synflow_lib.models.tracing import alike_in_train_mode, copied, trace
from synflow_lib.pruning.masks import Masks, apply_masks, check_masks
from synflow_lib.pruning.passes import example_shape

RELU = {"relu", "relu6"}  # at 0 both have the derivative 0
NOT_ZERO_AT_ZERO = {*PROBABILITIES, "softplus"}
Index = tuple[Tensor, ...]  # the places kept along the first dimensions of a tensor


@dataclass(frozen=True, eq=False)
class Compacted:
    """A smaller network that computes what the masked one does, and the way back.

    `model` is an ordinary module, `masks` the masks of its weights (train it with them, as with any masks), `kept`
    the units that stay, by the name of the first layer that writes them.
    """

    model: nn.Module
    masks: Masks
    kept: dict[str, Tensor]
    weights_before: int
    _places: dict[str, Index] = field(repr=False)
    _template: dict[str, Tensor] = field(repr=False)

    @property
    def share(self) -> float:
        """The weights of the smaller dense network, over those of the full one."""
        return self.masks.total / self.weights_before

    def expand(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the full-size state dict with the values of `state` in their places (default: those of `model`).

        `state` is a state dict of the smaller network, trained further or not. Pruned weights are zero. What was
        removed has the value that it had when the network was compacted: masked training would only have shrunk it
        by weight decay (and moved statistics that nothing reads), and the function is the same. Raises InputError
        for the state of another network.
        """
        state = self.model.state_dict() if state is None else state
        own = self.model.state_dict()
        for name in [*own, *state]:
            if name not in own or name not in state or own[name].shape != state[name].shape:
                raise InputError(f"this is no state of the compact network: {name!r} is absent or has another shape")
        full = {}
        for name, before in self._template.items():
            value = state[name].detach().to(before)
            full[name] = _put(before, value, self._places[name]) if name in self._places else value.clone()
        return full


def compact(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> Compacted:
    """Return a smaller network that is exactly the masked `model`, in train and in eval mode and when trained.

    `input_shape` is that of one example. The model itself is not changed; the smaller one is a copy of it with
    smaller Conv, Linear and BatchNorm layers. Works for what `flow_graph` follows: chains and residual networks.
    Training follows the masked network's path for any optimiser that starts afresh and leaves a parameter of zero
    without gradient where it is (SGD with momentum and weight decay, Adam), up to the rounding of sums. (Where a
    channel is constant over the batch but not zero, from the beta of a dead channel read by a 1x1 convolution, or in
    tiny images at the end of a deep network, BatchNorm in train mode makes its value out of rounding, and a ReLU goes
    by its sign: there training the masked network itself depends on the last bit, and the two part.) Dropout draws
    other random numbers, so with it in train mode the two agree in distribution only. A block none of whose channels
    carries anything keeps one channel that does nothing (or one group), because a layer needs one.

    Of a grouped convolution (depthwise ones too) whole groups go: one stays with all its inputs and outputs where any
    of them does.

    Raises InputError for masks of another model or that cut the network in two, for a model that cannot be followed
    and for weights used twice.
    """
    check_masks(model, masks)
    masks = Masks(masks)
    traced = trace(model)
    graph = check_compactable(model, input_shape, traced)
    steps = _steps(model, graph, masks, traced)
    if not bool(_reached(steps)[-1].any()):
        raise InputError("the masks cut the network in two: nothing to compact")
    kept = [units.nonzero().flatten() for units in _needed(graph, steps)]
    places = _places(model, graph, kept)

    small = copied(model)
    small_masks = Masks({name: _take(mask, places.get(name, ())) for name, mask in masks.items()})
    for name, index in places.items():
        _shrink(small, name, index)
    apply_masks(small, small_masks)
    template = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, mask in masks.items():
        template[name].masked_fill_(~mask.to(template[name].device), 0)
    labels = {graph.labels[group]: kept[group] for group in range(len(kept)) if group != graph.input}
    return Compacted(small, small_masks, labels, masks.total, places, template)


def check_compactable(model: nn.Module, input_shape: Sequence[int], traced: fx.Graph | None = None) -> FlowGraph:
    """Return the flow graph of `model`, whose `traced` operations may be at hand.

    Raises InputError where units cannot be cut out of single parameters.
    """
    traced = traced or trace(model)
    graph = flow_graph(model, example_shape(input_shape), traced)
    parameters = dict(model.named_parameters())
    used = [part.weight for part in [*graph.layers, *graph.scales]]
    shared = len(parameters) < sum(1 for _ in model.named_parameters(remove_duplicate=False))
    if shared or len(set(used)) < len(used):
        raise InputError(f"{type(model).__name__} uses the same weights twice: its units cannot be removed one by one")
    used += [part.bias for part in [*graph.layers, *graph.scales] if part.bias is not None]
    strange = [name for name in used if name not in parameters]
    if strange:
        raise InputError(
            f"{strange[0]!r} is no plain parameter of {type(model).__name__}: remove parametrizations first"
        )
    if not alike_in_train_mode(model, traced):
        raise InputError(
            f"the code of {type(model).__name__} asks for self.training and does something else in train mode, so no "
            "smaller network would follow it in both modes"
        )
    if graph.reshapes:
        raise InputError(f"{type(model).__name__} calls view or reshape with sizes of its own: use flatten(1) instead")
    return graph


@dataclass(frozen=True)
class _Step:
    """One operation of the network, on values that are numbered like the steps that make them."""

    kind: str  # "input", "layer", "scale", "relu", "zero to zero", "other", "sum" or "output"
    inputs: tuple[int, ...]
    units: int
    part: Layer | Scale | None = None
    edges: Tensor | None = None  # bool [units of the output, units of the input]: kept weights
    still: Tensor | None = None  # bool [units]: a zero that comes in goes out as a zero, in train and in eval mode
    trained: bool = False  # there is a shift that a gradient would move


def _steps(model: nn.Module, graph: FlowGraph, masks: Mapping[str, Tensor], traced: fx.Graph) -> list[_Step]:
    """The network as a list of steps; raises InputError for a PReLU with a slope for every channel."""
    parts = {part.weight.rpartition(".")[0]: part for part in [*graph.layers, *graph.scales]}
    modules, state = dict(model.named_modules()), model.state_dict()
    steps: list[_Step] = []
    number: dict[fx.Node, int] = {}
    for node in traced.nodes:
        if size_of(node):
            continue
        read = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        inputs = tuple(number[argument] for argument in read if argument in number)
        before = [steps[index] for index in inputs]
        module = modules[node.target] if node.op == "call_module" else None
        number[node] = len(steps)
        if node.op == "placeholder":
            steps.append(_Step("input", (), graph.sizes[graph.input]))
        elif module is not None and node.target in parts:
            part = parts[node.target]
            if isinstance(part, Layer):
                steps.append(_layer_step(part, inputs, graph, masks[part.weight], state))
            else:
                steps.append(_scale_step(part, inputs, before[0].units, state))
        else:
            steps.append(_Step(_kind(node, modules), inputs, before[0].units))
    return steps


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    what = kind_of(node, modules)
    if node.op == "output" or what in SUMS:
        return node.op if what not in SUMS else "sum"
    if what == "prelu" and modules[node.target].num_parameters > 1:
        raise InputError(f"{node.target!r} has a slope for every channel, which cannot be compacted")
    return "relu" if what in RELU else "other" if what in NOT_ZERO_AT_ZERO else "zero to zero"


def _layer_step(
    layer: Layer, inputs: tuple[int, ...], graph: FlowGraph, mask: Tensor, state: Mapping[str, Tensor]
) -> _Step:
    weight = state[layer.weight]
    still = torch.ones(len(weight), dtype=torch.bool) if layer.bias is None else (state[layer.bias] == 0).cpu()
    edges = per_edge(layer, mask.cpu(), graph) > 0
    return _Step("layer", inputs, len(weight), layer, edges, still, layer.bias is not None)


def _scale_step(scale: Scale, inputs: tuple[int, ...], units: int, state: Mapping[str, Tensor]) -> _Step:
    """A batch of zeros has mean zero, so train mode gives beta; eval mode subtracts the running mean first."""
    still = state[scale.bias] == 0
    mean = f"{scale.bias.removesuffix('bias')}running_mean"
    if mean in state:
        still = still & (state[mean] == 0)
    still = still.reshape(units, -1).all(1).cpu()
    return _Step("scale", inputs, units, scale, still=still, trained=True)


def _reached(steps: list[_Step]) -> list[Tensor]:
    """For each value, the units that a path of kept weights leads to from the input."""
    values: list[Tensor] = []
    for step in steps:
        if step.kind == "input":
            values.append(torch.ones(step.units, dtype=torch.bool))
        elif step.kind == "layer":
            values.append((step.edges & values[step.inputs[0]]).any(1))
        else:
            values.append(torch.stack([values[index] for index in step.inputs]).any(0))
    return values


def _always_zero(steps: list[_Step]) -> list[Tensor]:
    """For each value, the units that are exactly zero in train and in eval mode and remain so in training.

    The largest set that is consistent: if all its values are zero now, the gradients leave the shifts that make them
    so alone, hence they are zero after the next step too. Starting from "no gradient", each round adds the gradients
    that the zeros of the round before let through.
    """
    gradients = [torch.zeros(step.units, dtype=torch.bool) for step in steps]
    while True:
        zero = _zeros(steps, gradients)
        through = _gradients(steps, zero)
        if all(torch.equal(old, new) for old, new in zip(gradients, through, strict=True)):
            return zero
        gradients = through


def _zeros(steps: list[_Step], gradients: list[Tensor]) -> list[Tensor]:
    values: list[Tensor] = []
    for step, gradient in zip(steps, gradients, strict=True):
        if step.kind in ("input", "other"):
            values.append(torch.zeros(step.units, dtype=torch.bool))
            continue
        before = [values[index] for index in step.inputs]
        zero = ~(step.edges & ~before[0]).any(1) if step.kind == "layer" else torch.stack(before).all(0)
        if step.still is not None:
            zero = zero & step.still
        values.append(zero & ~gradient if step.trained else zero)
    return values


def _gradients(steps: list[_Step], zero: list[Tensor]) -> list[Tensor]:
    """For each value, the units whose gradient may be other than zero; a ReLU passes none where its input is 0."""
    values = [torch.zeros(step.units, dtype=torch.bool) for step in steps]
    values[-1] = torch.ones_like(values[-1])
    for step, gradient in zip(reversed(steps), reversed(values), strict=True):
        for index in step.inputs:
            passed = (step.edges & gradient[:, None]).any(0) if step.kind == "layer" else gradient
            values[index] |= passed & ~zero[index] if step.kind == "relu" else passed
    return values


def _needed(graph: FlowGraph, steps: list[_Step]) -> list[Tensor]:
    """For each group, the units that must stay: those from which something other than zero leads to the output.

    Blocks read from and write to the same stream. One pass backwards would do for the outputs; passes until nothing
    changes also keep what a later block writes to a channel that only earlier ones read, so that every value in a
    channel that stays, and every statistic of it, is that of the masked network.
    """
    zero = _always_zero(steps)
    layers = [(step.part, step.edges & ~zero[step.inputs[0]]) for step in steps if step.kind == "layer"]
    needed = [torch.zeros(size, dtype=torch.bool) for size in graph.sizes]
    needed[graph.input][:] = needed[graph.output][:] = True
    changed = True
    while changed:
        changed = False
        for layer, edges in reversed(layers):
            changed |= _add(needed[layer.source], edges[needed[layer.target]].any(0))
            changed |= _complete(layer, needed)
    for units in needed:
        if not bool(units.any()):
            units[0] = True
    while any(_complete(layer, needed) for layer, _ in layers):
        pass  # what such a unit is grouped with does nothing either
    return needed


def _complete(layer: Layer, needed: list[Tensor]) -> bool:
    """Add to `needed` what is missing of the groups that `layer` needs in part; whether that changed anything."""
    if layer.groups == 1:
        return False
    ends = needed[layer.source], needed[layer.target]
    whole = torch.stack([units.view(layer.groups, -1).any(1) for units in ends]).any(0)
    added = [_add(units, whole.repeat_interleave(len(units) // layer.groups)) for units in ends]
    return any(added)


def _add(units: Tensor, more: Tensor) -> bool:
    """Add `more` to `units`, both bool; whether that changed anything."""
    new = bool((more & ~units).any())
    units |= more
    return new


def _places(model: nn.Module, graph: FlowGraph, kept: list[Tensor]) -> dict[str, Index]:
    """Which rows and columns of every parameter and buffer belong to units that are kept."""
    state, places = model.state_dict(), {}

    def spread(group: int, length: int) -> Tensor:
        """Several columns in a row belong to one channel after flattening: its positions."""
        positions = length // graph.sizes[group]
        return (kept[group][:, None] * positions + torch.arange(positions)).flatten()

    for layer in graph.layers:
        columns = (spread(layer.source, state[layer.weight].shape[1]),) if layer.groups == 1 else ()
        places[layer.weight] = (kept[layer.target], *columns)
        if layer.bias is not None:
            places[layer.bias] = (kept[layer.target],)
    for scale in graph.scales:
        prefix = scale.weight.removesuffix("weight")
        names = [f"{prefix}{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        index = (spread(scale.group, len(state[scale.weight])),)
        places |= {name: index for name in names if name in state}
    return places


def _take(tensor: Tensor, index: Index) -> Tensor:
    for dimension, places in enumerate(index):
        tensor = tensor.index_select(dimension, places.to(tensor.device))
    return tensor


def _put(full: Tensor, values: Tensor, index: Index) -> Tensor:
    rows, *columns = (places.to(full.device) for places in index)
    full = full.clone()
    full[(rows[:, None], *columns) if columns else rows] = values
    return full


def _shrink(model: nn.Module, name: str, index: Index) -> None:
    """Replace one parameter or buffer of `model` by its kept part and keep the module's account of its sizes true."""
    prefix, _, attribute = name.rpartition(".")
    module = model.get_submodule(prefix)
    tensor = getattr(module, attribute)
    part = _take(tensor.detach(), index)
    parameter = isinstance(tensor, nn.Parameter)
    setattr(module, attribute, nn.Parameter(part, requires_grad=tensor.requires_grad) if parameter else part)
    if attribute == "weight":
        lengths = list(part.shape)
        if getattr(module, "groups", 1) > 1:
            module.groups = module.groups * len(part) // len(tensor)
            lengths[1] *= module.groups
        sizes = {1: ("num_features",), 2: ("out_features", "in_features")}
        for size, length in zip(sizes.get(part.dim(), ("out_channels", "in_channels")), lengths, strict=False):
            setattr(module, size, length)
