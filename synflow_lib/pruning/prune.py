"""Algorithm 1 of the SynFlow paper, for any saliency, schedule and scope."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from synflow_lib import devices
from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning.cautions import warn_left_alone, warn_unscored
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.masks import Masks
from synflow_lib.pruning.saliency import SALIENCIES, Batches, Scores, prunable, synflow
from synflow_lib.pruning.schedule import SCHEDULES
from synflow_lib.pruning.select import count, largest
from synflow_lib.pruning.spans import Span

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
    bypass_norm: bool = False,
    seed: int = 0,
) -> Masks:
    """Return the masks that `method` leaves at the ratio `compression`; the model itself is not changed.

    Tanaka et al. 2020, Algorithm 1: n times, score the masked network and keep the best share that `schedule` gives.
    Of N weights (of each layer's, by `scope` "layer") exactly floor((1 - kept) N) are gone after each iteration; of
    equal scores the earlier goes first, so equal scores give equal masks everywhere. A removed weight never returns.

    `method` is a name in `SALIENCIES` or a function like those. `compression` is rho >= 1, at most `rho_max(model)`.
    synflow needs `input_shape`, e.g. (3, 32, 32); snip and grasp need `batches`, a sequence of (images [B, C, H, W],
    labels [B]); for another loss than the cross entropy, and labels of other kinds, give `functools.partial(snip,
    loss=...)` as the method. `iterations` defaults to 100 for synflow and 1 for the rest. `scope` "layer" removes the
    same share of every layer instead of ranking all weights together. `train_mode` scores with BatchNorm's batch
    statistics, `invert` keeps the lowest scores, `bypass_norm` lets synflow score with every BatchNorm as the identity
    (for blocks whose last scale begins at zero; prune warns of layers that score 0 throughout), `seed` is that of
    random scores.
    Raises InputError, before any work, for a value that cannot be used, and for scores that are not finite.
    """
    score = method if callable(method) else lookup(SALIENCIES, method, "pruning method")
    kept_after = lookup(SCHEDULES, schedule, "schedule")
    lookup(dict.fromkeys(SCOPES), scope, "scope")
    iterations = default_iterations(method) if iterations is None else iterations
    check_compression(compression, rho_max(model))
    check_iterations(iterations)

    check_bypass(method, bypass_norm)
    warn_left_alone(model)
    batches = held(batches)
    if compression == 1:
        iterations = 1  # nothing goes, but a method or a batch that cannot be used should still be refused
    options = {"input_shape": input_shape, "batches": batches, "train_mode": train_mode, "seed": seed}
    options |= {"bypass_norm": True} if bypass_norm else {}
    if score is synflow and input_shape is not None and not (train_mode or invert):
        network: FlowNetwork | _Scored = FlowNetwork(model, input_shape, bypass_norm)
    else:
        network = _Scored(model, score, invert, options)
    with devices.exact():
        for k in range(1, iterations + 1):
            chosen = best(network, kept_after(k, iterations, compression), scope)
            if k == 1 and score is synflow:
                warn_unscored(model, network.unscored(), bypass_norm)
            network.keep(chosen)
    return Masks(network.masks())


def default_iterations(method: str | Callable[..., Scores]) -> int:
    """How often a method scores unless told otherwise (Tanaka et al. 2020, appendix).

    100 for synflow, by name or as the function itself, with options of its own or without, and 1 for the rest.
    """
    while isinstance(method, partial):
        method = method.func
    return 100 if method in ("synflow", synflow) else 1


def held(batches: Iterable | None) -> Sequence | None:
    """The batches so that they can be gone through again and again, which a generator's cannot."""
    return batches if batches is None or isinstance(batches, Sequence) else list(batches)


def check_bypass(method: str | Callable[..., Scores], bypass_norm: bool) -> None:
    """Raise InputError for `bypass_norm` with a named method that makes nothing of it."""
    if bypass_norm and isinstance(method, str) and method != "synflow":
        raise InputError(f"bypass_norm is for synflow, which scores without data, not for {method}")


def check_compression(compression: float, highest: float) -> None:
    """Raise InputError unless 1 <= compression <= `highest`, with a grain of room for 10**log10(highest)."""
    if not isinstance(compression, Real) or not 1 <= compression <= highest * (1 + 1e-9):
        told = f"{compression:g}" if isinstance(compression, Real) else repr(compression)
        raise InputError(
            f"compression must be a ratio from 1 to rho_max = {highest:,.1f} for this model, not {told} "
            "(it is weights before / after, so 100 keeps 1 %)"
        )


def check_iterations(iterations: int) -> None:
    """Raise InputError unless `iterations` is a whole number, 1 or more."""
    if not isinstance(iterations, Integral):
        raise InputError(f"iterations must be a whole number, not {iterations!r}")
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, not {iterations}")


def best(network: "FlowNetwork | _Scored", kept: float, scope: str = "global") -> Tensor:
    """Mark the stored weights of `network` that stay when the share `kept` of all weights does, by their scores."""
    spans = network.spans
    if scope == "layer":
        scores = network.scores().masked_fill(~network.live, -torch.inf)
        parts = [largest(scores[s.start : s.stop], number_kept(s.size, kept), s.ordered)[0] for s in spans]
        return torch.cat(parts)
    number = number_kept(sum(span.size for span in spans), kept)
    if (chosen := network.sift(number)) is not None:
        return chosen
    scores = network.scores()
    chosen, lowest = largest(scores, number, network.position, network.spare)
    if not lowest > 0 and count(chosen & network.live) < number:
        # A weight that is gone ties with one that is worth nothing.
        chosen, _ = largest(scores.masked_fill(~network.live, -torch.inf), number, network.position)
    return chosen


def keep_best(scores: Scores, live: Mapping[str, Tensor], kept: float, scope: str = "global") -> dict[str, Tensor]:
    """Return which of the `live` weights stay when the share `kept` of all weights does, by `scores`.

    One step of Algorithm 1 for scores that are at hand. Raises InputError where the score of a live weight is
    infinite or not a number, or of another shape.
    """
    network = _Scored(None, lambda *_, **__: scores, False, {}, Masks(live))
    network.keep(best(network, kept, scope))
    return network.masks()


class _Scored:
    """A model whose masked weights a saliency function scores from scratch each time: what `FlowNetwork` shortens."""

    def __init__(
        self,
        model: nn.Module | None,
        score: Callable[..., Scores],
        invert: bool,
        options: Mapping[str, object],
        live: Mapping[str, Tensor] | None = None,
    ):
        self.model, self.score, self.invert, self.options = model, score, invert, options
        live = live or {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()}
        live = {name: mask.to(devices.with_float64(mask.device)) for name, mask in live.items()}
        self.shapes = {name: mask.shape for name, mask in live.items()}
        self.spans, start = [], 0
        for name, mask in live.items():
            self.spans.append(Span.whole(name, start, mask))
            start += mask.numel()
        self.live = torch.cat([mask.flatten() for mask in live.values()])
        self.spare = None

    def scores(self) -> Tensor:
        scores = self.score(self.model, self.masks(), **self.options)
        if list(scores) != list(self.shapes):
            raise InputError("a saliency must return one score tensor per prunable weight, under the model's own names")
        wrong = [name for name, score in scores.items() if score.shape != self.shapes[name]]
        if wrong:
            shapes = tuple(scores[wrong[0]].shape), tuple(self.shapes[wrong[0]])
            raise InputError(f"the scores of {wrong[0]!r} have shape {shapes[0]}, not the {shapes[1]} of the weight")
        gone, flat = ~self.live, ranked(score.to(self.live.device) for score in scores.values())
        if not bool(flat.masked_fill_(gone, 0).isfinite().all()):
            raise InputError(
                "some scores are infinite or not a number: score in float64 (model.double()), or check the data"
            )
        return (flat.neg_() if self.invert else flat).masked_fill_(gone, -torch.inf)

    def keep(self, chosen: Tensor) -> None:
        self.live = self.live & chosen

    def masks(self) -> dict[str, Tensor]:
        return {span.name: self.live[span.start : span.stop].view(span.full) for span in self.spans}

    def unscored(self) -> list[str]:
        scores = self.scores()
        return [span.name for span in self.spans if not bool(scores[span.start : span.stop].any())]

    @staticmethod
    def sift(number: int) -> None:
        return None

    @staticmethod
    def position(index: Tensor) -> Tensor:
        return index


def ranked(scores: Iterable[Tensor]) -> Tensor:
    """All scores in a row, of a type that can be ranked: a narrower one than float32 becomes that."""
    flat = torch.cat([score.detach().flatten() for score in scores])
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def number_kept(total: int, kept: float) -> int:
    """N - floor((1 - kept) N) = ceil(kept N), forgiving the last bits in which 1/rho differs from the fraction."""
    return min(total, math.ceil(total * kept * (1 - 1e-12)))
