"""SynFlow's network as a few matrix products: positions that must hold the same value are computed once.

The absolute network sees an input of ones, so its feature maps are constant but for what zero padding does near the
border: after two 3x3 convolutions a 32x32 map holds 25 different columns of channels, not 1,024. A value is therefore
a matrix [kinds of position, channels]. Two positions are of one kind where everything they read is of one kind, which
is decided once, from the shapes alone. A convolution gathers its taps and is one product with its weight stored as
[out, taps x in]; the backward pass adds the gradients of all positions of a kind by itself, since it is the adjoint.
So the scores are those of the network run as it is, up to the rounding of sums, and as shares of the flow R.

Weights, biases, scales and shifts enter with their absolute value, so an activation that is the identity on
nonnegative numbers is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import BATCH_NORM, flattens_from, means_over
from synflow_lib.models.nodes import FLATTENS, MEANS, SUMS, kind, kind_of, only_ends, reads_only, reshaped_to, reshapes
from synflow_lib.models.tracing import hooked
from synflow_lib.pruning.flow_steps import (
    Affine,
    Average,
    Maximum,
    Product,
    Ranges,
    Scaled,
    State,
    Step,
    Sum,
    Taps,
    bounded,
    waits,
)

# The identity on nonnegative numbers (dropout in eval mode).
LEFT_OUT = {"identity", "contiguous", "dropout", "relu", "leakyrelu", "prelu", "elu"}
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
POOLS = {"maxpool": nn.MaxPool2d, "avgpool": nn.AvgPool2d, "adaptiveavgpool": nn.AdaptiveAvgPool2d}
BEFORE_FLAGS = 5  # arguments of max_pool2d that come in the order of MaxPool2d
CHECKED = 20  # a factor of 2**this on gradients is looked at before it is applied
LARGEST_AVERAGE = 1 << 26  # numbers in the one-hot maps that tell how an average pools


@dataclass
class Program:
    """The steps from an input of ones to R, the sum of all outputs; value 0 is the input."""

    channels: int
    steps: list[Step]
    counts: Tensor  # how many output positions are of each kind
    taps: dict[str, int]  # of each weight
    magnitudes: list[int | None] = field(default_factory=list)  # of the values of the last pass

    def connects(self, state: State) -> bool:
        """Whether some path of weights that are not zero leads from the input to the output.

        Each value becomes 0 or 1 after every step, so no path is too weak and no number of paths too large.
        """
        values = [self._ones(Ranges())]
        for step in self.steps:
            value, _ = step.forward([values[index] for index in step.inputs], state)
            values.append(value.of((value.values > 0).to(value.values)))
        return bool(values[-1].values.any())

    def scores(self, state: State, ready: Callable[[str], None], note: Callable[[str, Tensor, Tensor], None]) -> bool:
        """Call `note`(weight, g, x) for each layer: g' x * weight are its scores S, divided by R; False where R is 0.

        g is [rows, out], x is [rows, taps x in]. `ready`(weight) is called before a weight is first used. `state` holds
        the weights as [out, taps x in], biases, and the factors and shifts of BatchNorm under the names of its weight
        and bias; what is all zero may be missing. Off the CPU a layer may be noted twice; the second time counts.
        """
        if self.magnitudes and waits(self.counts.device):
            ranges = Ranges(self.magnitudes)
            self._pass(state, ready, note, ranges)
            if ranges.held():
                self.magnitudes = ranges.magnitudes
                return True
        ranges = Ranges()
        flows = self._pass(state, ready, note, ranges)
        self.magnitudes = ranges.magnitudes
        return flows

    def _ones(self, ranges: Ranges) -> Scaled:
        """The input."""
        return Scaled(self.counts.new_ones(1, self.channels), 0, ranges)

    def _pass(
        self,
        state: State,
        ready: Callable[[str], None],
        note: Callable[[str, Tensor, Tensor], None],
        ranges: Ranges,
    ) -> bool:
        """What `scores` does, kept in range by `ranges`; known ones say afterwards whether it came out well."""
        values, notes = [self._ones(ranges)], []
        for step in self.steps:
            if isinstance(step, Product):
                ready(step.weight)
            value, kept = step.forward([values[index] for index in step.inputs], state)
            values.append(value)
            notes.append(kept)
        last = values[-1]
        counts = self.counts[:, None]
        flow = (last.values * counts).sum()
        flows = ranges.positive(flow, "some weights are infinite or not a number: there is no flow to score")
        gradients: list[Scaled | None] = [None] * len(values)
        share = counts / flow if flows else counts
        gradients[-1] = Scaled(share.expand_as(last.values), -last.exponent, ranges)

        largest = torch.finfo(last.values.dtype).max / 1e9

        def noted(weight: str, gradient: Scaled, read: Scaled) -> None:
            """Give both factors of a layer's scores to `note`, once what is beside them is multiplied in."""
            power = bounded(gradient.exponent + read.exponent, read.values.dtype)
            if power > CHECKED:
                wrong = f"the scores of {weight!r} are out of range: score in float64 (model.double())"
                if not ranges.positive(largest - gradient.values.max() * 2.0**power, wrong):
                    raise InputError(wrong)
            note(weight, gradient.values * 2.0**power if power else gradient.values, read.values)

        for step, kept in zip(reversed(self.steps), reversed(notes), strict=True):
            gradient = gradients.pop()
            for index, part in zip(step.inputs, step.backward(gradient, kept, state, noted), strict=True):
                gradients[index] = part.plus(gradients[index])
        return flows


