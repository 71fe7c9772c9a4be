"""Fully connected networks: the smallest place where the conservation laws can be seen."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import nn


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    width: float = 1.0,
    hidden: Sequence[int] = (100, 100, 100, 100, 100),
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
) -> nn.Sequential:
    """Flatten, then linear layers of `hidden` units (each times `width`) with `activation` between them.

    Initialisation is PyTorch's default for `nn.Linear`, as in the authors' fully connected network.
    """
    sizes = [prod(input_shape), *(max(1, round(units * width)) for units in hidden)]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes, bias=bias))
