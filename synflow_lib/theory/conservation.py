"""The conservation laws of synaptic saliency (Tanaka et al. 2020, section 4), as tables of numbers to check.

Theorem 1, neuron-wise: for activations with phi(x) = phi'(x) x, what flows into a hidden neuron flows out of it.
Theorem 2, network-wise: over every cut between input and output the saliency sums to the same <dR/dy, y>.
A bias is an edge from a constant input of 1: it belongs to whatever flows into its neuron, and to every cut that has
its neuron on the output side.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import FlowGraph, flow_graph, per_edge


def neurons(model: nn.Module, saliency: Mapping[str, Tensor], input_shape: Sequence[int]) -> pd.DataFrame:
    """Saliency into and out of every hidden unit: one row each (Theorem 1).

    Columns: `group` (the layer that first writes to the unit; a residual stage is one group), `unit`, `into` (weights
    and biases that lead to it, BatchNorm's beta too), `scale` (BatchNorm's gamma, NaN without BatchNorm; behind one
    layer and where Theorem 1 holds it equals `into` less S(beta)), `out` (weights that read it), `difference`
    (into - out) and `error`, |into - out| relative to the larger of both. `saliency` maps parameter names to S, signed
    or not; biases and BatchNorm's parameters that it lacks count as zero. Raises InputError for a network that has no
    flow graph (see `flow_graph`), no hidden unit, a layer that is used twice, or a weight without finite saliency.
    """
    graph = flow_graph(model, input_shape)
    _used_once(graph)
    if not graph.hidden:
        raise InputError(f"{type(model).__name__} has no hidden unit, so there is none to conserve the flow")
    into, out, scale = (
        [torch.zeros(n, dtype=torch.float64) if keep else torch.full((n,), torch.nan) for n in graph.sizes]
        for keep in (True, True, False)
    )
    for layer in graph.layers:
        edges = per_edge(layer, _weight(saliency, layer.weight), graph)
        into[layer.target] += edges.sum(1) + _bias(saliency, layer.bias)
        out[layer.source] += edges.sum(0)
    for norm in graph.scales:
        into[norm.group] += _per_unit(_bias(saliency, norm.bias), graph.sizes[norm.group])
        if norm.weight in saliency:
            gamma = _per_unit(_bias(saliency, norm.weight), graph.sizes[norm.group])
            scale[norm.group] = scale[norm.group].double().nan_to_num() + gamma
    frames = [
        pd.DataFrame(
            {
                "group": graph.labels[g],
                "unit": range(graph.sizes[g]),
                "into": into[g],
                "scale": scale[g],
                "out": out[g],
            }
        )
        for g in graph.hidden
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(difference=table["into"] - table["out"], error=relative_error(table["into"], table["out"]))


def violation(units: pd.DataFrame) -> float:
    """The largest |into - out| of any unit over the largest |into| of any: one number for how far Theorem 1 fails.

    `units` is what `neurons` returned, or a part of it. This is the measure by which the authors' data give the
    numbers quoted beside figure 3. A unit through which little flows hardly counts here; the column `error` judges
    each unit by its own flow.
    """
    return float(units["difference"].abs().max() / units["into"].abs().max())


def relative_error(a: pd.Series, b: pd.Series) -> pd.Series:
    """|a - b| / max(|a|, |b|), and 0 where both are 0."""
    larger = pd.concat([a.abs(), b.abs()], axis=1).max(axis=1)
    return ((a - b).abs() / larger.where(larger > 0, 1)).astype(float)


def layer_totals(model: nn.Module, saliency: Mapping[str, Tensor], input_shape: Sequence[int]) -> pd.DataFrame:
    """Total saliency of every layer of a chain, with the biases counted right and wrong (Theorem 2).

    Columns: `layer`, `size` (weights), `weights` (sum of S over the layer's weights), `naive` (weights plus the
    layer's own biases, which is not conserved), `cut` (weights plus the biases of this layer and all after it, which
    is: each of those neurons lies behind the cut and is fed by the constant input). Beta of BatchNorm counts as a
    bias of the layer before it; that of one on the input is in front of every cut, so in none. Raises InputError for a
    network that is not a chain: there single layers are no cuts.
    """
    graph = flow_graph(model, input_shape)
    _used_once(graph)
    if any(layer.target != index + 1 or layer.source != index for index, layer in enumerate(graph.layers)):
        raise InputError(f"{type(model).__name__} is no chain of layers: use `cut_total` with a cut of the whole graph")
    weights = [float(_weight(saliency, layer.weight).sum()) for layer in graph.layers]
    biases = [float(_bias(saliency, layer.bias).sum()) for layer in graph.layers]
    for norm in (norm for norm in graph.scales if norm.group != graph.input):
        biases[norm.group - 1] += float(_bias(saliency, norm.bias).sum())
    behind = [sum(biases[index:]) for index in range(len(biases))]
    return pd.DataFrame(
        {
            "layer": [layer.weight.removesuffix(".weight") for layer in graph.layers],
            "size": [saliency[layer.weight].numel() for layer in graph.layers],
            "weights": weights,
            "naive": [w + b for w, b in zip(weights, biases, strict=True)],
            "cut": [w + b for w, b in zip(weights, behind, strict=True)],
        }
    )


def random_cut(graph: FlowGraph, generator: torch.Generator) -> list[Tensor]:
    """Draw a cut: for each group of units a bool vector, True on the input's side; inputs True, outputs False.

    Every hidden unit falls on either side by the toss of a coin, so weights may lead back across the cut.
    """
    side = [torch.rand(size, generator=generator) < 0.5 for size in graph.sizes]
    side[graph.input] = torch.ones(graph.sizes[graph.input], dtype=torch.bool)
    side[graph.output] = torch.zeros(graph.sizes[graph.output], dtype=torch.bool)
    return side


def cut_total(graph: FlowGraph, saliency: Mapping[str, Tensor], side: Sequence[Tensor]) -> float:
    """Total saliency across a cut, from the input's side to the output's (Theorem 2); equal for every cut.

    `side` is one bool vector per group, True on the input's side (`random_cut` draws one). The weights that lead
    from the output's side back to the input's count negative: they are crossed twice. The biases of the units on the
    output's side count, as edges from a constant input. Raises InputError as `neurons` does.
    """
    _used_once(graph)
    total = 0.0
    for layer in graph.layers:
        edges = per_edge(layer, _weight(saliency, layer.weight), graph)
        from_input, to_output = side[layer.source].double(), (~side[layer.target]).double()
        total += float(to_output @ edges @ from_input - (1 - to_output) @ edges @ (1 - from_input))
        total += float((_bias(saliency, layer.bias) * to_output).sum())
    for norm in graph.scales:
        beta = _per_unit(_bias(saliency, norm.bias), graph.sizes[norm.group])
        total += float((beta * (~side[norm.group]).double()).sum())
    return total


def layer_means(scores: Mapping[str, Tensor]) -> pd.DataFrame:
    """Mean score of every layer beside the inverse of its size (the paper's figure 4).

    Columns: `layer`, `inverse_size` (1 / number of weights), `average_score`. In a chain with conserved scores
    every layer has the same total, so the mean is proportional to `inverse_size`: a slope of 1 between logarithms.
    """
    rows = [
        (name.removesuffix(".weight"), 1 / score.numel(), float(score.cpu().mean(dtype=torch.float64)))
        for name, score in scores.items()
    ]
    return pd.DataFrame(rows, columns=["layer", "inverse_size", "average_score"])


def slope(table: pd.DataFrame) -> float:
    """Least-squares slope of log average_score on log inverse_size: 1 where layers have equal totals.

    Layers whose mean is not positive have no logarithm and are left out. Raises InputError where fewer than two sizes
    stay, and for a mean that is infinite or not a number.
    """
    if not np.isfinite(table["average_score"]).all():
        raise InputError("the mean score of a layer is infinite or not a number, so no line fits")
    part = table[table["average_score"] > 0]
    if part["inverse_size"].nunique() < 2:
        raise InputError("a slope needs layers of at least two sizes with a positive mean score")
    return float(np.polyfit(np.log(part["inverse_size"]), np.log(part["average_score"]), 1)[0])


def _used_once(graph: FlowGraph) -> None:
    names = [layer.weight for layer in graph.layers]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{name!r} is used more than once, and its saliency is that of all its places together: give each a "
                "copy of the layer"
            )


def _weight(saliency: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in saliency:
        raise InputError(f"there is no saliency for {name!r}: conservation needs that of every weight")
    found = saliency[name].detach().cpu().double()
    if not bool(found.isfinite().all()):
        raise InputError(f"the saliency of {name!r} is infinite or not a number: score in float64 (model.double())")
    return found


def _bias(saliency: Mapping[str, Tensor], name: str | None) -> Tensor:
    if name is None or name not in saliency:
        return torch.zeros((), dtype=torch.float64)
    return _weight(saliency, name)


def _per_unit(values: Tensor, units: int) -> Tensor:
    """One sum a unit of what BatchNorm has behind a flattening: a value for each position of each channel."""
    return values.reshape(units, -1).sum(1) if values.ndim else values