def program(model: nn.Module, graph: fx.Graph, input_shape: Sequence[int], like: Tensor) -> Program | None:
    """Turn the traced `graph` of `model` into a program; None where it holds something that has no rule here.

    It computes on the device and in the dtype of `like`.
    """
    if hooked(model):
        return None
    try:
        return _Compiler(model, input_shape, like).compile(graph)
    except _NoRule:
        return None


class _NoRule(Exception):
    """The network does something that the program cannot express, or a shape does not fit: it is run as it is."""


class _Map(NamedTuple):
    """A value while compiling: its number, the kind of each position [H, W], channels, flattened or not."""

    number: int
    kinds: Tensor
    channels: int
    flat: bool

    @property
    def rows(self) -> int:
        return int(self.kinds.max()) + 1


class _Compiler:
    def __init__(self, model: nn.Module, input_shape: Sequence[int], like: Tensor):
        self.modules, self.like = dict(model.named_modules()), like
        # What is shared has only its first name here, and what is computed from other parameters none.
        self.parameters = {name for name, _ in model.named_parameters()}
        self.tensors = self.parameters | {name for name, _ in model.named_buffers()}
        self.input_shape = tuple(input_shape)
        self.steps: list[Step] = []
        self.weights: dict[str, int] = {}

    def compile(self, graph: fx.Graph) -> Program:
        values: dict[fx.Node, _Map] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                if values:
                    raise _NoRule
                channels, *size = self.input_shape if len(self.input_shape) in (1, 3) else (0,)
                if not channels:
                    raise _NoRule
                kinds = torch.zeros(size or (1, 1), dtype=torch.long)
                values[node] = _Map(0, kinds, channels, not size)
                continue
            if only_ends(node, self.modules):
                values[node] = values[node.args[0]]
                continue
            number = 2 if kind_of(node, self.modules) in SUMS else 1
            if not reads_only(node, number):
                raise _NoRule
            before = [values[x] for x in node.args[:number]]
            if node.op == "output":
                (last,) = before
                return self._program(last)
            elif node.op == "call_module":
                (source,) = before
                values[node] = self._module(self.modules[node.target], node.target, source)
            else:
                values[node] = self._call(node, before)
        raise _NoRule

    def _program(self, last: _Map) -> Program:
        """The steps that lead to `last`: what is computed besides, and read by nothing, has no flow to score."""
        needed = {last.number}
        for number in range(len(self.steps), 0, -1):
            if number in needed:
                needed.update(self.steps[number - 1].inputs)
        numbers = {old: new for new, old in enumerate([0, *sorted(needed - {0})])}
        steps = [self.steps[number - 1] for number in numbers if number]
        steps = [replace(step, inputs=tuple(numbers[number] for number in step.inputs)) for step in steps]
        kept = {step.weight for step in steps if isinstance(step, Product)}
        taps = {weight: taps for weight, taps in self.weights.items() if weight in kept}
        return Program(self.input_shape[0], steps, torch.bincount(last.kinds.flatten()).to(self.like), taps)

    def _add(self, step: Step, kinds: Tensor, channels: int, flat: bool) -> _Map:
        self.steps.append(step)
        return _Map(len(self.steps), kinds, channels, flat)

    def _module(self, module: nn.Module, name: str, x: _Map) -> _Map:
        if kind(module) in LEFT_OUT:
            return x
        if isinstance(module, nn.Flatten) and flattens_from(module, None) == (1, -1):
            return x._replace(flat=True)
        if isinstance(module, nn.Linear) and x.flat and module.in_features == x.channels * x.kinds.numel():
            return self._product(module, name, x, x.kinds.reshape(1, -1), torch.zeros(1, 1, dtype=torch.long))
        if x.flat:
            if isinstance(module, BATCH_NORM) and x.kinds.numel() == 1:
                return self._norm(module, name, x)
            raise _NoRule
        if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            if module.in_channels != x.channels:
                raise _NoRule
            return self._product(module, name, x, *_windows(x, module))
        if isinstance(module, BATCH_NORM):
            return self._norm(module, name, x)
        return self._pool(module, x)

    def _pool(self, module: nn.Module, x: _Map) -> _Map:
        if type(module) is nn.MaxPool2d and not module.ceil_mode and not module.return_indices:
            index, kinds = _windows(x, module)
            return self._add(Maximum((x.number,), self._taps(index, x.rows)), kinds, x.channels, False)
        if isinstance(module, AVERAGES):
            return self._average(module, x)
        raise _NoRule

    def _call(self, node: fx.Node, before: list[_Map]) -> _Map:
        what = kind(node.target)
        if what in SUMS:
            one, two = before
            if one.kinds.shape != two.kinds.shape or one.channels != two.channels or one.flat != two.flat:
                raise _NoRule
            pairs, kinds = _kinds(torch.stack([one.kinds.flatten(), two.kinds.flatten()], 1))
            taps = tuple(self._taps(pairs[:, [i]], x.rows) for i, x in enumerate(before))
            return self._add(Sum((one.number, two.number), taps), kinds.view_as(one.kinds), one.channels, one.flat)
        if what in LEFT_OUT:
            return before[0]
        if what in FLATTENS and flattens_from(None, node) == (1, -1):
            return before[0]._replace(flat=True)
        if reshapes(node) and reshaped_to(node) == [-1, before[0].channels * before[0].kinds.numel()]:
            return before[0]._replace(flat=True)
        plain = not before[0].flat and len(node.all_input_nodes) == 1  # and no size of another value
        if what in POOLS and plain and len(node.args) <= BEFORE_FLAGS:
            return self._pool(POOLS[what](*node.args[1:], **node.kwargs), before[0])
        if what in MEANS and plain:
            dimensions, kept = means_over(node)
            if sorted(dimension % 4 for dimension in dimensions) == [2, 3]:
                return self._average(nn.AdaptiveAvgPool2d(1), before[0])._replace(flat=not kept)
        raise _NoRule

    def _taps(self, index: Tensor, rows: int) -> Taps:
        return Taps(index.to(self.like.device), rows)

    def _product(self, module: nn.Module, name: str, x: _Map, index: Tensor, kinds: Tensor) -> _Map:
        weight = f"{name}.weight"
        if weight in self.weights:
            raise _NoRule  # used twice
        _check_plain(module, name, ("weight", "bias"), self.parameters)
        self.weights[weight] = index.shape[1]
        step = Product((x.number,), weight, f"{name}.bias", self._taps(index, x.rows))
        return self._add(step, kinds, module.weight.shape[0], isinstance(module, nn.Linear))

    def _norm(self, module: nn.Module, name: str, x: _Map) -> _Map:
        if module.running_var is None or not module.affine or module.num_features != x.channels:
            raise _NoRule
        _check_plain(module, name, ("weight", "bias", "running_var"), self.tensors)
        return self._add(Affine((x.number,), f"{name}.weight", f"{name}.bias"), x.kinds, x.channels, x.flat)

    def _average(self, module: nn.Module, x: _Map) -> _Map:
        if x.rows * x.kinds.numel() > LARGEST_AVERAGE:
            raise _NoRule
        maps = F.one_hot(x.kinds, x.rows).permute(2, 0, 1)[:, None].double()
        try:
            pooled = module(maps)
        except RuntimeError as error:  # a window larger than the map
            raise _NoRule from error
        matrix, kinds = pooled.flatten(1).t().unique(dim=0, return_inverse=True)
        step = Average((x.number,), matrix.to(self.like))
        return self._add(step, kinds.view(pooled.shape[2:]), x.channels, False)


