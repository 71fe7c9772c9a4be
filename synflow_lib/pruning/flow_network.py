"""The absolute network that SynFlow scores again and again, kept up to date instead of made anew, and shrunk.

Measured on VGG-16, an iteration spends its time on the backward pass, on copies of weights that are gone, and on the
threshold. So all weights lie in one vector in the order in which the convolutions read them fastest; pruned weights
are set to zero in place; and a unit that has lost all its weights, incoming and outgoing, is cut out of the network
every few iterations. Cutting out such a unit changes no score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import FlowGraph, Layer, flow_graph
from synflow_lib.pruning.saliency import absolute_state, forward, prunable, scoring_mode
from synflow_lib.pruning.select import clear_all_but, count, largest_products

LOOK_AT = 0.7  # look for units to cut out when so much is left of what was left at the last look


@dataclass
class Span:
    """Where the weights of one layer lie in the vector, and which rows and columns of the layer they are."""

    name: str
    start: int
    shape: tuple[int, ...]  # as it is now
    full: tuple[int, ...]  # as it was
    rows: Tensor
    columns: Tensor
    last: bool  # stored with the channels last

    @property
    def stop(self) -> int:
        """The end in the vector."""
        return self.start + torch.Size(self.shape).numel()

    @property
    def size(self) -> int:
        """How many weights the layer had at first: what a share of it is a share of."""
        return torch.Size(self.full).numel()

    def view(self, vector: Tensor) -> Tensor:
        """The layer's part of `vector` in the shape of the weight."""
        part = vector[self.start : self.stop]
        if not self.last:
            return part.view(self.shape)
        out, into, *kernel = self.shape
        return part.view(out, *kernel, into).permute(0, len(self.shape) - 1, *range(1, len(self.shape) - 1))

    def flat(self, layer: Tensor) -> Tensor:
        """A tensor of the layer's shape as a vector in the order of storage."""
        if not self.last:
            return layer.reshape(-1)
        return layer.permute(0, *range(2, layer.ndim), 1).reshape(-1)

    def position(self, index: Tensor) -> Tensor:
        """The place of stored elements in the weight's own order."""
        if not self.last:
            return index
        into, kernel = self.shape[1], torch.Size(self.shape[2:]).numel()
        row, rest = (index - self.start) // (into * kernel), (index - self.start) % (into * kernel)
        return self.start + (row * into + rest % into) * kernel + rest // into


