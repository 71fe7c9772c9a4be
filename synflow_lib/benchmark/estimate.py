"""How long runs would take here, from measured speeds and without a data set: `synflow bench ... --estimate`.

Where this kind of device has records of a panel, their times count. Elsewhere a few real training steps, evaluation
batches and prunings are timed on random images: a minute or two for the twelve panels on one CPU core. What is saved by
compact networks, by networks that are not trained and by a first cycle that runs share is in the records' times alone:
without records, hours are an upper bound.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pandas as pd
import torch

from synflow_lib import devices, provenance
from synflow_lib.benchmark import records
from synflow_lib.benchmark.engines import Means, default_workers
from synflow_lib.benchmark.grid import HOW, SAME_NETWORK, Run
from synflow_lib.benchmark.measurement import Here, Measurements, Sample
from synflow_lib.devices import Speed
from synflow_lib.training import recipe

PANEL = ["dataset", "model", "width", "recipe"]
COLUMNS = [*PANEL, "runs", "trainings", "epoch_seconds", "hours", "source"]
SECONDS = ["epoch_seconds", "prune_seconds", "train_seconds"]
TIMES = [*PANEL, "pruner", "options", "isometry", "log10_compression", *SECONDS]


def estimate(
    runs: Iterable[Run],
    device: str | torch.device = "auto",
    threads: int = 1,
    speed: Speed | None = None,
    sample: Sample | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> pd.DataFrame:
    """One row per panel (data set, model, width, recipe) of `runs`: what is left to do on `device`, and its hours.

    `runs` without a finished record; `trainings` that they need, after what they share with each other or with an
    earlier row (the dense network, two names of one network); `epoch_seconds` of the dense network, evaluation
    included, where that is known; `hours` of one device that does one run after another; `source` of the trainings'
    speeds, "records", "measured" or "both". Raises InputError for a run, a device or a number of threads that cannot
    be used.
    """
    Means(threads=threads)
    device = devices.resolve(device)
    here = Here(device, threads, speed or Speed.auto(device), sample or Sample.of(device), tell)
    panels: dict[tuple, list[Run]] = {}
    for run in runs:
        panels.setdefault(tuple(getattr(run, name) for name in PANEL), []).append(run.validate())
    known, done, rows = recorded(here), set(), []
    measured = Measurements(here)
    for panel, part in panels.items():
        pending = [run for run in part if records.find(run) is None]
        trainings = [run for run in {run.key: run for run in pending}.values() if run.key not in done]
        done |= {run.key for run in trainings}
        network = [SAME_NETWORK.get(name, name) for name in panel]
        own = known[(known[PANEL] == network).all(axis=1)]
        rows.append(_row(panel, pending, trainings, own, measured))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(panel: tuple, pending: list[Run], trainings: list[Run], own: pd.DataFrame, measured: "Measurements") -> dict:
    seconds = [from_records(run, own, measured) for run in trainings]
    unknown = [run for run, known in zip(trainings, seconds, strict=True) if known is None]
    total = sum(known for known in seconds if known is not None) + sum(map(measured.seconds, unknown))
    source = "measured" if len(unknown) == len(trainings) else "both" if unknown else "records"
    dense = own[own["log10_compression"] == 0]["epoch_seconds"].median()
    return dict(zip(PANEL, panel, strict=True)) | {
        "runs": len(pending),
        "trainings": len(trainings),
        "epoch_seconds": measured.epoch(unknown[0]) if unknown else dense,
        "hours": total / 3600,
        "source": source if trainings else "nothing to do",
    }


def report(
    table: pd.DataFrame, device: str = "auto", workers: int | None = None, runs_per_gpu: int = 1, threads: int = 1
) -> str:
    """The table of `estimate` for a person, its total, and the hours by the clock with `workers` of `threads` at once.

    No more of them count than there are trainings.

    Records of runs that shared a GPU count for their share of it; what is measured here has it alone. Raises InputError
    for less than one worker or run.
    """
    resolved = devices.resolve(device)
    name = provenance.device_name(str(resolved))
    shown = table.assign(network=[_network(row) for row in table.to_dict("records")], source=table["source"])
    shown = shown[["network", "recipe", "runs", "trainings", "epoch_seconds", "hours", "source"]]
    formats = {"epoch_seconds": _short, "hours": _short}
    lines = [shown.to_string(index=False, formatters=formats, na_rep="-"), ""]
    hours, trainings = table["hours"].sum(), int(table["trainings"].sum())
    at_once = min(parallel(resolved, workers, runs_per_gpu, threads), max(1, trainings))
    unit, each = ("core", threads) if resolved.type == "cpu" else ("device", 1)
    counts = f"{table['runs'].sum():,} runs to do, {trainings:,} trainings"
    lines.append(f"{counts}, {_short(hours * each)} {unit}-hours on {name}")
    lines.append(f"{_short(hours / at_once)} hours by the clock on {at_once * each:g} {unit}s")
    if {"measured", "both"} & set(table["source"]):
        lines.append("an upper bound: smaller networks after pruning, and those cut in two, are counted as dense ones")
    return "\n".join(lines)


def parallel(device: torch.device, workers: int | None, runs_per_gpu: int, threads: int = 1) -> float:
    """How many runs of `threads` cores, or devices, `workers` fill; by default as many as fit. InputError below 1."""
    Means(workers, threads=threads, runs_per_gpu=runs_per_gpu)
    if workers is None:
        return default_workers(device, threads=threads)
    return max(1.0, workers / runs_per_gpu) if device.type == "cuda" else workers


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return "-" if pd.isna(number) else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _network(row: dict) -> str:
    share = "" if row["width"] == 1 else f" x {row['width']:g}"
    return f"{row['model']}{share} on {row['dataset']}"


def recorded(here: Here) -> pd.DataFrame:
    """`TIMES` of the finished records made on this kind of device (on a CPU, with as many threads)."""
    rows = []
    name = provenance.device_name(str(here.device))
    for record in records.everything():
        threads = here.threads if here.device.type != "cpu" else record.get("threads")
        timed = record.get("train_seconds") is not None and record.get("prune_seconds") is not None
        if timed and records.state(record) == "done" and (record.get("device_name"), threads) == (name, here.threads):
            run = records.run_of(record)
            epochs = record["curve"][-1]["epoch"] if record["curve"] else 0
            earlier = {"epoch_seconds": record["train_seconds"] / max(epochs, 1)}  # before records told it themselves
            times = {**earlier, **record}
            times |= {name: times[name] / record.get("sharing", 1) for name in SECONDS if times[name] is not None}
            about = {"width": run.width, "model": SAME_NETWORK.get(run.model, run.model), "isometry": run.isometry}
            rows.append({**times, **about, "options": options(run)})
    return pd.DataFrame(rows, columns=TIMES).astype({"isometry": bool, **dict.fromkeys(TIMES[-4:], float)})


def options(run: Run) -> str:
    """The options that can change how long the run takes, but for isometry, whose seconds are added."""
    apart = {"isometry", "reinitialise", *(HOW if run.log10_compression == 0 else ())}
    return ", ".join(f"{name} {value}" for name, value in run.changed.items() if name not in apart)


def from_records(run: Run, own: pd.DataFrame, measured: "Measurements") -> float | None:
    """Seconds of `run` by the records `own` of its panel; None where they cannot tell.

    The median of runs that differ in their seed alone; else what they tell of it without isometry, which is measured;
    else, without cycles, the epoch of the nearest recorded compression that is not higher (a network that keeps more is
    not faster) with the same options or of the dense network, times the epochs. A pruning that no record tells of is
    measured too.
    """
    like = own["options"] == options(run)
    same = own[like & (own["log10_compression"] == run.log10_compression)]
    same = same[(same["pruner"] == run.pruner) | (run.log10_compression == 0)]  # one dense network for all
    if (same["isometry"] == run.isometry).any():
        same = same[same["isometry"] == run.isometry]
        return float((same["prune_seconds"] + same["train_seconds"]).median())
    if run.isometry:
        without = from_records(replace(run, isometry=False), own, measured)
        return None if without is None else without + measured.isometry(run)
    dense = (own["log10_compression"] == 0) & (own["options"] == "")
    trained = own[(like | dense) & (own["log10_compression"] <= run.log10_compression) & own["epoch_seconds"].notna()]
    if trained.empty or run.cycles:
        return None
    nearest = trained[trained["log10_compression"] == trained["log10_compression"].max()]
    pruned = own[like & (own["pruner"] == run.pruner) & ~own["isometry"] & (own["log10_compression"] > 0)]
    pruning = pruned["prune_seconds"].median() if len(pruned) else measured.pruning(run)
    return float(recipe(run.recipe, run.dataset, run.model).epochs * nearest["epoch_seconds"].median() + pruning)
