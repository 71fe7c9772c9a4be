"""Algorithm 1 of the SynFlow paper, for any saliency, schedule and scope."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning.masks import Masks
from synflow_lib.pruning.saliency import SALIENCIES, Batches, Scores, prunable
from synflow_lib.pruning.schedule import SCHEDULES

SCOPES = ("global", "layer")


def rho_max(model: nn.Module) -> float:
    """The largest compression ratio without layer-collapse: N/L, all but one weight per layer removed (section 3)."""
    weights = prunable(model)
    return sum(weight.numel() for weight in weights.values()) / len(weights)


def prune(
    model: nn.Module,
    method: str | Callable[..., Scores],
    compression: float,
    *,
    input_shape: Sequence[int] | None = None,
    batches: Batches | None = None,
    iterations: int | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    train_mode: bool = False,
    invert: bool = False,
    seed: int = 0,
) -> Masks:
    """Return the masks that `method` leaves at the ratio `compression`; the model itself is not changed.

    Tanaka et al. 2020, Algorithm 1: n times, score the masked network and keep the best share that `schedule` gives.
    Of N weights exactly floor((1 - kept) N) are gone after each iteration; of equal scores the earlier goes first,
    so equal scores give equal masks everywhere. A removed weight never returns.

    `method` is a name in `SALIENCIES` or a function like those. `compression` is rho >= 1, at most `rho_max(model)`.
    synflow needs `input_shape`, e.g. (3, 32, 32); snip and grasp need `batches`, a sequence of (images [B, C, H, W],
    labels [B]). `iterations` defaults to 100 for synflow and 1 for the rest. `scope` "layer" removes the same share
    of every layer instead of ranking all weights together. `train_mode` scores with BatchNorm's batch statistics,
    `invert` keeps the lowest scores, `seed` is that of random scores. Raises InputError, before any work, for a value
    that cannot be used, and for scores that are not finite.
    """
    score = method if callable(method) else lookup(SALIENCIES, method, "pruning method")
    kept_after = lookup(SCHEDULES, schedule, "schedule")
    lookup(dict.fromkeys(SCOPES), scope, "scope")
    iterations = (100 if method == "synflow" else 1) if iterations is None else iterations
    check_compression(compression, rho_max(model))
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, not {iterations}")

    if compression == 1:
        iterations = 1  # nothing goes, but a method or a batch that cannot be used should still be refused
    live = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    for k in range(1, iterations + 1):
        scores = score(
            model, live, input_shape=input_shape, batches=batches, train_mode=train_mode, seed=seed
        )  # fmt: skip
        if invert:
            scores = {name: -value for name, value in scores.items()}
        live = keep_best(scores, live, kept_after(k, iterations, compression), scope)
    return Masks(live)


def check_compression(compression: float, highest: float) -> None:
    """Raise InputError unless 1 <= compression <= `highest`, with a grain of room for 10**log10(highest)."""
    if not 1 <= compression <= highest * (1 + 1e-9):
        raise InputError(
            f"compression must be a ratio from 1 to rho_max = {highest:,.1f} for this model, not {compression:g} "
            "(it is weights before / after, so 100 keeps 1 %)"
        )


def keep_best(scores: Scores, live: Mapping[str, Tensor], kept: float, scope: str = "global") -> dict[str, Tensor]:
    """Return which of the `live` weights stay when the share `kept` of all weights does, by `scores`.

    Raises InputError where the score of a live weight is infinite or not a number.
    """
    if list(scores) != list(live):
        raise InputError("a saliency must return one score tensor per prunable weight, under the model's own names")
    groups = [list(live)] if scope == "global" else [[name] for name in live]
    result: dict[str, Tensor] = {}
    for group in groups:
        ranked = torch.cat([scores[name][live[name]] for name in group])
        if not bool(ranked.isfinite().all()):
            raise InputError(
                "some scores are infinite or not a number: score in float64 (model.double()) or check the data"
            )
        survives = _largest(ranked, number_kept(sum(live[name].numel() for name in group), kept))
        for name, part in zip(group, survives.split([int(live[name].sum()) for name in group]), strict=True):
            result[name] = torch.zeros_like(live[name]).masked_scatter_(live[name], part)
    return result


def number_kept(total: int, kept: float) -> int:
    """N - floor((1 - kept) N) = ceil(kept N), forgiving the last bits in which 1/rho differs from the fraction."""
    return min(total, math.ceil(total * kept * (1 - 1e-12)))


def _largest(ranked: Tensor, number: int) -> Tensor:
    """Mark the `number` largest of a vector; of equal values on the border the later ones."""
    removed = len(ranked) - number
    if removed <= 0:
        return torch.ones_like(ranked, dtype=torch.bool)
    border = ranked.kthvalue(removed).values
    survives = ranked > border
    ties = (ranked == border).nonzero().squeeze(1)
    survives[ties[len(ties) - (number - int(survives.sum())) :]] = True
    return survives
