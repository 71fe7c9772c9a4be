import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synflow_lib import data
from synflow_lib.benchmark import engines, records, run_all
from synflow_lib.benchmark.engines import Worker, default_workers
from synflow_lib.errors import InputError

SOME = ("random", "snip", "synflow")


@pytest.fixture
def runs(quick):
    return [replace(quick, pruner=pruner) for pruner in SOME]


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


def test_both_engines_give_the_same_bits(runs, monkeypatch, tmp_path):
    results = []
    for engine in ("serial", "processes"):
        monkeypatch.setenv("SYNFLOW_RECORDS", str(tmp_path / engine))
        table = run_all(runs, engine, workers=2, device="cpu", progress=False)
        assert table["pruner"].tolist() == list(SOME) and set(table["status"]) == {"done"}
        curves = [[row["test_loss"] for row in records.read(run.key)["curve"]] for run in runs]
        results.append((curves, [records.read(run.key)["layers"] for run in runs]))
    assert results[0] == results[1]


def test_recorded_and_repeated_runs_are_not_done_again(runs, monkeypatch):
    run_all(runs, "serial", device="cpu", progress=False)
    monkeypatch.setattr(engines, "attempt", lambda *_: pytest.fail("done again"))
    table = run_all([*runs, runs[0]], device="cpu", progress=False)
    assert table["key"].tolist() == [run.key for run in [*runs, runs[0]]]
    assert run_all([], device="cpu", progress=False).empty


def test_one_run_needs_no_process(quick, monkeypatch):
    monkeypatch.setattr(engines, "team", lambda *_: pytest.fail("started processes"))
    assert run_all([quick], "processes", workers=4, device="cpu", progress=False)["status"].tolist() == ["done"]


def test_a_killed_worker_costs_its_run_alone_which_is_tried_again(runs, deaths):
    deaths.append(1)
    table = run_all(runs, "processes", workers=2, device="cpu", progress=False)
    assert table["status"].tolist() == ["done"] * 3 and not deaths


def test_a_run_whose_worker_dies_twice_is_recorded_as_failed(quick, deaths):
    deaths.extend([1, 1])
    worker = Worker("cpu", 1)
    assert worker.twice(quick) == {"key": quick.key, "status": "failed"}
    assert records.read(quick.key)["error"] == "its process died twice: signal 9, often for want of memory"
    assert worker.twice(quick)["status"] == "done"
    worker.kill()
    worker.close()


def test_a_failing_run_does_not_stop_the_others(runs, monkeypatch):
    broken, module = replace(runs[0], seed=7), sys.modules["synflow_lib.benchmark.run"]
    original = module.execute

    def execute(run, *rest):
        return original(run, *rest) if run != broken else 1 // 0

    monkeypatch.setattr(module, "execute", execute)
    table = run_all([broken, *runs], "serial", device="cpu", progress=False)
    assert table["status"].tolist() == ["failed", "done", "done", "done"]
    assert table["error"][0] == "integer division or modulo by zero"


def test_a_record_that_cannot_be_written_stops_everything_at_once(runs, monkeypatch):
    def full(_):
        raise InputError("cannot write the record: No space left on device")

    monkeypatch.setattr(records, "write", full)
    done = []
    original = engines.attempt
    monkeypatch.setattr(engines, "attempt", lambda *a: done.append(1) or original(*a))
    with pytest.raises(InputError, match="No space left"):
        run_all(runs, "serial", device="cpu", progress=False)
    assert len(done) == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"engine": "ray"}, "unknown engine 'ray'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"workers": 0}, "workers and threads must be at least 1"),
        ({"threads": 0}, "workers and threads must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_any_work(wrong, sentence, quick, monkeypatch):
    monkeypatch.setattr(data, "prepare", lambda _: pytest.fail("prepared data"))
    with pytest.raises(InputError, match=sentence):
        run_all([quick], **{"device": "cpu", "progress": False, **wrong})
    with pytest.raises(InputError, match="unknown model"):
        run_all([quick, replace(quick, model="vgg")], device="cpu", progress=False)


def test_workers_default_to_the_cores_that_may_be_used():
    assert 1 <= default_workers(torch.device("cpu")) <= os.cpu_count()
    assert default_workers(torch.device("mps")) == 1


def test_an_interrupted_driver_ends_its_workers(runs, monkeypatch):
    started = []
    original = Worker._start

    def start(worker):
        original(worker)
        started.append(worker.process)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "_start", start)
    monkeypatch.setattr(engines.Progress, "__call__", interrupted)
    many = [replace(run, seed=seed) for run in runs for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        run_all(many, workers=2, device="cpu", progress=False)
    assert len(started) == 2 and all(process.returncode == -signal.SIGKILL for process in started)
    assert not any(thread.name == "listener" for thread in threading.enumerate())
    assert 0 < (records.table(many)["status"] == "done").sum() < len(many)


SCRIPT = """
import sys
from synflow_lib.benchmark import grid, run_all
print("started", flush=True)
run_all(grid("digits", "mlp", ["random", "snip", "synflow"], 1, (0, 1), "smoke", width=0.25), workers=2, device="cpu")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_script_without_a_guard_survives_its_own_death(tmp_path, quick):
    """kill -9 of the driver in the middle: what was recorded is whole, no worker stays, the second call finishes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "records"
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = _children(driver.pid)
    driver.kill()
    driver.wait()
    kept = {path: path.read_text() for path in folder.glob("*.json")}
    assert kept and all(json.loads(text)["status"] == "done" for text in kept.values())
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(_alive(pid) for pid in workers)
    kept.update({path: path.read_text() for path in folder.glob("*.json")})  # finished between the two signals
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=300)
    assert len(list(folder.glob("*.json"))) == 6 and not list(folder.glob("*.damaged"))
    assert all(path.read_text() == text for path, text in kept.items())


def _children(pid: int) -> list[int]:
    """The processes that any thread of `pid` has started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
