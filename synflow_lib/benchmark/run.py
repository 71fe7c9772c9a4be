"""One run, start to end: build, prune, train, record. A run whose record exists is not run again."""

import math
import os
import traceback
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from synflow_lib import data, devices, models, paths, provenance
from synflow_lib.benchmark import claims, first_cycle, preparation, records
from synflow_lib.benchmark.claims import Elsewhere
from synflow_lib.benchmark.grid import Run
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.pruning import Compacted, Masks, compact, connected, prunable
from synflow_lib.training import Checkpoint, History, Recipe, Stopped, recipe, train

CHECKPOINT_SECONDS = 60.0  # what an interrupted training loses at most, and an epoch
COMPACT_BELOW = 0.75  # share of the weights: a compact network that is hardly smaller gains nothing


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
    record = {**head, **circumstances(device, speed, threads, sharing), **results}
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

    def training(network: nn.Module, masks: Masks, cycle: int = 0) -> History:
        save = checkpoint(spec, settings, dataset, device, speed, cycle) if cycle else last
        history = train(network, dataset, settings, masks, seed=spec.seed, device=device, speed=speed, checkpoint=save)
        if save.at_end:
            first_cycle.keep(save)
        return history

    if last.state is None:
        last.extra, last.notes = preparation.prepared(spec, model, dataset, training)
    masks = Masks({name: last.extra[name] for name in prunable(model)}).to(device)  # a file knows no order
    cycles = [History(**cycle) for cycle in last.notes["cycles"]]
    joined = connected(model, masks, dataset.input_shape)
    share, used = None, speed
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
        used = speed.suited(network, device)
        used = replace(used, fused=used.fused and not settings.updates)  # `RepeatedSGD` is one for itself
    return {
        **summary(history),
        "curve": history.curve,
        "cycle_results": [{"cycle": i, **summary(cycle)} for i, cycle in enumerate(cycles, 1)],
        "compression": masks.compression,
        "connected": joined,
        "layers": masks.layers().to_dict("records"),
        "savings": {"compact_share": share, "disconnected": bool(speed.skip_disconnected and not joined)},
        "speed": asdict(used),
        "prune_seconds": last.notes["prune_seconds"],
        "isometry_results": last.notes["isometry"],
        "source_fingerprint": preparation.scored_on(spec, dataset).fingerprint,
        **pace(history, settings, dataset),
        "peak_memory": devices.peak_memory(device),
        "settings": settings.settings(),
        "dataset_fingerprint": dataset.fingerprint,
        "dataset_official": dataset.official,
    }


def checkpoint(
    spec: Run, settings: Recipe, dataset: "data.Dataset", device: torch.device, speed: Speed, cycle: int = 0
) -> Checkpoint:
    """Where the last training of `spec` stands, or that of a `cycle` before it; only its like can go on from it.

    That of the first cycle may have been done for another run.
    """
    file = claims.checkpoint(spec.key, cycle)
    about = first_cycle.fields(spec) if cycle == 1 else asdict(spec)
    features = {name: on for name, on in asdict(speed).items() if name != "share_cycles"}
    about |= {"settings": settings.settings(), "dataset": dataset.fingerprint, "speed": features}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"device": provenance.device_name(str(device))}
    shared = speed.share_cycles and cycle == 1
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


def compacted(spec: Run, model: nn.Module, masks: Masks, input_shape: tuple[int, ...]) -> Compacted | None:
    """The smaller network to train in place of the masked one, None where there is none or it would gain little.

    After cycles without rewinding the network is not the one that was built: where its betas have moved, constants may
    depend on rounding (see `compact`), so it is trained as it is.
    """
    if (spec.cycles and not spec.rewind) or masks.density == 1:
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
