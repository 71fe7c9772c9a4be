"""All weights of a network in one vector: where each layer lies in it, and in which order."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Span:
    """Where the weights of one layer lie in the vector, as [out, taps, in], and which units of the layer they join."""

    name: str
    start: int
    out: int
    into: int
    taps: int  # positions of the kernel, or of the map that a linear layer reads flattened
    full: tuple[int, ...]  # the shape of the weight in the model
    rows: Tensor
    columns: Tensor

    @classmethod
    def whole(cls, name: str, start: int, weight: Tensor, taps: int = 1, device: torch.device | None = None) -> "Span":
        """All of `weight`, stored from `start`, on `device`; with one tap in the weight's own order."""
        out, into = weight.shape[0], weight[0].numel() // taps
        units = (torch.arange(n, device=device or weight.device) for n in (out, into))
        return cls(name, start, out, into, taps, tuple(weight.shape), *units)

    @property
    def stop(self) -> int:
        """The end in the vector."""
        return self.start + self.out * self.into * self.taps

    @property
    def size(self) -> int:
        """How many weights the layer had at first: what a share of it is a share of."""
        return torch.Size(self.full).numel()

    def matrix(self, vector: Tensor) -> Tensor:
        """The layer's part of `vector` as stored, [out, taps x in]."""
        return vector[self.start : self.stop].view(self.out, -1)

    def grid(self, vector: Tensor) -> Tensor:
        """The layer's part of `vector` in the order of the weight, [out, in, taps]."""
        return vector[self.start : self.stop].view(self.out, self.taps, self.into).transpose(1, 2)

    def ordered(self, index: Tensor) -> Tensor:
        """`position` of elements that are counted from the beginning of the layer."""
        return self.position(index + self.start)

    def position(self, index: Tensor) -> Tensor:
        """The places of stored elements in the weight's own order."""
        if self.taps == 1:
            return index
        row = (index - self.start).div(self.into * self.taps, rounding_mode="trunc")
        rest = index - self.start - row * (self.into * self.taps)
        tap = rest.div(self.into, rounding_mode="trunc")
        return self.start + (row * self.into + rest - tap * self.into) * self.taps + tap
