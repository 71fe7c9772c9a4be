"""How many runs are done: one after another, or in worker processes of one thread each.

Ready to start, a worker takes about 3 s of one core, which is the time to import torch. A worker that is killed costs
its run alone, which is tried once more in a fresh one; a driver that is killed takes its workers with it and loses
the runs in flight, since every finished run is recorded at once.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from synflow_lib import data, devices, paths
from synflow_lib.benchmark import records
from synflow_lib.benchmark.grid import Run
from synflow_lib.benchmark.progress import Progress
from synflow_lib.benchmark.worker import attempt
from synflow_lib.errors import InputError, lookup

Report = Callable[[dict], None]


def run_all(
    runs: Iterable[Run],
    engine: str = "processes",
    workers: int | None = None,
    device: str = "auto",
    progress: bool = True,
    threads: int = 1,
) -> pd.DataFrame:
    """Do every run of `runs` that has no record yet, and return `records.table(runs)`: one row each, in their order.

    `workers` defaults to the number of usable cores, or of GPUs, but not more than there are runs to do; one worker
    means this process. Each uses `threads` CPU threads; a run's result does not depend on the engine. Runs that fail
    are recorded with their reason, and the others go on. Raises InputError, before any work, for a run, a device or
    a folder that cannot be used, and at once where a record cannot be written.
    """
    runs = [run.validate() for run in runs]
    serve = lookup(ENGINES, engine, "engine")
    resolved = devices.resolve(device)
    if threads < 1 or (workers is not None and workers < 1):
        raise InputError(f"workers and threads must be at least 1, not {workers} and {threads}")
    pending = [run for run in {run.key: run for run in runs}.values() if records.find(run) is None]
    if pending:
        paths.require_writable(paths.records())
    for name in dict.fromkeys(run.dataset for run in pending):
        data.prepare(name)  # once, here: not by every worker at the same time
    workers = min(workers or default_workers(resolved), len(pending))
    different = len({run.key for run in runs})
    with Progress(different, different - len(pending), shown=progress) as report:
        (serial if workers <= 1 else serve)(pending, workers, resolved, threads, report)
    return records.table(runs)


def default_workers(device: torch.device) -> int:
    """The number of cores this process may use, or of GPUs."""
    if device.type != "cpu":
        return torch.cuda.device_count() if device.type == "cuda" else 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serial(runs: Sequence[Run], workers: int, device: torch.device, threads: int, report: Report) -> None:
    """One run after another in this process."""
    for run in runs:
        report(attempt(run, str(device), threads))


def processes(runs: Sequence[Run], workers: int, device: torch.device, threads: int, report: Report) -> None:
    """`workers` processes side by side, each with one run at a time; over several GPUs they take turns."""
    places = [str(device)] * workers
    if device.type == "cuda":
        places = [f"cuda:{(device.index + i) % torch.cuda.device_count()}" for i in range(workers)]
    todo, answers = deque(runs), queue.SimpleQueue()
    with team(places, threads, todo, answers.put):
        for _ in runs:
            report(answers.get())


ENGINES: dict[str, Callable[[Sequence[Run], int, torch.device, int, Report], None]] = {
    "serial": serial,
    "processes": processes,
}


@contextmanager
def team(places: Sequence[str], threads: int, todo: deque[Run], report: Report) -> Iterator[None]:
    """For the block, one worker per device name in `places` works on `todo`, then all are ended, whatever happened.

    One thread waits for each process; `report` is called from there.
    """
    members = [Worker(place, threads) for place in places]

    def serve(worker: Worker) -> None:
        while True:
            try:
                run = todo.popleft()
            except IndexError:  # nothing is left
                return
            report(worker.twice(run))

    listeners = [threading.Thread(target=serve, args=(worker,), name="listener", daemon=True) for worker in members]
    try:
        for listener in listeners:
            listener.start()
        yield
    finally:
        todo.clear()
        for worker in members:
            worker.kill()
        for worker, listener in zip(members, listeners, strict=True):
            listener.join()
            worker.close()


class WorkerDied(Exception):
    """A worker process ended without an answer; the message says how."""


class Worker:
    """One process, started when it is first asked, that does one run at a time.

    A plain subprocess and not `multiprocessing`: it works from a notebook, a script without a __main__ guard and the
    command line alike, and its number of threads is set before torch is imported there.
    """

    def __init__(self, device: str, threads: int):
        self.device = device
        self.threads = threads
        self.process: subprocess.Popen | None = None
        self.killed = False
        self.lock = threading.Lock()  # kill comes from another thread than the rest

    def twice(self, run: Run) -> dict:
        """Have `run` done, in a fresh process if the first one dies; a second death is recorded as a failure."""
        for _ in range(2):
            try:
                return self.ask(run)
            except WorkerDied as death:
                reason = f"its process died twice: {death}"
                self.close()
            if self.killed:
                return {"key": run.key, "status": "killed"}
        try:
            records.write({**asdict(run), "key": run.key, "status": "failed", "error": reason})
        except InputError as error:
            return {"key": run.key, "status": "unrecorded", "error": str(error)}
        return {"key": run.key, "status": "failed"}

    def ask(self, run: Run) -> dict:
        """Send one run, wait for the answer; raises WorkerDied where none comes."""
        process = self._running()
        request = {"run": asdict(run), "device": self.device, "threads": self.threads}
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
        except OSError:
            raise WorkerDied(self._post_mortem(process)) from None
        answer = process.stdout.readline()
        if not answer.endswith("\n"):
            raise WorkerDied(self._post_mortem(process))
        return json.loads(answer)

    def kill(self) -> None:
        """End the process for good, in the middle of a run if need be."""
        with self.lock:
            self.killed = True
            if self.process is not None:
                self.process.kill()

    def close(self) -> None:
        """Let go of a process that has ended, so that the next request starts a fresh one."""
        with self.lock:
            if self.process is not None:
                self.process.wait()
                with contextlib.suppress(OSError):  # what was still to be sent has no reader any more
                    self.process.stdin.close()
                self.process.stdout.close()
                self.log.close()
                self.process = None

    def _running(self) -> subprocess.Popen:
        with self.lock:
            if self.killed:
                raise WorkerDied("killed")
            if self.process is None:
                self._start()
            return self.process

    def _start(self) -> None:
        number = str(self.threads)
        package = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "synflow_lib.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number},
            start_new_session=True,  # Ctrl-C reaches the driver alone, which then ends its workers
        )

    def _post_mortem(self, process: subprocess.Popen) -> str:
        """How the process ended, in words."""
        code = process.wait()
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"signal {-code}, often for want of memory" if code < 0 else f"exit status {code}"
        return ": ".join([how, *last])
