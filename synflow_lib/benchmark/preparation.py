"""What a run does to its network before the last training: prune, in cycles or at once, and what follows on that."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synflow_lib import data, models
from synflow_lib.benchmark.grid import Run
from synflow_lib.pruning import NEEDS_DATA, SALIENCIES, Masks, prunable, prune
from synflow_lib.pruning.prune import default_iterations
from synflow_lib.theory import approximate_isometry
from synflow_lib.training import History

Training = Callable[[nn.Module, Masks, int], History]  # of a network, with its masks, in a cycle: 1, 2, ...
NEW_WEIGHTS = 1_000_000  # added to the seed for `reinitialise`, so that the new weights are not the old ones


def prepared(
    spec: Run, model: nn.Module, dataset: "data.Dataset", training: Training
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bring `model` to where its last training begins; return the masks, and notes of the cycles, what isometry did and
    the time of it all: of the cycles' trainings that which they took, be it now, before an interruption, or in the run
    that shares the first.
    """
    started, here = time.perf_counter(), 0.0

    def clocked(*given: Any) -> History:
        nonlocal here
        began = time.perf_counter()
        history = training(*given)
        here += time.perf_counter() - began
        return history

    masks, cycles = pruned_in_cycles(spec, model, dataset, clocked)
    if spec.shuffle:
        masks = masks.shuffled(spec.seed)
    if spec.reinitialise:
        models.reinitialise(model, spec.seed + NEW_WEIGHTS)
    trained = not (cycles and cycles[-1].status == "diverged")
    repair = isometric(model, masks) if spec.isometry and trained else None
    whole = sum(cycle.curve[-1].get("seconds", 0.0) for cycle in cycles)
    seconds = round(time.perf_counter() - started - here + whole, 3)
    notes = {"prune_seconds": seconds, "cycles": [asdict(cycle) for cycle in cycles], "isometry": repair}
    return dict(masks.items()), notes


def isometric(model: nn.Module, masks: Masks) -> dict[str, Any]:
    """Bring the kept weights of `model` near to isometry; return the objective before and after, and the steps."""
    repair = approximate_isometry(model, masks)
    before, *_, after = repair.curve
    return {"before": before, "after": after, "steps": len(repair.curve) - 1, "converged": repair.converged}


def pruned_in_cycles(
    spec: Run, model: nn.Module, dataset: "data.Dataset", training: Training
) -> tuple[Masks, list[History]]:
    """Return the masks, and what each of the `spec.cycles` trainings before the last gave (none for single pruning).

    Cycles are iterative magnitude pruning (Frankle and Carbin 2019), for any method: train, prune what was trained,
    rewind. After cycle i of n the compression is rho^(i/n). With `spec.rewind` all parameters and BatchNorm
    statistics go back to their initial values, so the survivors start each training bit for bit as they started the
    first. A training that diverges ends the cycles: its weights rank nothing.
    """
    if not spec.cycles:
        return pruned(spec, model, dataset), []
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = Masks({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()})
    histories = []
    for cycle in range(1, spec.cycles + 1):
        histories.append(training(model, masks, cycle))
        if histories[-1].status == "diverged":
            break
        masks = pruned(spec, model, dataset, spec.compression ** (cycle / spec.cycles), masks)
        if spec.rewind:
            model.load_state_dict(initial)
    return masks, histories


def pruned(
    spec: Run, model: nn.Module, dataset: "data.Dataset", compression: float | None = None, among: Masks | None = None
) -> Masks:
    """Prune `model` as `spec` says, to its compression or the one given, only weights that `among` still has."""
    method, needs_data = saliency(spec), spec.pruner in NEEDS_DATA
    batches = data.scoring_batches(scored_on(spec, dataset), seed=spec.seed) if needs_data else None
    return prune(
        model,
        surviving(method, among, spec.invert) if among else method,
        spec.compression if compression is None else compression,
        input_shape=dataset.input_shape,
        batches=batches,
        iterations=spec.iterations or default_iterations(spec.pruner),  # not those of the function around it
        schedule=spec.schedule,
        scope=spec.scope,
        train_mode=spec.train_mode,
        invert=spec.invert,
        seed=spec.seed,
    )


def surviving(method: Callable[..., dict[str, Tensor]], among: Masks, invert: bool) -> Callable[..., dict[str, Tensor]]:
    """The saliency `method` with the lowest of all scores for every weight that `among` has not: none comes
    back.
    """

    def scores(model: nn.Module, live: Masks, **options: Any) -> dict[str, Tensor]:
        found = method(model, {name: live[name] & among[name] for name in live}, **options)
        lowest = {name: torch.finfo(score.dtype).min * (-1 if invert else 1) for name, score in found.items()}
        return {name: score.masked_fill(~among[name], lowest[name]) for name, score in found.items()}

    return scores


def saliency(spec: Run) -> Callable[..., dict[str, Tensor]]:
    """The scores of `spec`: those of its pruner, by its loss where they need one."""
    method = SALIENCIES[spec.pruner]
    return method if spec.loss == "supervised" else partial(method, loss=spec.loss)


def scored_on(spec: Run, dataset: "data.Dataset") -> "data.Dataset":
    """The data set that snip and grasp score on: `spec.source`, or the one that is trained on."""
    return data.load_once(spec.source, dataset.train_images.device) if spec.source else dataset
