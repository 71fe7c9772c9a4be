import errno
import os
import signal
import subprocess
import tempfile
import threading
from collections import deque
from dataclasses import replace

import pytest
from benchmark.drivers import epochs_saved, wait_for

from synflow_lib import paths
from synflow_lib.benchmark import claims, records, run_all
from synflow_lib.benchmark.processes import Worker, failed, team
from synflow_lib.benchmark.progress import Progress
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError


@pytest.fixture
def runs(quick):
    return [replace(quick, pruner=pruner) for pruner in ("random", "snip", "synflow")]


@pytest.fixture
def deaths(monkeypatch):
    """Kill the worker processes as they are asked, so often as the test says: kill -9, before they can answer."""
    left = []
    original = Worker._running

    def running(worker):
        process = original(worker)
        if left:
            left.pop()
            process.kill()
            process.wait()
        return process

    monkeypatch.setattr(Worker, "_running", running)
    return left


@pytest.fixture
def refusals(monkeypatch):
    """Refuse the starts of worker processes whose numbers (0, 1, ...) the test gives, as a limit on processes does."""
    refused, counted = set(), []
    original = subprocess.Popen

    def start(command, **options):
        if command[-1] == "synflow_lib.benchmark.worker":
            counted.append(command)
            if len(counted) - 1 in refused:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return original(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    return refused


@pytest.fixture
def worker():
    made = Worker("cpu", 1, Speed(channels_last=True))
    yield made
    made.kill()
    made.close()


def test_each_worker_knows_how_many_share_its_gpu():
    with team(["cuda:0", "cuda:1", "cuda:0"], 1, None, deque(), pytest.fail) as members:
        assert [(member.request["device"], member.request["sharing"]) for member in members] == [
            *(("cuda:0", 2), ("cuda:1", 1), ("cuda:0", 2))
        ]


def test_a_killed_worker_costs_its_run_alone_which_is_tried_again(runs, deaths):
    deaths.append(1)
    table = run_all(runs, "processes", workers=2, device="cpu", progress=False)
    assert table["status"].tolist() == ["done"] * 3 and not deaths


def test_a_run_whose_worker_dies_twice_is_recorded_as_failed(quick, deaths, worker):
    deaths.extend([1, 1])
    assert worker.twice(quick) == {"key": quick.key, "status": "failed"}
    assert records.read(quick.key)["error"] == "its process died twice: signal 9, often for want of memory"
    assert worker.twice(quick)["status"] == "done"


def test_a_worker_that_is_killed_in_the_middle_goes_on_from_its_checkpoint(quick, worker, monkeypatch):
    monkeypatch.setenv("SYNFLOW_CHECKPOINT_SECONDS", "0")
    longer = replace(quick, recipe="fast:epochs=100")  # of which some are left when the second is seen to be over
    killed, later = [], []

    def kill():
        wait_for(lambda: (epochs_saved(longer) or 0) >= 2)
        killed.append(worker.process.pid)
        worker.process.kill()
        wait_for(lambda: later.append(epochs_saved(longer)) or records.find(longer))

    killer = threading.Thread(target=kill)
    killer.start()
    assert worker.twice(longer)["status"] == "done" and worker.process.pid not in killed
    killer.join()
    assert killed and min(filter(None, later)) >= 2  # it never began anew
    speed = records.find(longer)["speed"]
    assert speed["channels_last"] and not speed["fused"]


def test_where_no_worker_can_be_started_the_run_ends_with_the_reason(runs, refusals, monkeypatch):
    logs = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **there: logs.append(original(**there)) or logs[-1])
    refusals.update({0, 1})
    with pytest.raises(InputError, match=r"^cannot start a worker: Resource temporarily unavailable$"):
        run_all(runs, "processes", workers=2, device="cpu", progress=False)
    assert len(logs) >= 2 and all(log.closed for log in logs)
    assert not any(thread.name == "listener" for thread in threading.enumerate())
    assert run_all(runs, "processes", workers=2, device="cpu", progress=False)["status"].tolist() == ["done"] * 3


def test_a_worker_that_cannot_be_started_leaves_its_runs_to_the_others(runs, refusals, caplog):
    refusals.add(0)
    table = run_all(runs, "processes", workers=2, device="cpu", progress=False)
    assert table["status"].tolist() == ["done"] * 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "cannot start a worker: Resource temporarily unavailable; its runs are left to the others"


def test_what_is_done_is_kept_where_a_dead_worker_cannot_be_replaced(runs, refusals, deaths):
    kept = []

    def report(answer):
        kept.append(answer)
        deaths.extend([1] * (len(kept) == 1))

    refusals.add(1)
    with team(["cpu"], 1, None, deque(runs), report):
        wait_for(lambda: len(kept) == 3)
    assert [answer["status"] for answer in kept] == ["done", "unrecorded", "unrecorded"]
    assert [answer["key"] for answer in kept] == [run.key for run in runs]  # the one that it had is not forgotten
    assert [records.find(run) is None for run in runs] == [False, True, True]


def test_where_no_thread_can_be_started_the_run_ends_with_the_reason(runs, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    answers = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with team(["cpu", "cpu"], 1, None, deque(runs), answers.append):
            assert {answer["error"] for answer in answers} == {"cannot start a worker: can't start new thread"}
    assert [answer["key"] for answer in answers] == [run.key for run in runs]


def test_an_answer_that_cannot_be_read_is_told_and_not_waited_for(runs, monkeypatch):
    monkeypatch.setattr(Worker, "ask", lambda *_: 1 // 0)
    with pytest.raises(InputError, match="division"):
        run_all(runs, "processes", workers=2, device="cpu", progress=False)


def test_a_death_does_not_hide_what_another_process_does_or_did(quick):
    with claims.claim(quick.key):
        assert failed(quick, "dead")["status"] == "elsewhere"
    run_all([quick], device="cpu", progress=False)
    assert failed(quick, "dead")["status"] == "done" and records.find(quick) is not None


def test_a_driver_in_a_hurry_kills_its_workers(runs, monkeypatch):
    started = []
    original = Worker._start

    def start(worker):
        original(worker)
        started.append(worker.process)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "_start", start)
    monkeypatch.setattr(Progress, "__call__", interrupted)
    many = [replace(run, seed=seed) for run in runs for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        run_all(many, workers=2, device="cpu", progress=False)
    assert len(started) == 2 and all(process.returncode == -signal.SIGKILL for process in started)
    assert not any(thread.name == "listener" for thread in threading.enumerate())
    assert 0 < len(list(paths.records().glob("*.json"))) < len(many) and not claims.running()