class FlowNetwork:
    """SynFlow's scores of a network from which more and more weights are removed.

    `scores()` and `keep(chosen)` alternate; both speak of one vector over all weights still stored, described by
    `spans`. `masks()` gives the result in the shapes of the model, which is not changed.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]):
        """Copy `model`; raises InputError where it cannot be scored with inputs of `input_shape` (C, H, W)."""
        self.model, self.input_shape = model, tuple(input_shape)
        weights = prunable(model)
        like = next(iter(weights.values()))
        self.device, self.dtype = like.device, like.dtype
        self.state = absolute_state(model, None, self.dtype)
        self.graph = _shrinkable(model, self.input_shape)
        # oneDNN's float32 kernels run twice as fast on this order; float64 has no such kernels.
        last = self.device.type == "cpu" and self.dtype == torch.float32
        self.spans = [
            Span(
                *(name, 0, tuple(weight.shape), tuple(weight.shape)),
                torch.arange(weight.shape[0], device=self.device),
                torch.arange(weight.shape[1], device=self.device),
                last and weight.ndim == 4,
            )
            for name, weight in weights.items()
        ]
        everything = {span.name: torch.ones(span.shape, dtype=torch.bool, device=self.device) for span in self.spans}
        self._store({span.name: self.state[span.name] for span in self.spans}, everything)
        self.left = len(self.live)
        self.next_look = LOOK_AT * self.left
        self.gradients: tuple[Tensor, ...] | None = None

    def scores(self) -> Tensor:
        """One score per stored weight, 0 where it is gone; in float64 from where float32 cannot hold them.

        Raises InputError where float64 cannot either.
        """
        parts = [span.flat(g) * self.theta[span.start : span.stop] for span, g in self._gradients()]
        scores = torch.cat(parts)
        if not bool(scores.max() < torch.inf):  # NaN fails this too
            self._to_double()
            return self.scores()
        return scores

    def quick(self, number: int) -> Tensor | None:
        """Mark the `number` largest scores without storing any score; None where that needs a closer look.

        Scores are made, compared and forgotten in pieces that fit the cache, which takes a third of the time of
        passing over whole vectors: on the CPU the memory is the limit.
        """
        if self.device.type != "cpu" or not 0 < number < len(self.theta):
            return None
        gradients = [span.flat(gradient).numpy() for span, gradient in self._gradients()]
        thetas = [self.theta[span.start : span.stop].numpy() for span in self.spans]
        chosen, highest = largest_products(gradients, thetas, number, self.left, self.position)
        if highest is None or not highest < np.inf:
            return None
        return torch.from_numpy(chosen) if chosen is not None else None

    def keep(self, chosen: Tensor) -> None:
        """Remove all stored weights but the `chosen`, and now and then the units that are left without any."""
        self.gradients = None
        self.live &= chosen
        clear_all_but(self.theta, self.live)
        self.left = count(self.live)
        if self.graph is not None and self.left <= self.next_look:
            self.next_look = LOOK_AT * self.left
            self._shrink(self.graph)

    def position(self, index: Tensor) -> Tensor:
        """The order in which stored elements are counted: that of the model's own weights."""
        place = index.clone()
        for span in self.spans:
            inside = (index >= span.start) & (index < span.stop)
            place[inside] = span.position(index[inside])
        return place

    def masks(self) -> dict[str, Tensor]:
        """Which weights are left, in the names and shapes of the model."""
        masks = {}
        for span in self.spans:
            masks[span.name] = torch.zeros(span.full, dtype=torch.bool, device=self.device)
            masks[span.name][span.rows[:, None], span.columns] = span.view(self.live)
        return masks

    def _store(self, weights: dict[str, Tensor], live: dict[str, Tensor]) -> None:
        start = 0
        for span in self.spans:
            span.start, span.shape = start, tuple(weights[span.name].shape)
            start = span.stop
        self.theta = torch.empty(start, dtype=self.dtype, device=self.device)
        self.live = torch.empty(start, dtype=torch.bool, device=self.device)
        for span in self.spans:
            span.view(self.theta).copy_(weights[span.name])
            span.view(self.live).copy_(live[span.name])
            self.state[span.name] = span.view(self.theta).detach().requires_grad_()

    def _gradients(self) -> list[tuple[Span, Tensor]]:
        """dR/d|theta| of every layer, computed once between two calls of `keep`."""
        if self.gradients is None:
            leaves = [self.state[span.name] for span in self.spans]
            ones = torch.ones(1, *self.input_shape, dtype=self.dtype, device=self.device)
            if self.spans[0].last and ones.ndim == 4:
                ones = ones.contiguous(memory_format=torch.channels_last)
            with scoring_mode(self.model, False), torch.enable_grad():
                flow = forward(self.model, self.state, ones).sum()
                self.gradients = torch.autograd.grad(flow, leaves, allow_unused=True, materialize_grads=True)
            flow = float(flow.detach())
            # Too small for float32 looks like no flow at all; in float64 no flow means a network that is cut in two.
            if not 0 <= flow < torch.inf or (flow == 0 and self.dtype != torch.float64):
                self._to_double()
                return self._gradients()
        return list(zip(self.spans, self.gradients, strict=True))

    def _to_double(self) -> None:
        if self.dtype == torch.float64:
            raise InputError(
                f"the synaptic flow of {type(self.model).__name__} is infinite even in float64: scale its weights down"
            )
        self.dtype = torch.float64
        weights = {span.name: span.view(self.theta).double() for span in self.spans}
        live = {span.name: span.view(self.live).clone() for span in self.spans}
        self.state = {n: t.detach().double() if t.is_floating_point() else t for n, t in self.state.items()}
        for span in self.spans:
            span.last = False
        self._store(weights, live)
        self.gradients = None

    def _shrink(self, graph: FlowGraph) -> None:
        alive = [torch.zeros(size, dtype=torch.bool, device=self.device) for size in graph.sizes]
        spans = {span.name: span for span in self.spans}
        for layer in graph.layers:
            span = spans[layer.weight]
            live = span.flat(span.view(self.live)).view(span.shape[0], -1).view(torch.uint8)
            alive[layer.target] |= live.amax(1).bool()
            inputs = live.amax(0).view(-1, span.shape[1]).amax(0) if span.last else live.amax(0)
            alive[layer.source] |= inputs.view(graph.sizes[layer.source], -1).amax(1).bool()
        for end in (graph.input, graph.output):
            alive[end][:] = True
        if not all(units.any() for units in alive):
            return  # cut in two: layers without any unit cannot be computed
        now = self.spans[-1].stop
        if sum(_area(layer, spans, alive, graph) for layer in graph.layers) < 0.85 * now:
            self._cut(graph, spans, [units.nonzero().squeeze(1) for units in alive])

    def _cut(self, graph: FlowGraph, spans: dict[str, Span], units: list[Tensor]) -> None:
        weights, live = {}, {}
        for layer in graph.layers:
            span, rows = spans[layer.weight], units[layer.target]
            positions = span.shape[1] // graph.sizes[layer.source]  # of a channel, after flattening
            offsets = torch.arange(positions, device=self.device)
            columns = (units[layer.source][:, None] * positions + offsets).flatten()
            weights[span.name] = span.view(self.theta)[rows][:, columns]
            live[span.name] = span.view(self.live)[rows][:, columns]
            span.rows, span.columns = span.rows[rows], span.columns[columns]
            if layer.bias is not None:
                self.state[layer.bias] = self.state[layer.bias][rows]
        for norm in graph.scales:
            prefix = norm.weight.removesuffix("weight")
            for name in (norm.weight, norm.bias, f"{prefix}running_mean", f"{prefix}running_var"):
                if name in self.state:
                    self.state[name] = self.state[name][units[norm.group]]
        graph.sizes = [len(left) for left in units]
        self._store(weights, live)


def _area(layer: Layer, spans: dict[str, Span], alive: list[Tensor], graph: FlowGraph) -> int:
    _, into, *kernel = spans[layer.weight].shape
    into = into * int(alive[layer.source].sum()) // max(1, graph.sizes[layer.source])
    return int(alive[layer.target].sum()) * into * torch.Size(kernel).numel()


def _shrinkable(model: nn.Module, input_shape: tuple[int, ...]) -> FlowGraph | None:
    """The flow graph where units can be cut out by slicing the state alone, None where they cannot."""
    try:
        graph = flow_graph(model, input_shape)
    except InputError:
        return None  # any module can be scored, only some can be shrunk
    known = {name for layer in graph.layers for name in (layer.weight, layer.bias)}
    known |= {name for norm in graph.scales for name in (norm.weight, norm.bias)}
    parameters = {name for name, parameter in model.named_parameters() if parameter.numel() > 1}
    weights = [layer.weight for layer in graph.layers]
    plain = all(layer.groups == 1 for layer in graph.layers) and len(set(weights)) == len(weights)
    covered = parameters <= known and set(weights) == set(prunable(model))
    return graph if plain and covered and not graph.reshapes else None
