"""The largest so many of a long vector, exactly: what a global threshold is for, and where the time went.

Sorting or `kthvalue` over all scores took most of the time of published implementations. Here a small sample brackets
the threshold, and only the few per cent of values within the bracket are sorted. A bracket that misses, which the
counts tell, is widened to everything, so the result does not depend on the sample.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 17  # values that bracket the threshold: enough that about 1 % of all lie within
PIECE = 1 << 17  # elements that are worked on together: half a MB, which stays in the cache


def largest(
    values: Tensor, number: int, position: Callable[[Tensor], Tensor] | None = None, out: Tensor | None = None
) -> tuple[Tensor, float]:
    """Mark the `number` largest of a vector without NaN; of equal values at the border the later ones.

    "Later" is by index, or by `position(indices)` where the vector is stored in another order than it is counted.
    Returns the marks, in `out` if that is given, and the smallest value marked (infinite where there is none).
    """
    marks = torch.empty_like(values, dtype=torch.bool) if out is None else out
    if number <= 0:
        return marks.fill_(False), math.inf
    if number >= len(values):
        return marks.fill_(True), float(values.min())
    select = _on_cpu if values.device.type == "cpu" else _by_kthvalue
    border, equals, surplus = select(values, number, marks)
    if surplus:
        if position is not None:
            equals = equals[position(equals).argsort()]
        marks[equals[:surplus]] = False
    return marks, border


def count(mask: Tensor) -> int:
    """How many are True; numpy counts on the CPU, fifteen times faster than torch does."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def clear_all_but(values: Tensor, kept: Tensor) -> None:
    """Set `values` to zero in place where `kept` is False; they must be finite. Numpy again, for the same reason."""
    if values.device.type == "cpu":
        np.multiply(values.numpy(), kept.numpy(), out=values.numpy())
    else:
        values.mul_(kept)


def _by_kthvalue(values: Tensor, number: int, marks: Tensor) -> tuple[float, Tensor, int]:
    border = values.kthvalue(len(values) - number + 1).values
    torch.ge(values, border, out=marks)
    return float(border), (values == border).nonzero().squeeze(1), count(marks) - number


def _on_cpu(values: Tensor, number: int, marks: Tensor) -> tuple[float, Tensor, int]:
    """Mark all that are at least the border; the border, the places of its equals, how many of those are too many."""
    array, marked = values.numpy(), marks.numpy()
    bracket = _bracket(array[_sampled(len(array))], number / len(array))
    for low, high in (bracket, (-np.inf, np.inf)):
        places = _mark_above(array, low, high, marked)
        surplus = np.count_nonzero(marked) - number
        if 0 <= surplus < len(places):
            break
    within = array[places]
    border = np.sort(within)[surplus]  # not np.partition, which takes forever on many equal values
    below = within < border
    marked[places[below]] = False
    return float(border), torch.from_numpy(places[within == border]), surplus - int(np.count_nonzero(below))


def _mark_above(array: np.ndarray, low: float, high: float, marked: np.ndarray) -> np.ndarray:
    """Mark what is at least `low`, in pieces that stay in the cache, and return the places of what is up to `high`."""
    places = []
    for begin in range(0, len(array), PIECE):
        piece = array[begin : begin + PIECE]
        mark = np.greater_equal(piece, low, out=marked[begin : begin + PIECE])
        places.append(np.flatnonzero(mark > (piece > high)) + begin)
    return np.concatenate(places)


@lru_cache(maxsize=2)
def _sampled(length: int) -> np.ndarray:
    """One place at random in each of `SAMPLE` stretches; at regular places a sample would see the same channels."""
    step = max(1, length // SAMPLE)
    starts = np.arange(0, length - step + 1, step)
    return starts + np.random.default_rng(0).integers(step, size=len(starts))


def _bracket(sample: np.ndarray, share: float) -> tuple[float, float]:
    """Two values between which the border of the largest `share` of all lies, as far as a sample can tell."""
    sample.sort()
    rank = (1 - share) * len(sample)
    slack = 4 * math.sqrt(rank * (1 - rank / len(sample))) + 5  # four standard deviations
    low = sample[int(rank - slack)] if rank > slack else -np.inf
    high = sample[int(rank + slack)] if rank + slack < len(sample) else np.inf
    return low, high
