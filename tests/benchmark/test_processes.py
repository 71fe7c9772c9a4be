import errno
import signal
import threading
from collections import deque
from dataclasses import replace

import pytest
from benchmark.drivers import epochs_saved, wait_for

from synflow_lib import paths
from synflow_lib.benchmark import claims, processes, records, run_all
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


@pytest.mark.parametrize("places", [2, 3])
def test_where_no_worker_can_be_started_it_is_one_sentence(runs, places, monkeypatch):
    opened = []
    original = processes.tempfile.TemporaryFile

    def none(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.tempfile, "TemporaryFile", lambda **how: opened.append(original(**how)) or opened[-1])
    monkeypatch.setattr(processes.subprocess, "Popen", none)
    with pytest.raises(InputError, match=r"^cannot start a worker process \(Resource temporarily.*fewer --workers"):
        run_all(runs, "processes", workers=places, device="cpu", progress=False)
    assert len(opened) > places and all(file.closed for file in opened)


def test_a_worker_that_cannot_be_started_leaves_its_run_to_the_others(runs, monkeypatch):
    original, tried = Worker._started, []

    def started(worker, *rest):
        tried.append(worker)
        if len(tried) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return original(worker, *rest)

    monkeypatch.setattr(Worker, "_started", started)
    table = run_all(runs, "processes", workers=2, device="cpu", progress=False)
    assert table["status"].tolist() == ["done"] * 3 and len(tried) == 2


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
