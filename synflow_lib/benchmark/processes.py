"""The engine `processes`: worker processes of one thread each, that are given one run at a time.

Ready to start, a worker takes about 3 s of one core, which is the time to import torch. A worker that is killed costs
its run alone, which is tried once more in a fresh one and goes on from its checkpoint; a driver that is killed takes
its workers with it, and what they had not yet saved is lost. A worker that cannot be started leaves its run to the
others; where none is left, the runs are told as not recorded.
"""

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from synflow_lib.benchmark import claims, records
from synflow_lib.benchmark.grid import Run
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training.checkpoint import STOP

log = logging.getLogger(__name__)

LOOK_EVERY = 0.2  # seconds between two looks at STOP

Report = Callable[[dict], None]


def side_by_side(runs: Sequence[Run], places: Sequence[str], threads: int, speed: Speed | None, report: Report) -> None:
    """Do `runs` with one worker per device name in `places`; when STOP is set, those not begun are told as stopped."""
    todo, answers = deque(runs), queue.SimpleQueue()
    with team(places, threads, speed, todo, answers.put) as members:
        heard = 0
        while heard < len(runs):
            with contextlib.suppress(queue.Empty):
                report(answers.get(timeout=LOOK_EVERY))
                heard += 1
            if STOP.is_set():
                stop(members, todo, answers.put)


def stop(members: Sequence["Worker"], todo: deque[Run], report: Report) -> None:
    """Hand out no more runs, and ask each worker to save the one it has."""
    drop(todo, report, status="stopped")
    for worker in members:
        worker.stop()


def drop(todo: deque[Run], report: Report, **answer: str) -> None:
    """Hand out no more runs, and tell `answer` of each."""
    with contextlib.suppress(IndexError):  # nothing is left
        while True:
            report({"key": todo.popleft().key, **answer})


@contextmanager
def team(
    places: Sequence[str], threads: int, speed: Speed | None, todo: deque[Run], report: Report
) -> Iterator[list["Worker"]]:
    """For the block, one worker per device name in `places` works on `todo`, then all are ended, whatever happened.

    One thread waits for each process; `report` is called from there, once for each run whatever becomes of it.
    """
    members = [Worker(place, threads, speed, places.count(place)) for place in places]
    at_work, lock = set(members), threading.Lock()  # to take a run or to leave is one step

    def take(worker: Worker) -> Run | None:
        with lock:
            try:
                return todo.popleft()
            except IndexError:  # nothing is left
                at_work.remove(worker)
                return None

    def leave(worker: Worker, reason: str, *unfinished: Run) -> None:
        with lock:
            at_work.remove(worker)
            todo.extendleft(unfinished)
            if at_work:
                log.warning("%s; its runs are left to the others", reason)
                return
        drop(todo, report, status="unrecorded", error=reason)

    def serve(worker: Worker) -> None:
        while (run := take(worker)) is not None:
            try:
                answer = worker.twice(run)
            except CannotStart as error:
                leave(worker, f"{error}", run)
                return
            except Exception as error:  # a thread that dies in silence would be waited for
                answer = {"key": run.key, "status": "unrecorded", "error": f"{error}" or type(error).__name__}
            report(answer)

    listeners = [threading.Thread(target=serve, args=(worker,), name="listener", daemon=True) for worker in members]
    try:
        for worker, listener in zip(members, listeners, strict=True):
            try:
                listener.start()
            except RuntimeError as error:  # threads count where processes are limited
                leave(worker, f"cannot start a worker: {error}")
        yield members
    finally:
        todo.clear()
        for worker in members:
            worker.kill()
        for worker, listener in zip(members, listeners, strict=True):
            if listener.ident is not None:
                listener.join()
            worker.close()


class WorkerDied(Exception):
    """A worker process ended without an answer; the message says how."""


class CannotStart(Exception):
    """The operating system starts no worker process; the message says why."""


class Worker:
    """One process, started when it is first asked, that does one run at a time.

    A plain subprocess and not `multiprocessing`: it works from a notebook, a script without a __main__ guard and the
    command line alike, and its number of threads is set before torch is imported there.
    """

    def __init__(self, device: str, threads: int, speed: Speed | None = None, sharing: int = 1):
        self.request = {"device": device, "threads": threads, "speed": speed and asdict(speed), "sharing": sharing}
        self.threads = threads
        self.process: subprocess.Popen | None = None
        self.killed = False
        self.stopping = False
        self.lock = threading.Lock()  # kill and stop come from another thread than the rest

    def twice(self, run: Run) -> dict:
        """Have `run` done, in a fresh process if the first one dies; a second death is recorded as a failure.

        Raises CannotStart where there is no process for it.
        """
        for _ in range(2):
            try:
                return self.ask(run)
            except WorkerDied as death:
                reason = f"its process died twice: {death}"
                self.close()
            if self.killed or self.stopping:
                return {"key": run.key, "status": "stopped"}
        return failed(run, reason)

    def ask(self, run: Run) -> dict:
        """Send one run and wait for the answer; raises WorkerDied where none comes, CannotStart without a process."""
        process = self._running()
        try:
            with self.lock:
                self._send({"run": asdict(run), **self.request})
        except OSError:
            raise WorkerDied(self._post_mortem(process)) from None
        answer = process.stdout.readline()
        if not answer.endswith("\n"):
            raise WorkerDied(self._post_mortem(process))
        return json.loads(answer)

    def stop(self) -> None:
        """Let the run in progress save its checkpoint and end; once is enough."""
        with self.lock:
            if not self.stopping and self.process is not None:
                self.stopping = True
                with contextlib.suppress(OSError):  # it is dead already
                    self._send({"stop": True})

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

    def _send(self, request: dict) -> None:
        """Write one line; under the lock, since a stop and a run may be sent at the same time."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

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
        settings = {"PYTHONPATH": search, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number}
        try:
            with contextlib.ExitStack() as opened:
                self.log = opened.enter_context(tempfile.TemporaryFile())
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "synflow_lib.benchmark.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.log,
                    text=True,
                    encoding="utf-8",
                    env={**os.environ, **settings},
                    start_new_session=True,  # Ctrl-C reaches the driver alone, which then stops or ends its workers
                )
                opened.pop_all()  # from here on `close` closes it
        except OSError as error:
            raise CannotStart(f"cannot start a worker: {error.strerror or error}") from error

    def _post_mortem(self, process: subprocess.Popen) -> str:
        """How the process ended, in words."""
        code = process.wait()
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"signal {-code}, often for want of memory" if code < 0 else f"exit status {code}"
        return ": ".join([how, *last])


def failed(run: Run, reason: str) -> dict:
    """Record `run` as failed for `reason` and return the answer; "unrecorded" where that cannot be written.

    Where another driver has it by now, or has even finished it, there is nothing to record.
    """
    try:
        with claims.claim(run.key) as mine:
            if not mine:
                return {"key": run.key, "status": "elsewhere"}
            if (record := records.find(run)) is not None:
                return {"key": run.key, "status": record["status"]}
            records.write({**asdict(run), "key": run.key, "status": "failed", "error": reason})
    except InputError as error:
        return {"key": run.key, "status": "unrecorded", "error": str(error)}
    return {"key": run.key, "status": "failed"}
