"""One run, start to end: build, prune, train, record. A run whose record exists is not run again."""

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from synflow_lib import data, devices, models, paths, provenance
from synflow_lib.benchmark import records
from synflow_lib.benchmark.grid import Run, default_iterations
from synflow_lib.devices import Speed
from synflow_lib.pruning import NEEDS_DATA, SALIENCIES, Masks, connected, prunable, prune
from synflow_lib.training import History, recipe, train

Train = Callable[..., History]
NEW_WEIGHTS = 1_000_000  # added to the seed for `reinitialise`, so that the new weights are not the old ones


def run(spec: Run, device: str | torch.device = "auto", speed: Speed | None = None, threads: int = 1) -> dict[str, Any]:
    """Return the record of `spec`: the existing one, else build, prune and train the network and write it.

    `threads` is the number of CPU threads: 1, because several runs beside each other use a machine better
    than one run spread over it, and because the result depends on it in the last digits. What goes wrong on
    the way is recorded as failed with its sentence, tried again next time, and raised. Raises InputError,
    before any work, for a run, a device or a folder that cannot be used.
    """
    if (record := records.find(spec.validate())) is not None:
        return record
    device = devices.resolve(device)
    paths.require_writable(paths.records())
    speed = speed or Speed.auto(device)
    head = {**asdict(spec), "key": spec.key}
    try:
        with devices.threads(threads):
            results = execute(spec, device, speed)
    except Exception as error:
        failure = {"status": "failed", "error": f"{error}" or type(error).__name__, "traceback": traceback.format_exc()}
        records.write({**head, **failure, **circumstances(device, speed, threads)})
        raise
    record = {**head, **results, **circumstances(device, speed, threads)}
    records.write(record)
    return record


def execute(spec: Run, device: torch.device, speed: Speed) -> dict[str, Any]:
    """Do the run and return its results, without looking at or writing any record."""
    devices.forget_peak_memory(device)
    dataset = loaded(spec.dataset, device)
    model = models.build(spec.model, spec.dataset, width=spec.width, seed=spec.seed).to(device)
    settings = recipe(spec.recipe, spec.dataset, spec.model)
    training = partial(train, dataset=dataset, recipe=settings, seed=spec.seed, device=device, speed=speed)

    started = time.perf_counter()
    masks, cycles = pruned_in_cycles(spec, model, dataset, training)
    if spec.shuffle:
        masks = masks.shuffled(spec.seed)
    if spec.reinitialise:
        models.reinitialise(model, spec.seed + NEW_WEIGHTS)
    pruning_ended = time.perf_counter()
    broken = bool(cycles) and cycles[-1].status == "diverged"
    history = cycles[-1] if broken else training(model, masks=masks)
    return {
        **summary(history),
        "curve": history.curve,
        "cycle_results": [{"cycle": i, **summary(cycle)} for i, cycle in enumerate(cycles, 1)],
        "compression": masks.compression,
        "connected": connected(model, masks, dataset.input_shape),
        "layers": masks.layers().to_dict("records"),
        "prune_seconds": round(pruning_ended - started, 3),
        "train_seconds": round(time.perf_counter() - pruning_ended, 3),
        "peak_memory": devices.peak_memory(device),
        "settings": settings.settings(),
        "dataset_fingerprint": dataset.fingerprint,
        "dataset_official": dataset.official,
    }


@lru_cache(maxsize=2)
def loaded(name: str, device: torch.device) -> "data.Dataset":
    """The data set on the device, kept from run to spec."""
    return data.load(name, device=device)


def pruned(
    spec: Run, model: nn.Module, dataset: "data.Dataset", compression: float | None = None, among: Masks | None = None
) -> Masks:
    """Prune `model` as `spec` says, to its compression or the one given, only weights that `among` still has."""
    method = SALIENCIES[spec.pruner]
    batches = data.scoring_batches(dataset, seed=spec.seed) if spec.pruner in NEEDS_DATA else None
    return prune(
        model,
        surviving(method, among, spec.invert) if among else spec.pruner,
        spec.compression if compression is None else compression,
        input_shape=dataset.input_shape,
        batches=batches,
        iterations=spec.iterations or default_iterations(spec.pruner),
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


def pruned_in_cycles(
    spec: Run, model: nn.Module, dataset: "data.Dataset", training: Train
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
        histories.append(training(model, masks=masks))
        if histories[-1].status == "diverged":
            break
        masks = pruned(spec, model, dataset, spec.compression ** (cycle / spec.cycles), masks)
        if spec.rewind:
            model.load_state_dict(initial)
    return masks, histories


def summary(history: History) -> dict[str, Any]:
    """The scalars of a History."""
    names = ("status", "diverged_epoch", "accuracy_last", "accuracy_best", "best_epoch")
    return {name: getattr(history, name) for name in names}


def circumstances(device: torch.device, speed: Speed, threads: int) -> dict[str, Any]:
    """Where and with what a record was made."""
    return {
        "versions": provenance.versions(),
        "git_revision": provenance.revision(),
        "device": str(device),
        "device_name": provenance.device_name(str(device)),
        "threads": threads,
        "speed": asdict(speed),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
