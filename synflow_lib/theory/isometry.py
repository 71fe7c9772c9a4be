"""Approximate isometry (Lee et al. 2020): make what is left of a pruned network pass signals on, without any data.

A pruned layer shrinks most of what passes through it, and a gradient that has to pass many of them arrives as nothing.
The remedy changes the weights that are left until every layer is as near to an isometry as its mask permits:

    minimise  sum over layers l of  || (C_l * W_l)' (C_l * W_l) - I ||_F  over the kept weights,

with a linear layer as the matrix W [inputs, outputs] and a convolution as [k k c_in, c_out]. The norm is not squared.
Each term depends on its own layer alone, so layers are independent problems; those of one shape are solved together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError
from synflow_lib.pruning.masks import Masks, check_masks
from synflow_lib.pruning.state import prunable

WINDOW = 25  # steps between two looks at how far a term has fallen
ROUND = 32  # live rows and columns are rounded up to a multiple of this, so that more layers have one shape
GROWTH, CUT = 1.2, 0.5  # of a layer's step, after one that lowered its term and after one that did not


@dataclass(frozen=True)
class Isometry:
    """What the minimisation did.

    `curve` is the objective, the sum of all terms, before the first step and after each. `layers` has a row per layer:
    `layer`, `before` and `after` (its term), `floor` (no weights of that mask can have a lower one) and `steps`.
    `converged` says whether every layer had converged when it stopped.
    """

    curve: list[float]
    layers: pd.DataFrame
    converged: bool


def approximate_isometry(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    steps: int = 10_000,
    lr: float = 0.1,
    tolerance: float = 1e-2,
) -> Isometry:
    """Bring the kept weights of `model`, in place, near to layerwise isometry; data-free, and for any module.

    Gradient descent on the objective above from the present weights, with the pruned ones at exactly zero. Every layer
    begins with the paper's step `lr`. A step that would not lower its term is not taken, and the layer's next one is
    half as long (a step that was taken is followed by a longer one), so the objective falls monotonically; a constant
    step would end by jumping about the minimum, for the gradient of a norm does not vanish there. A layer has
    converged when its term fell by less than the share `tolerance` within 25 steps, some of them taken and some not (so
    that the step is neither much too long nor much too short), or is below `tolerance` times the square root of its
    outputs; all stop after `steps` (the paper: 10,000). Groups of a grouped convolution, and the
    three maps in an attention's `in_proj_weight`, are matrices of their own. Without `masks` all weights are kept.
    Raises InputError for masks of another model, weights that are not finite, and settings that make no sense.
    """
    if steps < 0 or not 0 < lr < math.inf or not tolerance > 0:
        raise InputError(f"isometry takes steps >= 0, lr > 0 and tolerance > 0, not {steps}, {lr} and {tolerance}")
    masks = None if masks is None else Masks(masks)
    found = matrices(model, masks)
    tasks = [_Task(name, *parts) for name, (*stacks,) in found.items() for parts in zip(*stacks, strict=True)]
    alike: dict[tuple, list[_Task]] = {}
    for task in tasks:
        alike.setdefault((task.start.shape, task.start.dtype, task.start.device), []).append(task)
    for group in alike.values():
        _descend(group, steps, lr, tolerance)
    weights = prunable(model)
    with torch.no_grad():
        for name, mask in (masks or {}).items():
            weights[name].masked_fill_(~mask.to(weights[name].device), 0)
        for task in tasks:
            weight = weights[task.name]  # it may lie in channels-last order, so no flat view of it
            weight[torch.unravel_index(task.index[task.mask], weight.shape)] = task.end[task.mask]
    return _told(tasks)


def deviations(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> pd.DataFrame:
    """How far each layer is from an isometry, as the matrix M [k k c_in, c_out] of its kept weights.

    Columns: `layer`, `term` (|| M'M - I ||_F), `rms` (the root mean square of s^2 - 1 over the outputs, s the singular
    values: term / sqrt(c_out), but for grouped convolutions, whose terms add up), `floor` (no weights of that mask can
    have a lower term) and s itself: `mean`, `std`, `min`, `max`. Raises InputError for masks of another model and
    weights that are not finite.
    """
    rows = []
    for name, (_, values, masked) in matrices(model, masks).items():
        s = torch.linalg.svdvals((values * masked).cpu().double())  # [blocks, min(inputs, outputs)]
        outputs = values.shape[2]
        missing = max(0, outputs - values.shape[1])  # outputs that no singular value is left for: theirs is 0
        squares = (s**2 - 1).pow(2).sum(1) + missing
        floor = sum(_floor(mask) for mask in masked)
        spread = [float(f) for f in (s.mean(), s.std(correction=0), s.min(), s.max())]
        rms = float(squares.sum() / (len(s) * outputs)) ** 0.5
        rows.append((name.removesuffix(".weight"), float(squares.sqrt().sum()), rms, floor, *spread))
    return pd.DataFrame(rows, columns=["layer", "term", "rms", "floor", "mean", "std", "min", "max"])


def matrices(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Every prunable weight as matrices [blocks, inputs, outputs]: where its entries lie in the flat weight, the
    entries, and which of them are kept.

    One block, but for grouped convolutions (one a group) and attention (queries, keys and values). Raises InputError
    for masks of another model and weights that are not finite.
    """
    if masks is not None:
        masks = Masks(masks)
        check_masks(model, masks)
    found = {}
    for name, weight in prunable(model).items():
        if not bool(weight.isfinite().all()):
            raise InputError(f"{name} holds weights that are not finite: no isometry is near")
        prefix, _, attribute = name.rpartition(".")
        module = model.get_submodule(prefix)
        index = _as_matrices(module, attribute, torch.arange(weight.numel(), device=weight.device).view(weight.shape))
        kept = torch.ones_like(index, dtype=torch.bool)
        if masks is not None:
            kept = masks[name].to(weight.device).flatten()[index]
        found[name] = index, weight.detach().flatten()[index], kept
    return found


