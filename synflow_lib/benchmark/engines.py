"""How many runs are done: one after another, in worker processes, or as tasks on a cluster, with the same results.

Every engine does what `worker.attempt` does and tells each answer. What they share is here: nothing is done twice,
also not by two drivers on one folder of records; what another driver leaves unfinished is taken over; an interrupt
lets the runs in progress save themselves first.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch

from synflow_lib import data, devices, paths
from synflow_lib.benchmark import claims, records
from synflow_lib.benchmark.grid import Run
from synflow_lib.benchmark.processes import side_by_side
from synflow_lib.benchmark.progress import Progress
from synflow_lib.benchmark.stopping import gently
from synflow_lib.benchmark.worker import attempt
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError, lookup
from synflow_lib.training.checkpoint import STOP

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5  # seconds between two looks at what another driver is doing

Report = Callable[[dict], None]
Serve = Callable[[Sequence[Run], Report], None]


@dataclass(frozen=True)
class Means:
    """With what the runs are done; `device` is a name as the user gives it, `workers` None the engine's choice.

    `speed` is for every device, or only what differs from the fastest choice for the one that a run gets.
    """

    workers: int | None = None
    device: str = "auto"
    threads: int = 1
    speed: Speed | Mapping[str, bool] | None = None
    runs_per_gpu: int = 1
    address: str | None = None

    def __post_init__(self):
        if self.threads < 1 or (self.workers is not None and self.workers < 1):
            raise InputError(f"workers and threads must be at least 1, not {self.workers} and {self.threads}")
        if self.runs_per_gpu < 1:
            raise InputError(f"runs_per_gpu must be at least 1, not {self.runs_per_gpu}")
        for name in self.speed if isinstance(self.speed, Mapping) else ():
            lookup(asdict(Speed()), name, "speed feature")


def speed_on(device: torch.device, wanted: Speed | Mapping[str, bool] | None) -> Speed | None:
    """`wanted`, of which a mapping changes the fastest choice for `device`; InputError for what `device` has not."""
    speed = replace(Speed.auto(device), **wanted) if isinstance(wanted, Mapping) else wanted
    return speed and speed.require(device)


def run_all(
    runs: Iterable[Run],
    engine: str = "processes",
    workers: int | None = None,
    device: str = "auto",
    progress: bool = True,
    threads: int = 1,
    *,
    speed: Speed | Mapping[str, bool] | None = None,
    runs_per_gpu: int = 1,
    address: str | None = None,
) -> pd.DataFrame:
    """Do every run of `runs` that has no record yet, and return `records.table(runs)`: one row each, in their order.

    `workers` defaults to as many as fit on the usable cores with `threads` CPU threads each, or to the number of GPUs
    times `runs_per_gpu`, but not more than there are runs to do; one worker means this process. `address` is where
    Ray's head is (host:port or "auto"), None a Ray of its own. `speed` has the features of every run; a mapping only
    those to switch on or off, the others being the fastest choice for the device that does a run. A run's result does
    not depend on the engine. Runs that fail are recorded with their reason, and the others go on; a run that another
    driver is doing is waited for. The first interrupt lets the runs in progress end their epoch and keeps their
    checkpoints, then raises KeyboardInterrupt.
    Raises InputError, before any work, for a run, a device, a folder or a cluster that cannot be used, and at once
    where a record cannot be written.
    """
    runs = [run.validate() for run in runs]
    opened = lookup(ENGINES, engine, "engine")
    means = Means(workers, device, threads, speed, runs_per_gpu, address)
    if engine != "ray":  # whose driver may well have no GPU: its nodes count
        there = devices.resolve(device)
        means = replace(means, device=str(there), speed=speed_on(there, speed))
    different = {run.key: run for run in runs}
    pending = [run for run in different.values() if records.find(run) is None]
    if pending:
        paths.require_writable(paths.records())
    with Progress(len(different), len(different) - len(pending), shown=progress) as report:
        if pending:
            with opened(means, len(pending), report) as serve:
                for name in dict.fromkeys(name for run in pending for name in (run.dataset, run.source) if name):
                    data.prepare(name)  # once, here: not by every worker at the same time
                with gently():
                    finish(pending, serve, report)
    return records.table(runs)


def finish(runs: Sequence[Run], serve: Serve, report: Progress) -> None:
    """Have `runs` served, wait for those that another driver does, and take over what it left unfinished."""
    before = {run.key: records.read(run.key) for run in runs}
    by_key = {run.key: run for run in runs}
    away: dict[str, Run] = {}
    stopped: list[str] = []
    warned: set[str] = set()

    def heard(answer: dict) -> None:
        for sentence in set(answer.get("warnings", ())) - warned:
            warned.add(sentence)
            log.warning(sentence)
        if answer["status"] == "elsewhere":
            away[answer["key"]] = by_key[answer["key"]]
        elif answer["status"] == "stopped":
            stopped.append(answer["key"])
        else:
            report(answer)

    while runs or away:
        if runs:
            serve(runs, heard)
        if stopped or (away and STOP.is_set()):
            raise KeyboardInterrupt
        runs = abandoned(away, before, report)
        if away and not runs:
            report.waiting(len(away))
            time.sleep(LOOK_EVERY)


def abandoned(away: dict[str, Run], before: dict[str, dict | None], report: Report) -> list[Run]:
    """Remove from `away` and return the runs that nobody does any more; those with a new record are removed and told.

    A failure that was not there `before` is the other driver's answer, and not a reason to try once more.
    """
    free = [run for run in away.values() if not claims.held(run.key)]  # first this, then the record: never the reverse
    left = []
    for run in free:
        del away[run.key]
        record = records.read(run.key)
        if record != before[run.key] and record is not None:
            report({"key": run.key, "status": record["status"]})
        else:
            left.append(run)
    return left


def default_workers(device: torch.device, runs_per_gpu: int = 1, threads: int = 1) -> int:
    """How many runs of `threads` threads fit on the cores, at least one; the number of GPUs times what share one."""
    if device.type != "cpu":
        return runs_per_gpu * (torch.cuda.device_count() if device.type == "cuda" else 1)
    return max(1, cores() // threads)


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def serial(means: Means, number: int, progress: Progress) -> Iterator[Serve]:
    """One run after another in this process."""
    progress.hours_of(means.device, means.threads)

    def serve(runs: Sequence[Run], report: Report) -> None:
        for run in runs:
            report(attempt(run, means.device, means.threads, means.speed))

    yield serve


@contextmanager
def processes(means: Means, number: int, progress: Progress) -> Iterator[Serve]:
    """Processes side by side, each with one run at a time; over several GPUs they take turns."""
    device = torch.device(means.device)
    workers = min(means.workers or default_workers(device, means.runs_per_gpu, means.threads), number)
    if workers <= 1:
        with serial(means, number, progress) as serve:
            yield serve
        return
    places = [means.device] * workers
    if device.type == "cuda":
        places = [f"cuda:{(device.index + i) % torch.cuda.device_count()}" for i in range(workers)]
        if len(set(places)) < workers and not devices.runs_share_gpus():
            log.warning(
                "runs that share a GPU take turns and gain little without NVIDIA's Multi-Process Service: "
                "`nvidia-cuda-mps-control -d` starts it"
            )
    progress.hours_of(means.device, means.threads, workers / len(set(places)))
    yield lambda runs, report: side_by_side(runs, places[: len(runs)], means.threads, means.speed, report)


@contextmanager
def ray(means: Means, number: int, progress: Progress) -> Iterator[Serve]:
    """Tasks on a Ray cluster, which may be this machine; see `cluster`, which alone needs Ray."""
    from synflow_lib.benchmark import cluster

    wanted = means.workers * means.threads if means.workers else cores()
    with cluster.joined(means.address, min(wanted, number * means.threads)):
        tasks = cluster.Tasks(means.device, means.threads, means.speed, means.runs_per_gpu, means.workers)
        progress.hours_of(tasks.device, means.threads, means.runs_per_gpu)
        yield tasks.serve


Engine = Callable[[Means, int, Progress], AbstractContextManager[Serve]]
ENGINES: dict[str, Engine] = {"serial": serial, "processes": processes, "ray": ray}
