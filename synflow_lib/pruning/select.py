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

    "Later" is by index, or by `position(indices)`, which come ascending, where the vector is stored in another order
    than it is counted.
    Returns the marks, in `out` if that is given, and the smallest value marked (infinite where there is none).
    """
    marks = torch.empty_like(values, dtype=torch.bool) if out is None else out
    if number <= 0:
        return marks.fill_(False), math.inf
    if number >= len(values):
        return marks.fill_(True), float(values.min())
    select = _on_cpu if values.device.type == "cpu" else _on_device
    border, equals, surplus = select(values, number, marks)
    unmark(marks, equals, surplus, position)
    return marks, border


def count(mask: Tensor) -> int:
    """How many are True; numpy counts on the CPU, fifteen times faster than torch does."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def clear_all_but(values: Tensor, kept: Tensor) -> None:
    """Set `values` to zero in place where `kept` is False; they must be finite. Numpy again, for the same reason."""
    if values.device.type == "cpu":
        array, marks = values.numpy(), kept.numpy()
        for begin in range(0, len(array), PIECE):
            piece = array[begin : begin + PIECE]
            np.multiply(piece, marks[begin : begin + PIECE], out=piece)
    else:
        values.mul_(kept)


class Sample:
    """One value in each of many stretches of values that come in pieces: enough to say where a border may lie."""

    def __init__(self, length: int):
        """All pieces together are `length` values long."""
        self.length, self.places = length, _sampled(length)
        self.values: list[np.ndarray] = []
        self.found: list[int] = []  # where pieces begin that hold something other than zero

    def add(self, values: np.ndarray, start: int) -> None:
        """Take from `values`, whose first is number `start` of all."""
        if values.any():
            self.found.append(start)
        first, last = np.searchsorted(self.places, (start, start + len(values)))
        self.values.append(values[self.places[first:last] - start])

    def bracket(self, number: int) -> tuple[float, float]:
        """Between which values the border of the `number` largest lies, but for one case in many thousand."""
        return _bracket(np.concatenate(self.values), number / self.length)


class Sieve:
    """Marks the largest of values that come in pieces, if their border turns out to lie from `low` to `high`."""

    def __init__(self, marks: Tensor, low: float, high: float, summed: bool = False):
        """Write into `marks`, all of which the pieces must cover; where `summed`, `below` is the sum of the others."""
        self.marks, self.low, self.high, self.summed = marks.numpy(), low, high, summed
        self.below = 0.0
        self.places: list[np.ndarray] = []
        self.within: list[np.ndarray] = []

    def add(self, values: np.ndarray, start: int) -> None:
        """Look at `values`, whose first is number `start` of all, a cacheful at a time."""
        for begin in range(0, len(values), PIECE):
            piece = values[begin : begin + PIECE]
            first = start + begin
            mark = np.greater_equal(piece, self.low, out=self.marks[first : first + len(piece)])
            candidates = np.flatnonzero(mark > (piece > self.high))
            if self.summed:
                self.below += float(piece.dot((~mark).astype(piece.dtype)))
            self.places.append(candidates + first)
            self.within.append(piece[candidates])

    def border(self, number: int) -> tuple[float, Tensor, int] | None:
        """Mark all that are at least the border of the `number` largest; None if that is not from `low` to `high`.

        The border, the places of its equals in order, and how many of those are marked too many.
        """
        places, within = np.concatenate(self.places), np.concatenate(self.within)
        surplus = np.count_nonzero(self.marks) - number
        if not 0 <= surplus < len(places):
            return None
        border = np.sort(within)[surplus]  # not np.partition, which takes forever on many equal values
        below = within < border
        self.marks[places[below]] = False
        surplus = int(surplus - np.count_nonzero(below))
        if self.summed:
            self.below += float(within[below].sum(dtype=float)) + surplus * float(border)
        return float(border), torch.from_numpy(np.sort(places[within == border])), surplus


def unmark(marks: Tensor, equals: Tensor, surplus: int, position: Callable[[Tensor], Tensor] | None) -> None:
    """Take the mark from `surplus` of the places `equals`: of equal values the earlier ones go first."""
    if surplus:
        order = equals if position is None else position(equals)
        marks[equals[order.topk(surplus, largest=False, sorted=False).indices]] = False


def _on_cpu(values: Tensor, number: int, marks: Tensor) -> tuple[float, Tensor, int]:
    array = values.numpy()
    for low, high in (_bracket(array[_sampled(len(array))], number / len(array)), (-np.inf, np.inf)):
        sieve = Sieve(marks, low, high)
        sieve.add(array, 0)
        if (found := sieve.border(number)) is not None:
            break
    return found


def _on_device(values: Tensor, number: int, marks: Tensor) -> tuple[float, Tensor, int]:
    """The same where the values are; `torch.kthvalue` would keep a GPU's processors but one idle."""
    sample = values[_sampled_on(len(values), values.device)].cpu().numpy()
    for low, high in (_bracket(sample, number / len(values)), (-math.inf, math.inf)):
        torch.ge(values, float(low), out=marks)
        places = (marks & (values <= float(high))).nonzero().squeeze(1)
        surplus = count(marks) - number
        if 0 <= surplus < len(places):
            break
    within = values[places]
    border = within.sort().values[surplus]
    below = places[within < border]
    marks[below] = False
    return float(border), places[within == border], surplus - len(below)


@lru_cache(maxsize=2)
def _sampled_on(length: int, device: torch.device) -> Tensor:
    return torch.from_numpy(_sampled(length)).to(device)


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
