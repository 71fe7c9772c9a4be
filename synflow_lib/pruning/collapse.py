"""Where a network breaks: layer-collapse, critical compression, and whether any signal still passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning.flow_network import path_exists
from synflow_lib.pruning.masks import Masks, check_masks
from synflow_lib.pruning.prune import prune, rho_max
from synflow_lib.pruning.saliency import (
    SALIENCIES,
    Scores,
    forward,
    masked_state,
    scoring_mode,
    synaptic_flow,
    synflow,
)
from synflow_lib.pruning.state import NORMALISATION

NORMALISES = (*NORMALISATION, nn.LocalResponseNorm)


def connected(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> bool:
    """Whether some path of kept weights leads from some input to some output.

    Weights become 0 or 1, biases 0 and normalisation the identity. Where the network is a `Program`, paths are
    followed forwards from 0 and 1 to 0 and 1. Of any other a path exists exactly where the output has a gradient with
    respect to an input of ones; residual sums, concatenations and shortcuts need no special case, and the output of
    each layer is divided by its largest value, so depth does not overflow. Raises InputError for masks of
    another model or an input shape that the model cannot take.
    """
    check_masks(model, masks)
    if (found := path_exists(model, masks, input_shape)) is not None:
        return found
    parameters = dict(model.named_parameters())
    state = {name: t.double() if t.is_floating_point() else t for name, t in masked_state(model, None).items()}
    for name in parameters:
        if name in masks:
            state[name] = masks[name].to(state[name])
        elif name.endswith("bias"):
            state[name] = torch.zeros_like(state[name])
        else:
            state[name] = state[name].abs()
    device = next(iter(parameters.values())).device
    x = torch.ones(1, *input_shape, dtype=torch.float64, device=device, requires_grad=True)
    with _path_counting(model), scoring_mode(model, False), torch.enable_grad():
        (gradient,) = torch.autograd.grad(forward(model, state, x).sum(), x, allow_unused=True, materialize_grads=True)
    return bool((gradient != 0).any())


class _path_counting:
    """Hooks that make normalisation the identity and keep the number of paths within range; gone on exit."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.handles: list = []

    def __enter__(self) -> None:
        try:
            for module in self.model.modules():
                if isinstance(module, NORMALISES):
                    self.handles.append(module.register_forward_hook(lambda _, inputs, output: inputs[0]))
                elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                    self.handles.append(module.register_forward_hook(self._scaled))
        except BaseException:  # an interrupt between two hooks
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @staticmethod
    def _scaled(_: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        largest = output.detach().abs().max()
        return output / torch.where(largest > 0, largest, 1)


def critical_compression(
    model: nn.Module,
    method: str | Callable[..., Scores],
    *,
    criterion: str = "layer",
    input_shape: Sequence[int] | None = None,
    tolerance: float = 0.01,
    iterations: int | None = None,
    **options: object,
) -> float:
    """rho_cr: the largest compression that `method` reaches without layer-collapse, found by bisection.

    `criterion` "layer" is the paper's definition (no layer without weights); "signal" asks that input and output stay
    connected, which is the one that matters in residual networks. `tolerance` is in log10 rho. Collapse is taken to
    be monotone in rho, which holds exactly for the "layer" criterion of a single-shot method (there the scores are
    computed once). The other arguments are those of `prune`. Returns the ratio
    that the surviving masks really have, never above `rho_max(model)`.
    """
    lookup(dict.fromkeys(("layer", "signal")), criterion, "criterion")
    if criterion == "signal" and input_shape is None:
        raise InputError("criterion 'signal' follows the signal from an input: pass input_shape=(3, 32, 32) or alike")
    iterations = (100 if method == "synflow" else 1) if iterations is None else iterations
    if iterations == 1:
        method = _scored_once(method, model)
    attempt = partial(prune, model, method, input_shape=input_shape, iterations=iterations, **options)

    def reached(log10: float) -> float | None:
        masks = attempt(min(10**log10, rho_max(model)))
        survives = connected(model, masks, input_shape) if criterion == "signal" else not masks.collapsed()
        return masks.compression if survives else None

    low, high, critical = 0.0, math.log10(rho_max(model)), 1.0
    if (highest := reached(high)) is not None:
        return highest
    while high - low > tolerance:
        middle = (low + high) / 2
        if (compression := reached(middle)) is not None:
            low, critical = middle, compression
        else:
            high = middle
    return critical


def layer_densities(
    model: nn.Module, methods: Sequence[str], log10_compressions: Sequence[float], **options: object
) -> pd.DataFrame:
    """Density of every layer for each method and compression (the paper's figure 2).

    Columns: pruner, log10_compression, layer, size, kept, density. The scores of single-shot methods are computed
    once. `options` are those of `prune`.
    """
    tables = []
    for method in methods:
        single = options.get("iterations", 100 if method == "synflow" else 1) == 1
        score = _scored_once(method, model) if single else method
        for log10 in log10_compressions:
            table = prune(model, score, 10**log10, **options).layers()
            tables.append(table.assign(pruner=method, log10_compression=log10))
    return pd.concat(tables, ignore_index=True)


def pruned_to_flow(
    model: nn.Module, compression: float, *, input_shape: Sequence[int], iterations: int, schedule: str = "exponential"
) -> list[float]:
    """For each iteration of SynFlow, the score that it removes over the flow R through the network before it.

    Every layer of a chain carries R, so an iteration that removes less than 1 can empty no layer (the paper's
    appendix on the iteration schedule; its figure 7 draws the largest of these ratios).
    """
    seen: list[tuple[Scores, dict[str, Tensor]]] = []

    def recorded(model: nn.Module, masks: Mapping[str, Tensor], **options: object) -> Scores:
        seen.append((synflow(model, masks, **options), dict(masks)))
        return seen[-1][0]

    final = prune(model, recorded, compression, input_shape=input_shape, iterations=iterations, schedule=schedule)
    ratios = []
    for (scores, before), after in zip(seen, [*(masks for _, masks in seen[1:]), final], strict=True):
        removed = sum(float(scores[name][before[name] & ~after[name]].sum()) for name in scores)
        flow = synaptic_flow(model, before, input_shape=input_shape)
        ratios.append(removed / flow if flow else 0.0)
    return ratios


def _scored_once(method: str | Callable[..., Scores], model: nn.Module) -> Callable[..., Scores]:
    """The same saliency, computed at the first call only."""
    score = method if callable(method) else lookup(SALIENCIES, method, "pruning method")
    known: list[Scores] = []

    def cached(model: nn.Module, masks: Masks, **options: object) -> Scores:
        if not known:
            known.append(score(model, masks, **options))
        return known[0]

    return cached
