"""One run, start to end: build, prune, train, record. A run whose record exists is not run again."""

import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synflow_lib import data, devices, models, paths, provenance
from synflow_lib.benchmark import claims, first_cycle, records
from synflow_lib.benchmark.claims import Elsewhere
from synflow_lib.benchmark.grid import Run, default_iterations
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.pruning import NEEDS_DATA, SALIENCIES, Compacted, Masks, compact, connected, prunable, prune
from synflow_lib.theory import approximate_isometry
from synflow_lib.training import Checkpoint, History, Recipe, Stopped, recipe, train

Train = Callable[..., History]
CHECKPOINT_SECONDS = 60.0  # what an interrupted training loses at most, and an epoch
COMPACT_BELOW = 0.75  # share of the weights: a compact network that is hardly smaller gains nothing
NEW_WEIGHTS = 1_000_000  # added to the seed for `reinitialise`, so that the new weights are not the old ones


def run(
    spec: Run,
    device: str | torch.device = "auto",
    speed: Speed | None = None,
    threads: int = 1,
    sharing: int = 1,
) -> dict[str, Any]:
    """Return the record of `spec`: the existing one, else build, prune and train the network and write it.

    `threads` is the number of CPU threads: 1, because several runs beside each other use a machine better
    than one run spread over it, and because the result depends on it in the last digits. `sharing` is how many runs are
    on the GPU at a time, which the record notes beside the times that it makes longer. A training that was interrupted
    goes on from its checkpoint, to the same bits. What goes wrong on the way is recorded as failed with its sentence,
    tried again next time, and raised. Raises InputError, before any work, for a run, a device or a folder
    that cannot be used, Elsewhere where another process is doing this run, and Stopped where `checkpoint.STOP` is set.
    """
    if (record := records.find(spec.validate())) is not None:
        return record
    device = devices.resolve(device)
    speed = (speed or Speed.auto(device)).require(device)
    checkpoint_interval()  # refused here, before any work
    paths.require_writable(paths.records())
    with claims.claim(spec.key, asdict(spec)) as ours:
        if not ours:
            raise Elsewhere(f"another process is doing {spec}")
        # It may have been finished between the look and the claim.
        return records.find(spec) or recorded(spec, device, speed, threads, sharing)


def recorded(spec: Run, device: torch.device, speed: Speed, threads: int, sharing: int) -> dict[str, Any]:
    """Do the run and write its record, whatever comes of it; its checkpoints go when there is a result."""
    # The revision as the run begins: files may change while it trains, what it computes does not.
    head = {**asdict(spec), "key": spec.key, "git_revision": provenance.revision()}
    try:
        with devices.threads(threads):
            results = execute(spec, device, speed)
    except Stopped:
        raise
    except Exception as error:
        failure = {"status": "failed", "error": f"{error}" or type(error).__name__, "traceback": traceback.format_exc()}
        records.write({**head, **failure, **circumstances(device, speed, threads, sharing)})
        raise
    record = {**head, **results, **circumstances(device, speed, threads, sharing)}
    records.write(record)
    for file in claims.checkpoints(spec.key):
        file.unlink(missing_ok=True)
    return record


def execute(spec: Run, device: torch.device, speed: Speed) -> dict[str, Any]:
    """Do the run, or the rest of it, and return its results; records are neither looked at nor written."""
    devices.forget_peak_memory(device)
    dataset = data.load_once(spec.dataset, device)
    settings = recipe(spec.recipe, spec.dataset, spec.model)
    model = models.build(spec.model, spec.dataset, width=spec.width, seed=spec.seed).to(device)
    scales_early = settings.identity_scales and spec.cycles > 0
    if scales_early:
        models.add_identity_scales(model)
    last = checkpoint(spec, settings, dataset, device, speed)

    def training(network: nn.Module, masks: Masks, stage: str = "") -> History:
        save = checkpoint(spec, settings, dataset, device, speed, stage) if stage else last
        history = train(network, dataset, settings, masks, seed=spec.seed, device=device, speed=speed, checkpoint=save)
        if save.at_end:
            first_cycle.keep(save)
        return history

    if last.state is None:
        last.extra, last.notes = prepared(spec, model, dataset, training)
    masks = Masks({name: last.extra[name] for name in prunable(model)}).to(device)  # a file knows no order
    cycles = [History(**cycle) for cycle in last.notes["cycles"]]
    joined = connected(model, masks, dataset.input_shape)
    share = None
    if cycles and cycles[-1].status == "diverged":
        history = cycles[-1]
    elif speed.skip_disconnected and not joined:
        history = constant_answer(dataset, settings.epochs)
    else:
        small = compacted(spec, model, masks, dataset.input_shape) if speed.compact else None
        network, kept, share = (small.model, small.masks, small.share) if small else (model, masks, None)
        if settings.identity_scales and not scales_early:
            models.add_identity_scales(network)
        history = training(network, kept)
    return {
        **summary(history),
        "curve": history.curve,
        "cycle_results": [{"cycle": i, **summary(cycle)} for i, cycle in enumerate(cycles, 1)],
        "compression": masks.compression,
        "connected": joined,
        "layers": masks.layers().to_dict("records"),
        "savings": {"compact_share": share, "disconnected": bool(speed.skip_disconnected and not joined)},
        "prune_seconds": last.notes["prune_seconds"],
        "isometry_results": last.notes["isometry"],
        "source_fingerprint": scored_on(spec, dataset).fingerprint,
        **pace(history, settings, dataset),
        "peak_memory": devices.peak_memory(device),
        "settings": settings.settings(),
        "dataset_fingerprint": dataset.fingerprint,
        "dataset_official": dataset.official,
    }


