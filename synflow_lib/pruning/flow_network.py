"""The absolute network that SynFlow scores again and again, kept up to date instead of made anew, and shrunk.

A plain implementation spends its time on equal positions of feature maps, on copies, on weights that are gone, and on
the threshold. Here the network is a `Program` of matrix products over one vector of all weights; pruned weights are
set to zero in place, when they are next read; a unit that has lost all its weights, incoming and outgoing, is cut out
of the network every few iterations, which changes no score; and the scores are compared with the threshold while they
are made, a cacheful at a time, and never stored.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from synflow_lib import devices
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import FlowGraph, flow_graph
from synflow_lib.models.tracing import trace
from synflow_lib.pruning.flow_program import Program, program
from synflow_lib.pruning.flow_steps import Affine, Product, scored
from synflow_lib.pruning.passes import example_shape, logits
from synflow_lib.pruning.select import Sample, Sieve, clear_all_but, count, unmark
from synflow_lib.pruning.spans import Span
from synflow_lib.pruning.state import absolute_state, check_positive, gradients, prunable, scoring_mode

LOOK_AT = 0.72  # look for units to cut out when so much is left of what was left at the last look
WORTH_CUTTING = 0.85  # cut when the network becomes smaller than this: a cut costs as much as an iteration
GUESSED = 0.025  # how far the border may lie from where the last ones point to
ROWS = 64  # of a layer are moved together: a layer at once would take memory that is not needed otherwise


class FlowNetwork:
    """SynFlow's scores of a network from which more and more weights are removed.

    `scores()` and `keep(chosen)` alternate; both speak of one vector over all weights still stored, described by
    `spans`. `masks()` gives the result in the shapes of the model, which is not changed. Networks that have no
    `Program` are run as they are; they keep one size.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        bypass_norm: bool = False,
        masks: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Copy `model`, with only the weights in `masks`, in float32 or float64 (`dtype`, by default the model's).

        Raises InputError where it cannot be scored with inputs of `input_shape` (C, H, W).
        """
        self.model, self.input_shape = model, example_shape(input_shape)
        _keep_freed_memory()
        weights = prunable(model)
        like = next(iter(weights.values()))
        self.device = devices.with_float64(like.device)
        self.dtype = dtype or (torch.float64 if like.dtype == torch.float64 else torch.float32)
        self.graph, self.program = _understood(
            model, self.input_shape, torch.empty(0, dtype=self.dtype, device=self.device)
        )
        state = absolute_state(model, None, self.dtype, bypass_norm, without=weights, device=self.device)
        taps = self.program.taps if self.program else {}
        self.spans, start = [], 0
        for name, weight in weights.items():
            self.spans.append(Span.whole(name, start, weight, taps.get(name, 1), self.device))
            start = self.spans[-1].stop
        self.theta = torch.empty(start, dtype=self.dtype, device=self.device)
        for span in self.spans:
            span.grid(self.theta).copy_(weights[span.name].detach().reshape(span.out, span.into, span.taps))
        self.theta.abs_()
        self.live = torch.ones(start, dtype=torch.bool, device=self.device)
        self.spare = torch.empty_like(self.live)  # for marks: fresh memory costs more than the marking
        self.values = self.theta[:0]  # made when it is asked for
        self.state: dict[str, Tensor] = {}
        self._view()
        self.state |= _small(self.program, model, state) if self.program else state
        self.left = len(self.live)
        self.next_look = LOOK_AT * self.left
        self.scored = False
        self.borders: list[float] = []  # of the last iterations, as shares of the flow
        self.summed = False  # set it, and `sift` also says what the scores that it does not mark sum up to
        self.unmarked: float | None = None
        self.stale: dict[str, Span] = {}
        self.sample: Sample | None = None
        if masks is not None:
            chosen = torch.empty_like(self.live)
            for span in self.spans:
                span.grid(chosen).copy_(masks[span.name].reshape(span.out, span.into, span.taps))
            self.keep(chosen)

    def scores(self) -> Tensor:
        """One score per stored weight, 0 where it is gone, up to one common factor; computed once between two `keep`.

        The vector is the network's own: read it, do not write to it. Raises InputError where a score is infinite or
        not a number.
        """
        if not self.scored:
            if len(self.values) != len(self.theta):
                self.values = torch.zeros_like(self.theta)
            if self.program is None:
                self._by_autograd()
            elif not self._by_program(self.program, self._write):
                self.values.zero_()  # cut in two: no path, no flow
            self.scored = True
        return self.values

    def sift(self, number: int) -> Tensor | None:
        """Mark the `number` largest scores while they are made, without storing one; None where that did not work.

        The memory is the limit of a core, so scores should not leave the cache. That takes knowing about where the
        border lies: it moves steadily from one iteration to the next, and at first a sample tells.
        """
        self.unmarked = None
        if self.program is None or self.scored or self.device.type != "cpu":
            return None
        if len(self.borders) > 1:
            guess = _continued(self.borders)
            if (chosen := self._sifted(number, guess * (1 - GUESSED), guess * (1 + GUESSED))) is not None:
                return chosen
        self.sample = Sample(len(self.theta))
        return self._sifted(number, *self.sample.bracket(number)) if self._each(self.sample) else None

    def unscored(self) -> list[str]:
        """The layers all of whose scores were zero when they were first made, before anything was removed."""
        if self.scored or self.sample is None:
            scores = self.scores()
            return [span.name for span in self.spans if not bool(span.matrix(scores).any())]
        found = np.array(self.sample.found)
        return [s.name for s in self.spans if not ((s.start <= found) & (found < s.stop)).any()]

    def _sifted(self, number: int, low: float, high: float) -> Tensor | None:
        sieve = Sieve(self.spare, low, high, self.summed)
        if not (low > 0 and self._each(sieve)) or (found := sieve.border(number)) is None:
            return None
        border, equals, surplus = found
        unmark(self.spare, equals, surplus, self.position)
        self.borders.append(border)
        self.unmarked = sieve.below if self.summed else None
        return self.spare

    def _each(self, taker: Sample | Sieve) -> bool:
        """Give all scores to `taker` in pieces; False where there is no flow."""
        for span in self.spans:
            if span.name not in self.program.taps:
                taker.add(np.zeros(span.stop - span.start, self.theta.numpy().dtype), span.start)

        def note(span: Span, gradient: Tensor, read: Tensor) -> None:
            for row, scores in scored(gradient, read, self.state[span.name]):
                taker.add(scores.view(-1).numpy(), span.start + row * scores.shape[1])

        return self._by_program(self.program, note)

    def by_name(self) -> dict[str, Tensor]:
        """The scores in the names and shapes of the model, 0 where a unit was cut out."""
        return self._in_full(self.scores())

    def keep(self, chosen: Tensor) -> None:
        """Remove all stored weights but the `chosen`, and now and then the units that are left without any."""
        torch.logical_and(self.live, chosen, out=self.spare)
        self.live, self.spare = self.spare, self.live
        self.left, self.scored = count(self.live), False
        self.stale = {span.name: span for span in self.spans}  # cleared when they are next used, and in the cache
        if self.program is not None and self.graph is not None and self.left <= self.next_look:
            self.next_look = LOOK_AT * self.left
            self._shrink(self.graph)

    def _clear(self, weight: str) -> None:
        if span := self.stale.pop(weight, None):
            clear_all_but(self.theta[span.start : span.stop], self.live[span.start : span.stop])

    def position(self, index: Tensor) -> Tensor:
        """The places, in the order of the model's own weights, of stored elements given in ascending order."""
        starts = torch.tensor([span.start for span in self.spans[1:]], device=index.device)
        parts = index.tensor_split(torch.searchsorted(index, starts).cpu())
        return torch.cat([span.position(part) for span, part in zip(self.spans, parts, strict=True)])

    def masks(self) -> dict[str, Tensor]:
        """Which weights are left, in the names and shapes of the model."""
        return self._in_full(self.live)

    def _in_full(self, vector: Tensor) -> dict[str, Tensor]:
        full = {}
        for span in self.spans:
            full[span.name] = vector.new_zeros(span.full)
            whole = full[span.name].view(span.full[0], -1, span.taps)
            whole[span.rows[:, None], span.columns] = span.grid(vector)
        return full

    def _view(self) -> None:
        for span in self.spans:
            theta = span.matrix(self.theta)
            self.state[span.name] = theta if self.program else theta.view(span.full)

    def _by_program(self, program: Program, note: Callable[[Span, Tensor, Tensor], None]) -> bool:
        """Call `note` for each layer; False where no flow is left."""
        spans = {span.name: span for span in self.spans}
        return program.scores(self.state, self._clear, lambda name, *rest: note(spans[name], *rest))

    def _write(self, span: Span, gradient: Tensor, read: Tensor) -> None:
        there = span.matrix(self.values)
        for row, scores in scored(gradient, read, self.state[span.name]):
            there[row : row + len(scores)] = scores

    def _by_autograd(self) -> None:
        for span in self.spans:
            self._clear(span.name)
        leaves = [self.state[span.name].detach().requires_grad_() for span in self.spans]
        state = {**self.state, **{span.name: leaf for span, leaf in zip(self.spans, leaves, strict=True)}}
        ones = torch.ones(1, *self.input_shape, dtype=self.dtype, device=self.device)
        with scoring_mode(self.model, state), torch.enable_grad():
            flow = logits(self.model, ones).sum()
            check_positive(self.model)
            parts = gradients(flow, leaves, self.model)
        for span, gradient in zip(self.spans, parts, strict=True):
            torch.mul(gradient.reshape(span.out, -1), span.matrix(self.theta), out=span.matrix(self.values)).abs_()
        flow = abs(float(flow.detach()))  # subtracting layers, LayerNorm and attention, can make it negative
        if holds(flow, self.dtype, len(self.theta)) and bool(self.values.max() < torch.inf):  # NaN fails this too
            return
        if self.dtype == torch.float64:
            raise InputError(
                f"the synaptic flow of {type(self.model).__name__} is {flow} even in float64: scale its weights "
                f"{'up' if flow < 1 else 'down'}"
            )
        self.dtype = torch.float64
        self.state = {n: t.double() if t.is_floating_point() else t for n, t in self.state.items()}
        self.theta, self.values = self.theta.double(), self.values.double()
        self._view()
        self._by_autograd()

    def _shrink(self, graph: FlowGraph) -> None:
        alive = [torch.zeros(size, dtype=torch.bool, device=self.device) for size in graph.sizes]
        spans = {span.name: span for span in self.spans}
        for layer in graph.layers:
            live = spans[layer.weight].matrix(self.live).view(torch.uint8)
            alive[layer.target] |= live.amax(1).bool()
            alive[layer.source] |= live.amax(0).view(-1, graph.sizes[layer.source]).amax(0).bool()
        for end in (graph.input, graph.output):
            alive[end][:] = True
        if not all(units.any() for units in alive):
            return  # cut in two: layers without any unit cannot be computed
        numbers = [int(units.sum()) for units in alive]
        area = sum(numbers[x.target] * numbers[x.source] * spans[x.weight].taps for x in graph.layers)
        if area < WORTH_CUTTING * len(self.live):
            self._cut(graph, [units.nonzero().squeeze(1) for units in alive])

    def _cut(self, graph: FlowGraph, units: list[Tensor]) -> None:
        """Move what stays to the front, in place: the vectors only become shorter."""
        layers = {layer.weight: layer for layer in graph.layers}
        start = 0
        for span in self.spans:
            layer = layers[span.name]
            rows, columns = units[layer.target], units[layer.source]
            stop = start + len(rows) * len(columns) * span.taps
            for vector in (self.theta, self.live):
                stored = span.matrix(vector).view(span.out, span.taps, span.into)
                there = vector[start:stop].view(len(rows), span.taps, len(columns))
                for part, block in zip(there.split(ROWS), rows.split(ROWS), strict=True):
                    part.copy_(stored.index_select(0, block).index_select(2, columns))
            span.start, span.out, span.into = start, len(rows), len(columns)
            span.rows, span.columns = span.rows[rows], span.columns[columns]
            start = stop
            if layer.bias in self.state:
                self.state[layer.bias] = self.state[layer.bias][rows]
        for norm in graph.scales:
            for name in {norm.weight, norm.bias} & set(self.state):
                self.state[name] = self.state[name][units[norm.group]]
        graph.sizes = [len(left) for left in units]
        self.theta, self.live, self.spare = (vector[:start] for vector in (self.theta, self.live, self.spare))
        self.values = self.values[:start]
        self._view()


def holds(flow: float, dtype: torch.dtype, weights: int) -> bool:
    """Whether `dtype` can hold the scores of that many weights, which share a flow of this size.

    Where a share is below the normal range it is rounded, to zero at last, and layers would be emptied that are not
    worth less than others. In float64 no flow at all means a network that is cut in two.
    """
    least = torch.finfo(dtype).tiny * weights / torch.finfo(dtype).eps
    return least < flow < torch.inf or (flow == 0 and dtype == torch.float64)


def _continued(borders: Sequence[float]) -> float:
    """The next on the parabola through the last three, or on the line through two.

    Borders bend: a line misses by 3 % where the weights are still many, and each miss costs two passes over them all.
    """
    if len(borders) == 2:
        return 2 * borders[-1] - borders[-2]
    return 3 * (borders[-1] - borders[-2]) + borders[-3]


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed between two layers rather than fetch it from the system again, page by page.

    It does so for blocks up to the largest that it has seen freed, if below 32 MB: so one, never touched, is freed.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def path_exists(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> bool | None:
    """Whether some path of kept weights leads from input to output; None where the model has no program."""
    like = next(iter(prunable(model).values()))
    like = torch.empty(0, device=devices.with_float64(like.device))
    _, compiled = _understood(model, example_shape(input_shape), like)
    if compiled is None:
        return None
    state = {step.factor: like.new_ones(()) for step in compiled.steps if isinstance(step, Affine)}
    for name, taps in compiled.taps.items():
        kept = masks[name].to(like.device).float()
        state[name] = kept.reshape(len(kept), -1, taps).transpose(1, 2).reshape(len(kept), -1)
    return compiled.connects(state)


def _small(program: Program, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a program needs besides the weights: biases, and BatchNorm as a factor and a shift; zeros left out."""
    small = {}
    for step in program.steps:
        if isinstance(step, Product) and step.bias in state:
            small[step.bias] = state[step.bias]
        elif isinstance(step, Affine):
            prefix = step.factor.removesuffix("weight")
            variance = state[f"{prefix}running_var"] + model.get_submodule(prefix.removesuffix(".")).eps
            small[step.shift] = state[step.shift]
            small[step.factor] = state[step.factor] / variance.sqrt()
    factors = {step.factor for step in program.steps if isinstance(step, Affine)}
    return {name: values for name, values in small.items() if name in factors or bool(values.any())}


def _understood(
    model: nn.Module, input_shape: tuple[int, ...], like: Tensor
) -> tuple[FlowGraph | None, Program | None]:
    """The flow graph, if units can be cut out by its word alone, and the program; None for what there is not."""
    try:
        traced = trace(model)
    except InputError:
        return None, None  # any module can be scored, only some can be followed
    compiled = program(model, traced, input_shape, like)
    try:
        graph = flow_graph(model, input_shape, traced)
    except InputError:
        return None, compiled
    parts = [part.weight for part in [*graph.layers, *graph.scales]]
    weights = {layer.weight for layer in graph.layers}
    once = len(set(parts)) == len(parts) and weights == set(prunable(model))
    return graph if once and compiled and weights == set(compiled.taps) else None, compiled
