"""Where a network breaks: layer-collapse, critical compression, and whether any signal still passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from synflow_lib import devices
from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning.densities import scored_once
from synflow_lib.pruning.flow_network import FlowNetwork, path_exists
from synflow_lib.pruning.masks import Masks, check_masks
from synflow_lib.pruning.passes import embeddings, forward, looks_up
from synflow_lib.pruning.prune import (
    best,
    check_bypass,
    check_compression,
    check_iterations,
    default_iterations,
    held,
    prune,
    rho_max,
)
from synflow_lib.pruning.saliency import Scores, synaptic_flow, synflow
from synflow_lib.pruning.schedule import SCHEDULES
from synflow_lib.pruning.select import PIECE
from synflow_lib.pruning.state import NORMALISATION, batch_norms, gradients, masked_state, scoring_mode

NORMALISES = (*NORMALISATION, nn.LocalResponseNorm)
CRITERIA = ("layer", "signal")


def connected(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> bool:
    """Whether some path of kept weights leads from some input to some output.

    Weights become 0 or 1, biases 0 and normalisation the identity. Where the network is a `Program`, paths are
    followed forwards from 0 and 1 to 0 and 1. Of any other a path is taken to exist where the output, with positive
    random numbers for the weights that are kept, has a gradient with respect to a positive input; residual sums,
    concatenations and shortcuts need no special case, and the output of each layer is divided by its largest value,
    so depth does not overflow. Of a network that reads tokens a path begins at an embedding. Raises InputError for
    masks of another model, an input shape that the model cannot take, and a network that no path can be found through
    even with all of its weights.
    """
    masks = Masks(masks)
    check_masks(model, masks)
    if (found := path_exists(model, masks, input_shape)) is not None:
        return found
    if _leads_through(model, masks, input_shape):
        return True
    if masks.density == 1 or not _leads_through(model, {n: torch.ones_like(m) for n, m in masks.items()}, input_shape):
        raise InputError(
            f"no path leads through {type(model).__name__} even with all of its weights, as far as gradients tell: "
            "something in it passes none where its input is positive"
        )
    return False


def _leads_through(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> bool:
    """Whether the output has a gradient with respect to the input, in the network that `connected` describes."""
    generator = torch.Generator().manual_seed(0)

    def positive(*shape: int) -> Tensor:
        """Numbers from 0.5 to 1.5: equal ones would cancel wherever a mean is subtracted."""
        return 0.5 + torch.rand(*shape, generator=generator, dtype=torch.float64).to(device)

    parameters = dict(model.named_parameters())
    device = devices.with_float64(next(iter(parameters.values())).device)
    state = masked_state(model, None, torch.float64)
    for name in parameters:
        if name in masks:
            state[name] = masks[name].to(state[name]) * positive(*masks[name].shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros_like(state[name])
        else:
            state[name] = state[name].abs()
    x = positive(1, *input_shape).requires_grad_()
    begins = [x]
    with _path_counting(model), scoring_mode(model, state), torch.enable_grad():
        if _reads_tokens(model, x):  # two of them, for one may be the padding, which has no gradient
            x = (torch.arange(x.numel(), device=device) % 2).reshape(x.shape)
            begins = [state[name].requires_grad_() for name in embeddings(model)]
        output = forward(model, x)
        if not output.requires_grad:
            return False
        parts = gradients((output * positive(*output.shape)).sum(), begins, model)
    return any(bool((part != 0).any()) for part in parts)


def _reads_tokens(model: nn.Module, numbers: Tensor) -> bool:
    """Whether the model looks its input up: it refuses numbers, or what it makes of them has no gradient."""
    if not looks_up(model):
        return False
    try:
        return not forward(model, numbers).requires_grad
    except InputError:
        return True


class _path_counting:
    """Hooks that make normalisation the identity and keep the number of paths within range; gone on exit."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.handles: list = []

    def __enter__(self) -> None:
        frozen = {module for _, module in batch_norms(self.model)}  # of other libraries
        try:
            for module in self.model.modules():
                if isinstance(module, NORMALISES) or module in frozen:
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
    computed once): iterated, a method that reaches rho_max may lose a layer a little below (ERRATA 17). The other
    arguments are those of `prune`. Returns the ratio that the surviving masks really have, never above
    `rho_max(model)`.
    """
    options |= {"input_shape": input_shape, "iterations": iterations}
    return critical_compressions(model, method, criteria=(criterion,), tolerance=tolerance, **options)[criterion]


def critical_compressions(
    model: nn.Module,
    method: str | Callable[..., Scores],
    *,
    input_shape: Sequence[int] | None = None,
    criteria: Sequence[str] = CRITERIA,
    tolerance: float = 0.01,
    iterations: int | None = None,
    **options: object,
) -> dict[str, float]:
    """`critical_compression` by each of `criteria`; what one search has pruned, the other does not prune again."""
    for criterion in criteria:
        lookup(dict.fromkeys(CRITERIA), criterion, "criterion")
    if "signal" in criteria and input_shape is None:
        raise InputError("criterion 'signal' follows the signal from an input: pass input_shape=(3, 32, 32) or alike")
    check_bypass(method, options.get("bypass_norm", False))
    options["batches"] = held(options.get("batches"))
    if not tolerance > 0:
        raise InputError(f"tolerance must be a positive distance in log10 rho such as 0.01, not {tolerance}")
    iterations = default_iterations(method) if iterations is None else iterations
    if iterations == 1 or method not in ("synflow", synflow):  # iterated, that one has a quicker way of its own
        method = scored_once(method, model)
    attempt = partial(prune, model, method, input_shape=input_shape, iterations=iterations, **options)

    @cache
    def survived(log10: float) -> dict[str, float | None]:
        masks = attempt(min(10**log10, rho_max(model)))
        whole = {"layer": not masks.collapsed()}
        if "signal" in criteria:
            whole["signal"] = connected(model, masks, input_shape)
        return {criterion: masks.compression if held else None for criterion, held in whole.items()}

    top = math.log10(rho_max(model))
    return {criterion: _bisected(lambda x, c=criterion: survived(x)[c], top, tolerance) for criterion in criteria}


def _bisected(reached: Callable[[float], float | None], top: float, tolerance: float) -> float:
    """The last compression that `reached` returns on the way to where it returns None, between 0 and `top`."""
    low, high, critical = 0.0, top, 1.0
    if (highest := reached(high)) is not None:
        return highest
    while high - low > tolerance:
        middle = (low + high) / 2
        if (compression := reached(middle)) is not None:
            low, critical = middle, compression
        else:
            high = middle
    return critical


def pruned_to_flow(
    model: nn.Module, compression: float, *, input_shape: Sequence[int], iterations: int, schedule: str = "exponential"
) -> list[float]:
    """For each iteration of SynFlow, the score that it removes over the flow R through the network before it.

    Every layer of a chain carries R, so an iteration that removes less than 1 can empty no layer (the paper's
    appendix on the iteration schedule; its figure 7 draws the largest of these ratios). The arguments are those of
    `prune`, and so are the errors. All ratios are 0 at `compression` 1, and once the network is cut in two.
    """
    check_compression(compression, rho_max(model))
    kept_after = lookup(SCHEDULES, schedule, "schedule")
    check_iterations(iterations)
    if compression == 1:
        return [0.0] * iterations
    network, ratios = FlowNetwork(model, input_shape), []
    network.summed = True
    for k in range(1, iterations + 1):
        # The scores of a program are shares of R already.
        flow = 1.0 if network.program else synaptic_flow(model, network.masks(), input_shape=input_shape)
        chosen = best(network, kept_after(k, iterations, compression))
        removed = network.unmarked
        if removed is None:
            removed = _removed(network.scores(), network.live, chosen)
        ratios.append(removed / flow if flow else 0.0)
        network.keep(chosen)
    return ratios


def _removed(scores: Tensor, live: Tensor, chosen: Tensor) -> float:
    """The sum of the scores of what is live and not chosen, a cacheful at a time: whole copies would take longer."""
    pieces = zip(*(vector.split(PIECE) for vector in (scores, live, chosen)), strict=True)
    return sum(float(values.dot((one > two).to(values))) for values, one, two in pieces)