def checkpoint(
    spec: Run, settings: Recipe, dataset: "data.Dataset", device: torch.device, speed: Speed, stage: str = ""
) -> Checkpoint:
    """Where the last training of `spec` stands, or that of an earlier `stage`; only its like can go on from it.

    That of the first cycle may have been done for another run.
    """
    file = claims.checkpoint(spec.key, stage)
    about = first_cycle.fields(spec) if stage == first_cycle.STAGE else asdict(spec)
    features = {name: on for name, on in asdict(speed).items() if name != "share_cycles"}
    about |= {"settings": settings.settings(), "dataset": dataset.fingerprint, "speed": features}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"device": provenance.device_name(str(device))}
    shared = speed.share_cycles and stage == first_cycle.STAGE
    if shared:
        first_cycle.offer(file, about)
    return Checkpoint(file, about, checkpoint_interval(), at_end=shared)


def checkpoint_interval() -> float:
    """Seconds between two checkpoints of a training, from SYNFLOW_CHECKPOINT_SECONDS; InputError for anything else."""
    stated = os.environ.get("SYNFLOW_CHECKPOINT_SECONDS", str(CHECKPOINT_SECONDS))
    try:
        seconds = float(stated)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise InputError(f"SYNFLOW_CHECKPOINT_SECONDS must be a number of seconds, 0 or more, not {stated!r}")
    return seconds


def prepared(
    spec: Run, model: nn.Module, dataset: "data.Dataset", training: Train
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bring `model` to where its last training begins; return the masks, and notes of the cycles, what isometry did and
    the time of it all.
    """
    started = time.perf_counter()
    masks, cycles = pruned_in_cycles(spec, model, dataset, training)
    if spec.shuffle:
        masks = masks.shuffled(spec.seed)
    if spec.reinitialise:
        models.reinitialise(model, spec.seed + NEW_WEIGHTS)
    trained = not (cycles and cycles[-1].status == "diverged")
    repair = isometric(model, masks) if spec.isometry and trained else None
    seconds = round(time.perf_counter() - started, 3)
    notes = {"prune_seconds": seconds, "cycles": [asdict(cycle) for cycle in cycles], "isometry": repair}
    return dict(masks.items()), notes


def isometric(model: nn.Module, masks: Masks) -> dict[str, Any]:
    """Bring the kept weights of `model` near to isometry; return the objective before and after, and the steps."""
    repair = approximate_isometry(model, masks)
    before, *_, after = repair.curve
    return {"before": before, "after": after, "steps": len(repair.curve) - 1, "converged": repair.converged}


def compacted(spec: Run, model: nn.Module, masks: Masks, input_shape: tuple[int, ...]) -> Compacted | None:
    """The smaller network to train in place of the masked one, None where there is none or it would gain little.

    After cycles the network is not the one that was built: where its betas have moved, constants may depend on rounding
    (see `compact`), so it is trained as it is.
    """
    if spec.cycles or masks.density == 1:
        return None
    try:
        small = compact(model, masks, input_shape)
    except InputError:  # cut in two, or a network that `compact` does not follow: those are trained masked
        return None
    return small if small.share <= COMPACT_BELOW else None


def constant_answer(dataset: "data.Dataset", epochs: int) -> History:
    """What training makes of a network without a path from its input to its output.

    It gives every image the same answer, so the best it can learn are the frequencies of the classes in the training
    set: that loss and accuracy are exact, and nothing has to be trained.
    """
    train_labels, test_labels = dataset.train_labels.cpu(), dataset.test_labels.cpu()
    share = torch.bincount(train_labels, minlength=dataset.classes).double() / len(train_labels)
    losses = {"train_loss": -share[train_labels].log().mean(), "test_loss": -share[test_labels].log().mean()}
    accuracy = 100 * (test_labels == share.argmax()).double().mean()
    row = {name: float(loss) if loss.isfinite() else None for name, loss in losses.items()}
    return History([{"epoch": epochs, **row, "test_accuracy": float(accuracy), "lr": 0.0, "seconds": 0.0}])


def pace(history: History, settings: Recipe, dataset: "data.Dataset") -> dict[str, float | None]:
    """Seconds of the last training, mean seconds of an epoch (its evaluation included), training images a second."""
    first, last = history.curve[0], history.curve[-1]
    seconds, epochs = last.get("seconds", 0.0), last["epoch"] - first["epoch"]
    if not epochs:
        return {"train_seconds": seconds, "epoch_seconds": None, "images_per_second": None}
    epoch = (seconds - first["seconds"]) / epochs
    images = min(len(dataset.train_labels), settings.batch_size * (settings.max_steps or math.inf))
    return {"train_seconds": seconds, "epoch_seconds": round(epoch, 4), "images_per_second": round(images / epoch, 1)}


def scored_on(spec: Run, dataset: "data.Dataset") -> "data.Dataset":
    """The data set that snip and grasp score on: `spec.source`, or the one that is trained on."""
    return data.load_once(spec.source, dataset.train_images.device) if spec.source else dataset


def saliency(spec: Run) -> Callable[..., dict[str, Tensor]]:
    """The scores of `spec`: those of its pruner, by its loss where they need one."""
    method = SALIENCIES[spec.pruner]
    return method if spec.loss == "supervised" else partial(method, loss=spec.loss)


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
        histories.append(training(model, masks, f"cycle{cycle}"))
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


def circumstances(device: torch.device, speed: Speed, threads: int, sharing: int) -> dict[str, Any]:
    """Where and with what a record was made."""
    return {
        "versions": provenance.versions(),
        "device": str(device),
        "device_name": provenance.device_name(str(device)),
        "threads": threads,
        "sharing": 1 if device.type == "cpu" else sharing,
        "speed": asdict(speed),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
