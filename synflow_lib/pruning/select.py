"""The largest so many of a long vector, exactly: what a global threshold is for, and where the time went.

Sorting or `kthvalue` over all scores took most of the time of published implementations. Here a small sample brackets
the threshold, and only the few per cent of values within the bracket are sorted. A bracket that misses, which the
counts tell, is widened to everything, so the result does not depend on the sample.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 16  # values that bracket the threshold: enough that about 1 % of all lie within
PIECE = 1 << 16  # elements that are worked on together: a few hundred KB, which stay in the cache


def largest(values: Tensor, number: int, position: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mark the `number` largest of a vector without NaN; of equal values at the border the later ones.

    "Later" is by index, or by `position(indices)` where the vector is stored in another order than it is counted.
    """
    if number <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if number >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    border, chosen = _above_border(values, number)
    surplus = count(chosen) - number
    if surplus:
        ties = (values == border).nonzero().squeeze(1)
        if position is not None:
            ties = ties[position(ties).argsort()]
        chosen[ties[:surplus]] = False
    return chosen


def count(mask: Tensor) -> int:
    """How many are True; numpy counts on the CPU, fifteen times faster than torch does."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def clear_all_but(values: Tensor, kept: Tensor) -> None:
    """Set `values` to zero in place where `kept` is False; they must be finite. Numpy again, for the same reason."""
    if values.device.type == "cpu":
        np.multiply(values.numpy(), kept.numpy(), out=values.numpy())
    else:
        values.mul_(kept)


def _above_border(values: Tensor, number: int) -> tuple[float, Tensor]:
    """The `number`-th largest value, and which values are at least as large."""
    if values.device.type == "cpu":
        border = _by_bracket(values.numpy(), number)
        return border, torch.from_numpy(values.numpy() >= border)
    border = float(values.kthvalue(len(values) - number + 1).values)
    return border, values >= border


def largest_products(
    left: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
    number: int,
    positive: int,
    position: Callable[[Tensor], Tensor],
) -> tuple[np.ndarray | None, float | None]:
    """Mark the `number` largest elements of left * right, both lists of vectors end to end; also the largest of all.

    As `largest`, but the products are made piece by piece and not kept; none is negative, and about `positive` of
    them are not zero. None for the marks where the border is not
    above zero or not within the bracket: then the caller must look at all products.
    """
    total = sum(len(vector) for vector in left)
    step = max(1, total // SAMPLE)
    sample = np.concatenate([a[::step] * b[::step] for a, b in zip(left, right, strict=True)])
    low, high = _bracket(sample[sample > 0], min(1.0, number / max(1, positive)))
    if not low > 0:
        return None, None
    chosen, scratch = np.empty(total, dtype=bool), np.empty(PIECE, dtype=left[0].dtype)
    start, tops, places, values = 0, [], [], []
    for a, b in zip(left, right, strict=True):
        for begin in range(0, len(a), PIECE):
            piece = np.multiply(a[begin : begin + PIECE], b[begin : begin + PIECE], out=scratch[: len(a) - begin])
            mark = np.greater_equal(piece, low, out=chosen[start : start + len(piece)])
            within = np.flatnonzero(mark & (piece <= high))
            tops.append(piece.max())
            places.append(within + start)
            values.append(piece[within])
            start += len(piece)
    places, values = np.concatenate(places), np.concatenate(values)
    surplus = np.count_nonzero(chosen) - number
    highest = float(np.max(tops))
    if not 0 <= surplus < len(values):
        return None, highest
    border = np.partition(values, surplus)[surplus]
    below = values < border
    chosen[places[below]] = False
    ties = torch.from_numpy(places[values == border])
    chosen[ties[position(ties).argsort()][: surplus - np.count_nonzero(below)].numpy()] = False
    return chosen, highest


def _bracket(sample: np.ndarray, share: float) -> tuple[float, float]:
    """Two values between which the border of the largest `share` of all lies, as far as a sample can tell."""
    if not len(sample):
        return -np.inf, np.inf
    sample.sort()
    rank = (1 - share) * len(sample)
    slack = 5 * math.sqrt(rank * (1 - rank / len(sample))) + 5  # five standard deviations
    low = sample[int(rank - slack)] if rank > slack else -np.inf
    high = sample[int(rank + slack)] if rank + slack < len(sample) else np.inf
    return low, high


def _by_bracket(values: np.ndarray, number: int) -> float:
    low, high = _bracket(values[:: max(1, len(values) // SAMPLE)].copy(), number / len(values))
    not_above = values <= high
    above = len(values) - np.count_nonzero(not_above)
    within = values[np.logical_and(not_above, values >= low, out=not_above)]
    if not above < number <= above + len(within):
        above, within = 0, values
    within = np.sort(within)
    return float(within[len(within) - (number - above)])
