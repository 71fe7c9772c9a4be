"""The operations of SynFlow's network on matrices [kinds of position, channels], forwards and backwards.

What a network of any depth would overflow is kept in range by a power of two beside every value, which costs no
precision. Everything is nonnegative.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from synflow_lib.errors import InputError

BLOCK = 1 << 19  # scores that are made together: two MB
LARGE = 25_000_000  # multiplications of a large product
IN_RANGE = 2.0**20  # a value between 1/this and this is not rescaled
NEAR = 10  # nor is one that is known to be this near: its largest between 2**-10 and 2**10


def times(one: Tensor, two: Tensor) -> Tensor:
    """The matrix product; of large float32 matrices by oneDNN, on an AMD core twice as fast as MKL.

    oneDNN compiles a kernel for each new shape, which takes a millisecond: small products do not earn it.
    """
    return _product(one, two, _large(one, two))


def scored(gradient: Tensor, read: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores (gradient' read) * weight of a layer, [out, taps x in], in blocks of rows that fit the cache.

    Each comes with the number of its first row.
    """
    large, rows = _large(gradient.t(), read), max(1, BLOCK // weight.shape[1])
    for row in range(0, len(weight), rows):
        part = slice(row, row + rows)
        yield row, _product(gradient.t()[part], read, large).mul_(weight[part])


def _product(one: Tensor, two: Tensor, large: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(one, two.t(), None, "none", [], "") if large else one @ two


def _large(one: Tensor, two: Tensor) -> bool:
    fits = one.device.type == "cpu" and one.dtype == torch.float32 and one.numel() * two.shape[1] >= LARGE
    return fits and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Ranges:
    """How large the values of one pass are, in the order in which they have to be kept in range.

    Whoever looks for the largest value waits for a GPU. From one iteration of SynFlow to the next the values change
    little, so a pass can take the magnitudes `known` from the last one, and look once, at its end, whether they `held`.
    """

    def __init__(self, known: Sequence[int | None] = ()):
        self.known = known
        self.magnitudes: list[int | None] = []  # the exponent of the largest value, None where all are zero
        self.exponents: list[int] = []
        self.tops: list[Tensor] = []
        self.least: list[Tensor] = []  # what must be above 0 and finite

    def power(self, values: Tensor, exponent: int) -> int:
        """By which power of two to divide `values`, so that their largest is near 1; with them goes 2**`exponent`."""
        if self.known:
            magnitude = self.known[len(self.tops)]
            away = 0 if magnitude is None else magnitude - exponent
            power = bounded(away, values.dtype) if abs(away) > NEAR else 0
            self.exponents.append(exponent + power)
            self.tops.append(values.max() * 2.0**-power)
            return power
        top = float(values.max())
        self.magnitudes.append(None if top == 0 else exponent + math.frexp(top)[1])
        return 0 if not 0 < top < math.inf or _in_range(top) else bounded(math.frexp(top)[1], values.dtype)

    def positive(self, number: Tensor, wrong: str) -> bool:
        """Whether `number` is above 0; raises InputError(`wrong`) where it is not finite.

        With known magnitudes it is taken to be so for now: `held` looks.
        """
        if self.known:
            self.least.append(number)
            return True
        looked = float(number)
        if not math.isfinite(looked):
            raise InputError(wrong)
        return looked > 0

    def held(self) -> bool:
        """Whether everything came into range by what was known; `magnitudes` are then up to date."""
        found = torch.stack(self.tops + self.least).tolist()
        tops, least = found[: len(self.tops)], found[len(self.tops) :]
        if not all(0 < value < math.inf for value in least):
            return False
        for top, exponent, known in zip(tops, self.exponents, self.known, strict=True):
            if not (top == 0 if known is None else _in_range(top)):
                return False
            self.magnitudes.append(None if top == 0 else exponent + math.frexp(top)[1])
        return True


def _in_range(top: float) -> bool:
    return 1 / IN_RANGE < top < IN_RANGE


class Scaled(NamedTuple):
    """The numbers `values` * 2**`exponent`, in a pass that has its `ranges`."""

    values: Tensor
    exponent: int
    ranges: Ranges

    def in_range(self) -> "Scaled":
        """The same numbers with their largest near 1."""
        power = self.ranges.power(self.values, self.exponent)
        return self._replace(values=self.values * 2.0**-power, exponent=self.exponent + power) if power else self

    def of(self, values: Tensor) -> "Scaled":
        """Other numbers of the same pass, as they are."""
        return Scaled(values, 0, self.ranges)

    def plus(self, other: "Scaled | None") -> "Scaled":
        """The sum; what is too small beside the other part becomes zero."""
        if other is None:
            return self
        exponent = max(self.exponent, other.exponent)
        one, two = (
            x.values * 2.0 ** (x.exponent - exponent) if x.exponent < exponent else x.values for x in (self, other)
        )
        return Scaled(one + two, exponent, self.ranges).in_range()


def waits(device: torch.device) -> bool:
    """Whether looking at a number on `device` waits until everything before it is computed."""
    return device.type != "cpu"


def bounded(power: int, dtype: torch.dtype) -> int:
    """`power`, or the next to it whose 2**power is far within the range of `dtype`."""
    limit = 1000 if dtype == torch.float64 else 100
    return max(-limit, min(limit, power))


class Taps:
    """Which rows of a matrix each row of the result reads, and the adjoint of that."""

    def __init__(self, index: Tensor, rows: int):
        """`index` [result rows, taps] counts rows of a matrix with `rows` rows; `rows` itself stands for a zero."""
        self.shape, self.rows = tuple(index.shape), rows
        self.index = index.flatten()
        self.padded = bool((self.index == rows).any())
        self.same = self.shape == (rows, 1) and torch.equal(self.index, torch.arange(rows, device=index.device))
        order = self.index.argsort(stable=True)
        counts = torch.bincount(self.index, minlength=rows + 1)[:rows]
        self.order, self.offsets = order[: int(counts.sum())], counts.cumsum(0) - counts

    def gather(self, values: Tensor) -> Tensor:
        """[rows, channels] -> [result rows, taps x channels]."""
        if self.same:
            return values
        if self.padded:
            values = torch.cat([values, values.new_zeros(1, values.shape[1])])
        return values.index_select(0, self.index).view(self.shape[0], -1)

    def spread(self, gradient: Tensor) -> Tensor:
        """[result rows, taps x channels] -> [rows, channels], each row the sum over all that read it."""
        if self.same:
            return gradient
        # A sum of rows in a fixed order: index_add_ would add in any order on a GPU.
        gradient = gradient.reshape(len(self.index), -1)
        return F.embedding_bag(self.order, gradient, self.offsets, mode="sum")


State = Mapping[str, Tensor]
Note = Callable[[str, Scaled, Scaled], None]


@dataclass
class Step(ABC):
    """One operation on the values numbered `inputs`."""

    inputs: tuple[int, ...]

    @abstractmethod
    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        """The value, and what `backward` needs of it."""

    @abstractmethod
    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        """The gradient of R with respect to each input."""


@dataclass
class Product(Step):
    """A convolution or a linear layer: taps, one matrix product, a bias."""

    weight: str
    bias: str | None
    taps: Taps

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        read = before[0]._replace(values=self.taps.gather(before[0].values))
        result = read._replace(values=times(read.values, state[self.weight].t()))
        return result.plus(result.of(state[self.bias])) if self.bias in state else result.in_range(), read

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        note(self.weight, gradient, kept)
        return [gradient._replace(values=self.taps.spread(times(gradient.values, state[self.weight]))).in_range()]


@dataclass
class Affine(Step):
    """BatchNorm with its running statistics: a factor and a shift per channel."""

    factor: str
    shift: str

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        result = before[0]._replace(values=before[0].values * state[self.factor])
        return (result.plus(result.of(state[self.shift])) if self.shift in state else result.in_range()), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [gradient._replace(values=gradient.values * state[self.factor])]


@dataclass
class Maximum(Step):
    """Max-pooling; among equals the first position takes the gradient, as in PyTorch."""

    taps: Taps

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        read = self.taps.gather(before[0].values).view(*self.taps.shape, -1)
        values, places = read.max(1)
        return before[0]._replace(values=values), places

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        rows, taps = self.taps.shape
        read = gradient.values.new_zeros(rows, taps, gradient.values.shape[1])
        read.scatter_(1, kept[:, None], gradient.values[:, None])
        return [gradient._replace(values=self.taps.spread(read.view(rows, -1)))]


@dataclass
class Average(Step):
    """Any pooling that is linear and acts on each channel alike, as a matrix [result rows, rows]."""

    matrix: Tensor

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        return before[0]._replace(values=self.matrix @ before[0].values), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [gradient._replace(values=self.matrix.t() @ gradient.values)]


@dataclass
class Sum(Step):
    """A residual sum."""

    taps: tuple[Taps, Taps]

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        one, two = (x._replace(values=t.gather(x.values)) for t, x in zip(self.taps, before, strict=True))
        return one.plus(two), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [gradient._replace(values=taps.spread(gradient.values)) for taps in self.taps]
