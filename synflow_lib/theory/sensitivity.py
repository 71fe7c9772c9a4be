"""Connection sensitivity, factorised layer by layer (Lee et al. 2020): why initialisation decides what is pruned.

In a chain x_l = phi(z_l), z_l = W_l x_{l-1} + b_l, l = 1..K, the Jacobian of layer l is J_l = D_l W_l with the slopes
D_l = diag(phi'(z_l)). By the chain rule, with the error e = dL/dx_K of one example,

    dL/dW_l = (D_l J_{l+1}' ... J_K' e) x_{l-1}'.

So the sensitivity of a weight is its size times a signal that came from the input through the layers before it times an
error that came from the output through the layers behind it. Where the Jacobians stretch or shrink, or the slopes
vanish, layers get large or small sensitivities whatever their weights are good for. Here both factors are multiplied
out as matrices, with the slopes from their formulas: nothing is left to automatic differentiation.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError
from synflow_lib.pruning.state import masked_state
from synflow_lib.theory.jacobians import chain_parts, first_names, is_chain

# phi'(z) from z. (A kink has the slope that torch takes there: 0 at ReLU's.)
SLOPES: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.Identity: lambda _, z: torch.ones_like(z),
    nn.ReLU: lambda _, z: (z > 0).to(z),
    nn.LeakyReLU: lambda phi, z: torch.ones_like(z).masked_fill(z <= 0, phi.negative_slope),
    nn.Tanh: lambda _, z: 1 - z.tanh() ** 2,
    nn.Sigmoid: lambda _, z: z.sigmoid() * (1 - z.sigmoid()),
}


@dataclass(frozen=True)
class Factors:
    """One layer of the chain, for B examples: what its gradient is made of."""

    name: str  # of the weight
    weight: Tensor  # [n_l, n_{l-1}], masked
    signal: Tensor  # x_{l-1} [B, n_{l-1}]
    slopes: Tensor  # phi'(z_l) [B, n_l]
    behind: Tensor  # J_K ... J_{l+1} [B, classes, n_l]
    error: Tensor  # dL/dx_K [B, classes], L the mean over the B examples

    @property
    def jacobian(self) -> Tensor:
        """J_l = D_l W_l of every example: [B, n_l, n_{l-1}]."""
        return self.slopes[:, :, None] * self.weight

    @property
    def backward(self) -> Tensor:
        """D_l J_{l+1}' ... J_K' e, the error that arrives at z_l: [B, n_l]."""
        return self.slopes * torch.einsum("bk,bkn->bn", self.error, self.behind)

    @property
    def gradient(self) -> Tensor:
        """dL/dW_l, the sum of `backward` times `signal` over the examples: [n_l, n_{l-1}]."""
        return self.backward.T @ self.signal


def factors(
    model: nn.Module, images: Tensor, labels: Tensor, masks: Mapping[str, Tensor] | None = None
) -> list[Factors]:
    """Factorise the gradient of the mean cross entropy of (`images`, `labels`), layer by layer.

    `model` is a chain: an nn.Sequential of linear layers and activations of `SLOPES` that may begin with nn.Flatten,
    or one linear layer. Dropout is off. Raises InputError for anything else, and where a linear layer occurs twice.
    """
    state, names = masked_state(model, masks), first_names(model)
    x, layers = images.to(next(iter(state.values()))).flatten(1), []
    if labels.shape != (len(x),) or labels.is_floating_point():
        raise InputError(f"labels must be integers of shape [{len(x)}], not {labels.dtype} {tuple(labels.shape)}")
    for linear, phi in _chain(model):
        name, bias = names[linear.weight], None if linear.bias is None else state[names[linear.bias]]
        weight = state[name]
        if x.shape[1] != weight.shape[1]:
            raise InputError(
                f"{name.removesuffix('.weight')} takes {weight.shape[1]} inputs, not the {x.shape[1]} that arrive"
            )
        z = nn.functional.linear(x, weight, bias)
        layers.append((name, weight, x, SLOPES[type(phi)](phi, z)))
        x = phi(z)
    if not 0 <= int(labels.min()) <= int(labels.max()) < x.shape[1]:
        raise InputError(f"labels from {int(labels.min())} to {int(labels.max())} do not fit {x.shape[1]} outputs")
    error = (x.softmax(1) - nn.functional.one_hot(labels.to(x.device).long(), x.shape[1])) / len(x)
    behind, found = torch.eye(x.shape[1]).to(x).expand(len(x), -1, -1), []
    for name, weight, signal, slopes in reversed(layers):
        found.append(Factors(name, weight, signal, slopes, behind, error))
        behind = (behind * slopes[:, None, :]) @ weight
    return found[::-1]


def _chain(model: nn.Module) -> Iterator[tuple[nn.Linear, nn.Module]]:
    """Every linear layer and the activation behind it, in order."""
    modules = [(name, module) for name, module in chain_parts(model) if not isinstance(module, nn.Dropout)]
    if isinstance(model, nn.Sequential) and modules and isinstance(modules[0][1], nn.Flatten):
        del modules[0]
    known = all(isinstance(m, nn.Linear) or type(m) in SLOPES for _, m in modules)
    if not (is_chain(model) and known and modules and isinstance(modules[0][1], nn.Linear)):
        raise InputError(
            f"the gradient of {type(model).__name__} is not factorised here: it must be an nn.Sequential of linear "
            f"layers and {', '.join(kind.__name__ for kind in SLOPES)}"
        )
    for position, (name, module) in enumerate(modules):
        if isinstance(module, nn.Linear):
            follows = modules[position + 1][1] if position + 1 < len(modules) else nn.Identity()
            yield module, nn.Identity() if isinstance(follows, nn.Linear) else follows
        elif position and not isinstance(modules[position - 1][1], nn.Linear):
            raise InputError(f"{name} follows another activation: put a linear layer between them")


def propagation(
    model: nn.Module, images: Tensor, labels: Tensor, masks: Mapping[str, Tensor] | None = None
) -> pd.DataFrame:
    """What reaches every layer of a chain, forwards and backwards, and the sensitivity that it makes.

    Columns: `layer`, `size`, `signal` and `error` (root mean square of x_{l-1}, and of dL/dz_l of single examples),
    `slope` (mean of phi'), `weight` (root mean square) and `sensitivity` (mean of |dL/dw * w| over the layer).
    Raises InputError for what `factors` does not take.
    """
    rows = []
    for layer in factors(model, images, labels, masks):
        signal, error, weight = (_rms(t) for t in (layer.signal, layer.backward * len(layer.signal), layer.weight))
        sensitivity = float((layer.gradient * layer.weight).abs().mean())
        name, size = layer.name.removesuffix(".weight"), layer.weight.numel()
        rows.append((name, size, signal, error, float(layer.slopes.mean()), weight, sensitivity))
    return pd.DataFrame(rows, columns=["layer", "size", "signal", "error", "slope", "weight", "sensitivity"])


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
