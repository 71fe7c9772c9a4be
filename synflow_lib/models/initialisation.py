"""How weights are drawn, by name: the initialisations whose signal propagation Lee et al. (2020) compare.

What differs is the variance. A layer with n inputs and m outputs multiplies the mean square of its input by n Var(w)
on the way forward, and that of a gradient by m Var(w) on the way back: N(0, 1) blows both up, LeCun keeps the first,
Glorot the middle of both, He doubles the first to make up for the half that ReLU drops. Orthogonal matrices keep the
length of every vector, not only the mean: all their singular values are 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synflow_lib import devices
from synflow_lib.errors import InputError, lookup
from synflow_lib.models.flow_graph import CONVOLUTION

# The deviation of a standard normal number that is drawn again until it lies within two deviations.
TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def truncated(weight: Tensor) -> Tensor:
    """A normal distribution cut off at two deviations, then of variance 1 / fan_in: TensorFlow's variance scaling."""
    std = 1 / math.sqrt(weight[0].numel()) / TRUNCATED
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": nn.init.normal_,  # N(0, 1)
    "lecun": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear"),  # variance 1 / fan_in
    "glorot": nn.init.xavier_normal_,  # 2 / (fan_in + fan_out)
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),  # 2 / fan_in
    "variance scaling": truncated,
    # A convolution as the matrix [c_out, c_in k k]: its rows are orthonormal, or its columns where those are fewer.
    "orthogonal": nn.init.orthogonal_,
}


def initialise(model: nn.Module, name: str, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Draw the weights of every convolution and linear layer anew by `INITIALISATIONS[name]`, in place; return `model`.

    They are then multiplied by `gain`; biases become zero, and everything else, BatchNorm too, stays. The same
    `seed` draws the same weights, and the global random state is left as it was. Raises InputError for an unknown
    name, a gain that is not positive and, before anything is drawn, a weight that is computed from other parameters.
    """
    draw = lookup(INITIALISATIONS, name, "initialisation")
    if not 0 < gain < math.inf:
        raise InputError(f"gain must be a positive factor such as 1.0, not {gain}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | CONVOLUTION)}
    derived = [name for name, layer in layers.items() if layer._parameters.get("weight") is None]
    if derived:
        raise InputError(f"the weight of {derived[0]!r} is computed from others: remove its parametrization first")
    device = next((layer.weight.device for layer in layers.values()), torch.device("cpu"))
    with devices.seeded(seed, device), torch.no_grad():
        for layer in layers.values():
            wide = layer.weight.float() if layer.weight.dtype in (torch.float16, torch.bfloat16) else layer.weight
            layer.weight.copy_(draw(wide).mul_(gain))
            if layer.bias is not None:
                layer.bias.zero_()
    return model
