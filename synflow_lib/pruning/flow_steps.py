"""The operations of SynFlow's network on matrices [kinds of position, channels], forwards and backwards.

What a network of any depth would overflow is kept in range by a power of two beside every value, which costs no
precision. Everything is nonnegative.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1 << 19  # scores that are made together: two MB
LARGE = 25_000_000  # multiplications of a large product
IN_RANGE = 2.0**20  # a value between 1/this and this is not rescaled


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


class Scaled(NamedTuple):
    """The numbers `values` * 2**`exponent`."""

    values: Tensor
    exponent: int

    def in_range(self) -> "Scaled":
        """The same numbers with their largest near 1."""
        top = float(self.values.max())
        if not 0 < top < math.inf or 1 / IN_RANGE < top < IN_RANGE:
            return self
        power = bounded(math.frexp(top)[1], self.values.dtype)
        return Scaled(self.values * 2.0**-power, self.exponent + power)

    def plus(self, other: "Scaled | None") -> "Scaled":
        """The sum; what is too small beside the other part becomes zero."""
        if other is None:
            return self
        exponent = max(self.exponent, other.exponent)
        one, two = (
            x.values * 2.0 ** (x.exponent - exponent) if x.exponent < exponent else x.values for x in (self, other)
        )
        return Scaled(one + two, exponent).in_range()


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
        read = Scaled(self.taps.gather(before[0].values), before[0].exponent)
        result = Scaled(times(read.values, state[self.weight].t()), read.exponent)
        return result.plus(Scaled(state[self.bias], 0)) if self.bias in state else result.in_range(), read

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        note(self.weight, gradient, kept)
        return [Scaled(self.taps.spread(times(gradient.values, state[self.weight])), gradient.exponent).in_range()]


@dataclass
class Affine(Step):
    """BatchNorm with its running statistics: a factor and a shift per channel."""

    factor: str
    shift: str

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        result = Scaled(before[0].values * state[self.factor], before[0].exponent)
        return (result.plus(Scaled(state[self.shift], 0)) if self.shift in state else result.in_range()), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [Scaled(gradient.values * state[self.factor], gradient.exponent)]


@dataclass
class Maximum(Step):
    """Max-pooling; among equals the first position takes the gradient, as in PyTorch."""

    taps: Taps

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        read = self.taps.gather(before[0].values).view(*self.taps.shape, -1)
        values, places = read.max(1)
        return Scaled(values, before[0].exponent), places

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        rows, taps = self.taps.shape
        read = gradient.values.new_zeros(rows, taps, gradient.values.shape[1])
        read.scatter_(1, kept[:, None], gradient.values[:, None])
        return [Scaled(self.taps.spread(read.view(rows, -1)), gradient.exponent)]


@dataclass
class Average(Step):
    """Any pooling that is linear and acts on each channel alike, as a matrix [result rows, rows]."""

    matrix: Tensor

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        return Scaled(self.matrix @ before[0].values, before[0].exponent), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [Scaled(self.matrix.t() @ gradient.values, gradient.exponent)]


@dataclass
class Sum(Step):
    """A residual sum."""

    taps: tuple[Taps, Taps]

    def forward(self, before: list[Scaled], state: State) -> tuple[Scaled, object]:
        one, two = (Scaled(t.gather(x.values), x.exponent) for t, x in zip(self.taps, before, strict=True))
        return one.plus(two), None

    def backward(self, gradient: Scaled, kept: object, state: State, note: Note) -> list[Scaled]:
        return [Scaled(taps.spread(gradient.values), gradient.exponent) for taps in self.taps]