def _as_matrices(module: nn.Module, attribute: str, weight: Tensor) -> Tensor:
    if attribute == "in_proj_weight":
        return weight.view(3, -1, weight.shape[1]).transpose(1, 2)
    groups = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):  # [c_in, c_out / groups, k, k]
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        return weight.view(groups, inputs, outputs, -1).transpose(2, 3).reshape(groups, -1, outputs)
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def _floor(kept: Tensor) -> float:
    """What || M'M - I ||_F is at least: every output beyond the largest possible rank adds 1 to its square."""
    rank = min(int(kept.any(1).sum()), int(kept.any(0).sum()))
    return math.sqrt(kept.shape[1] - rank)


class _Task:
    """One matrix of the objective, cut to its live rows and columns: the dead ones add a constant and cost time."""

    def __init__(self, name: str, index: Tensor, values: Tensor, kept: Tensor):
        self.name, self.outputs, self.floor = name, values.shape[1], _floor(kept)
        rows, columns = (_live(kept.any(dimension)) for dimension in (1, 0))
        self.index, self.mask = index[rows][:, columns], kept[rows][:, columns]
        self.start = values[rows][:, columns] * self.mask
        self.end, self.curve = self.start, []  # what `_descend` finds


def _live(kept: Tensor) -> Tensor:
    """Positions of the live rows or columns, filled up with dead ones to a multiple of ROUND."""
    size = min(len(kept), math.ceil(max(1, int(kept.sum())) / ROUND) * ROUND)
    return torch.argsort(~kept, stable=True)[:size].sort().values


def _descend(tasks: list[_Task], steps: int, lr: float, tolerance: float) -> None:
    """Minimise the terms of matrices of one shape side by side: matrices [tasks, rows, columns]."""
    current, mask = torch.stack([t.start for t in tasks]), torch.stack([t.mask for t in tasks]).to(tasks[0].start.dtype)
    # || M'M - I ||^2 = || MM' - I ||^2 + columns - rows: the smaller of the two products does.
    wide = current.shape[1] < current.shape[2]
    identity = torch.eye(min(current.shape[1:]), dtype=current.dtype, device=current.device)
    constant = current.new_tensor([task.outputs - len(identity) for task in tasks])

    def term(matrix: Tensor) -> tuple[Tensor, Tensor]:
        product = matrix @ matrix.mT if wide else matrix.mT @ matrix
        error = product - identity
        return error, (error.square().sum((1, 2)) + constant).clamp_min(0).sqrt()

    error, value = term(current)
    length = torch.full_like(value, lr)
    curve, active = [value], torch.ones_like(value, dtype=torch.bool)
    small = tolerance * value.new_tensor([math.sqrt(task.outputs) for task in tasks])
    taken, rounding = torch.zeros_like(value), torch.finfo(value.dtype).eps
    for step in range(1, steps + 1):
        gradient = (error @ current if wide else current @ error) * mask
        scale = 2 * length / value.clamp_min(torch.finfo(value.dtype).tiny)
        move = scale[:, None, None] * gradient
        trial = current - move
        trial_error, trial_value = term(trial)
        better = (trial_value < value) & active
        current, error = (torch.where(better[:, None, None], a, b) for a, b in ((trial, current), (trial_error, error)))
        value = torch.where(better, trial_value, value)
        length = torch.where(better, GROWTH * length, CUT * length)
        curve.append(value)
        taken += better
        if step % WINDOW == 0:
            fell = curve[-WINDOW - 1] - value > tolerance * value
            moves = move.abs().amax((1, 2)) > rounding * current.abs().amax((1, 2))
            active &= (value > small) & (fell | (taken == WINDOW) | ((taken == 0) & moves))
            taken.zero_()
            if not bool(active.any()):
                break
    for number, task in enumerate(tasks):
        task.end, task.curve = current[number], torch.stack(curve)[:, number].tolist()
        task.converged = not bool(active[number])


def _told(tasks: list[_Task]) -> Isometry:
    longest = max(len(task.curve) for task in tasks)
    curve = torch.tensor([task.curve + [task.curve[-1]] * (longest - len(task.curve)) for task in tasks]).sum(0)
    rows = [(t.name.removesuffix(".weight"), t.curve[0], t.curve[-1], t.floor, len(t.curve) - 1) for t in tasks]
    table = pd.DataFrame(rows, columns=["layer", "before", "after", "floor", "steps"])
    table = table.groupby("layer", sort=False).agg({c: "max" if c == "steps" else "sum" for c in table.columns[1:]})
    return Isometry(curve.tolist(), table.reset_index(), all(task.converged for task in tasks))
