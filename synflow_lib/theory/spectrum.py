"""Singular values of a linear map that is known by its products with vectors: all of them, or the shape of them.

Small maps are made into a matrix and decomposed. The derivative of a convolution over an image has a billion entries;
Golub and Kahan's Lanczos process needs only its products with vectors, and its small bidiagonal matrix has the extreme
singular values, and as a quadrature the mean and the deviation of them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from synflow_lib.errors import InputError, lookup

METHODS = ("auto", "exact", "lanczos")
EXACT_ENTRIES = 1_000_000  # of a Jacobian, which takes a second to decompose; a larger one is left to Lanczos
LANCZOS_STEPS, PROBES = 60, 4


@dataclass(frozen=True)
class LinearMap:
    """The derivative of `function` at `point`, as products with vectors; inputs and outputs are flattened."""

    function: Callable[[Tensor], Tensor]
    point: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.function(self.point).numel(), self.point.numel()

    def times(self, v: Tensor) -> Tensor:
        """J v for v [inputs]."""
        # J'u is linear in u, and the transpose of that map is J: so no forward-mode rules are needed.
        output, pull = vjp(self.function, self.point)
        _, push = vjp(lambda u: pull(u)[0], torch.zeros_like(output))
        return push(v.view_as(self.point))[0].flatten()

    def transposed_times(self, u: Tensor) -> Tensor:
        """J' u for u [outputs]."""
        output, pull = vjp(self.function, self.point)
        return pull(u.view_as(output))[0].flatten()

    def matrix(self) -> Tensor:
        """J itself: [outputs, inputs]."""
        outputs, inputs = self.shape
        eye = torch.eye(min(outputs, inputs), dtype=self.point.dtype, device=self.point.device)
        return vmap(self.transposed_times)(eye) if outputs <= inputs else vmap(self.times)(eye).T


@dataclass(frozen=True)
class Spectrum:
    """Singular values, or nodes that stand for them, with weights that sum to 1."""

    values: Tensor
    weights: Tensor

    def summary(self) -> dict[str, float]:
        """`mean`, `std`, `min` and `max`."""
        mean = float(self.weights @ self.values)
        variance = float(self.weights @ (self.values - mean) ** 2)
        return {"mean": mean, "std": variance**0.5, "min": float(self.values.min()), "max": float(self.values.max())}


def decomposable(matrix: Tensor) -> Tensor:
    """`matrix` in float32 at least, as torch's decompositions need it; raises InputError where it is not finite."""
    if not bool(matrix.isfinite().all()):
        raise InputError("a Jacobian that is not finite has no singular values: look for NaN or inf in the weights")
    return matrix.float() if torch.finfo(matrix.dtype).bits < 32 else matrix


def singular_values(matrix: Tensor) -> Tensor:
    """Of `matrix` [..., m, n], descending; raises InputError where it is not finite."""
    return torch.linalg.svdvals(decomposable(matrix))


def exact(operator: LinearMap) -> Spectrum:
    """All min(outputs, inputs) singular values."""
    values = singular_values(operator.matrix())
    return Spectrum(values, torch.full_like(values, 1 / len(values)))


def lanczos(operator: LinearMap, steps: int = LANCZOS_STEPS, probes: int = PROBES, seed: int = 0) -> Spectrum:
    """Stochastic Lanczos quadrature: from random vectors of length 1 on the smaller side, `steps` times J and J'.

    The singular values of the bidiagonal matrix and the squares of the first entries of its singular vectors are a
    Gauss quadrature of the spectrum; the mean over `probes` vectors estimates mean and deviation (by a few parts in a
    hundred for the default), the largest node the largest value (to many digits), the least node the least value from
    above. All vectors are kept orthogonal to those before them. Raises InputError for fewer than one step or probe.
    """
    if steps < 1 or probes < 1:
        raise InputError(f"the Lanczos process takes steps >= 1 and probes >= 1, not {steps} and {probes}")
    outputs, inputs = operator.shape
    out, back = operator.times, operator.transposed_times
    if outputs < inputs:
        out, back = back, out
    generator = torch.Generator().manual_seed(seed)
    values, weights = [], []
    for _ in range(probes):
        start = torch.randn(min(outputs, inputs), generator=generator, dtype=torch.float64).to(operator.point)
        bidiagonal = _golub_kahan(out, back, start, min(steps, len(start)))
        _, s, vh = torch.linalg.svd(decomposable(bidiagonal))
        values.append(s)
        weights.append(vh[:, 0] ** 2 / probes)
    return Spectrum(torch.cat(values), torch.cat(weights))


def _golub_kahan(
    out: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Tensor:
    """Upper bidiagonal B [k, k] with out(V) = U B, V and U orthonormal and V beginning with `start`; k <= steps."""
    v, vs, us = start / start.norm(), [], []
    diagonal, above = [], []
    tiny = torch.finfo(start.dtype).eps * 100
    for _ in range(steps):
        vs.append(v)
        u = _orthogonal_to(us, out(v))
        diagonal.append(u.norm())
        if float(diagonal[-1]) <= tiny * float(max(diagonal)):
            break  # v is in the null space: B ends with a singular value of 0
        us.append(u / u.norm())
        v = _orthogonal_to(vs, back(us[-1]))
        above.append(v.norm())
        if float(above[-1]) <= tiny * float(max(diagonal)):
            break  # nothing new: the values found are exact
        v = v / above[-1]
    size = len(diagonal)
    upper = torch.diag(torch.stack(above[: size - 1]), 1) if size > 1 else 0
    return torch.diag(torch.stack(diagonal)) + upper


def _orthogonal_to(basis: Sequence[Tensor], vector: Tensor) -> Tensor:
    if basis:
        matrix = torch.stack(list(basis))
        for _ in range(2):  # once is not enough where little is left of the vector
            vector = vector - matrix.T @ (matrix @ vector)
    return vector


def spectrum(operator: LinearMap, method: str = "auto", **options: int) -> Spectrum:
    """`exact` or `lanczos`, which takes `options`; "auto" is exact up to `EXACT_ENTRIES` entries."""
    lookup(dict.fromkeys(METHODS), method, "way to find singular values")
    outputs, inputs = operator.shape
    small = outputs * inputs <= EXACT_ENTRIES
    return exact(operator) if method == "exact" or (method == "auto" and small) else lanczos(operator, **options)