def _check_plain(module: nn.Module, name: str, attributes: Sequence[str], known: set[str]) -> None:
    """What the module reads must be in a state under its own name: not shared, not computed from other parameters."""
    if any(getattr(module, x) is not None and (f"{name}.{x}" if name else x) not in known for x in attributes):
        raise _NoRule


def _windows(x: _Map, module: nn.Module) -> tuple[Tensor, Tensor]:
    """The kinds that the windows of a convolution or pooling read, one row per kind of window, and the new map."""
    if isinstance(module.padding, str):
        raise _NoRule
    kernel, dilation, padding, stride = (
        (v, v) if isinstance(v, int) else tuple(v) * (1 if len(v) == 2 else 2)
        for v in (module.kernel_size, module.dilation, module.padding, module.stride)
    )
    shape = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(x.kinds.shape, kernel, dilation, padding, stride, strict=True)
    ]
    if min(shape) < 1:
        raise _NoRule
    # Counted from 1, so that the zeros of the padding stand out.
    columns = F.unfold((x.kinds + 1).double()[None, None], kernel, dilation, padding, stride)[0].long() - 1
    index, kinds = _kinds(columns.t())
    index[index < 0] = x.rows
    return index, kinds.view(shape)


def _kinds(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of a matrix of integers from -1, and which of them each row is."""
    kinds, base = torch.zeros(len(rows), dtype=torch.long), int(rows.max()) + 2
    for column in rows.t():
        kinds = torch.unique(kinds * base + column + 1, return_inverse=True)[1]
    first = torch.empty(int(kinds.max()) + 1, dtype=torch.long)
    first[kinds] = torch.arange(len(rows))
    return rows[first], kinds
