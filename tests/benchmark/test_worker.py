import json
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest
from benchmark.drivers import wait_for

from synflow_lib import devices
from synflow_lib.benchmark import claims, records, worker
from synflow_lib.benchmark.worker import attempt
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import checkpoint
from synflow_lib.training.checkpoint import STOP

HERE = {"device": "cpu", "threads": 1, "speed": None, "sharing": 1}


def test_attempt_tells_the_status(quick):
    answer = attempt(quick, "cpu", 1)
    record = records.read(quick.key)
    seconds = record["prune_seconds"] + record["train_seconds"]
    assert answer == {"key": quick.key, "status": "done", "seconds": seconds} and seconds > 0
    assert attempt(quick, "cpu", 1) == {"key": quick.key, "status": "done"}  # now it took nothing


def test_whoever_does_a_run_keeps_the_memory_it_frees(quick, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: asked.append(records.read(quick.key)))
    assert attempt(quick, "cpu", 1)["status"] == "done" and asked == [None]  # once, before the run


def test_what_another_process_does_is_elsewhere(quick):
    with claims.claim(quick.key):
        assert attempt(quick, "cpu", 1) == {"key": quick.key, "status": "elsewhere"}
    assert records.read(quick.key) is None


def test_a_stop_ends_a_run_after_its_epoch_and_begins_no_other(slow, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "_write", lambda *_: stopped.append(1))
    stopped = []
    timer = threading.Thread(target=lambda: (wait_for(lambda: claims.held(slow.key)), STOP.set()))
    timer.start()
    try:
        assert attempt(slow, "cpu", 1) == {"key": slow.key, "status": "stopped"}
        timer.join()
        assert attempt(slow, "cpu", 1) == {"key": slow.key, "status": "stopped"}
    finally:
        STOP.clear()
    assert stopped == [1] and records.read(slow.key) is None


def test_a_recorded_failure_is_a_status_and_not_an_error(quick, monkeypatch):
    def broken(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(sys.modules["synflow_lib.benchmark.run"], "execute", broken)
    assert attempt(quick, "cpu", 1) == {"key": quick.key, "status": "failed"}
    assert records.read(quick.key)["error"] == "too large"


def test_what_could_not_be_recorded_is_told(quick, monkeypatch):
    def full(_):
        raise InputError("cannot write: no space")

    monkeypatch.setattr(records, "write", full)
    assert attempt(quick, "cpu", 1) == {"key": quick.key, "status": "unrecorded", "error": "cannot write: no space"}


def test_an_exception_may_be_let_through_once_it_is_recorded(quick, monkeypatch):
    def broken(*_):
        raise TimeoutError("stale file handle")

    monkeypatch.setattr(sys.modules["synflow_lib.benchmark.run"], "execute", broken)
    with pytest.raises(TimeoutError):
        attempt(quick, "cpu", 1, through=(OSError,))
    assert records.read(quick.key)["error"] == "stale file handle"


def test_a_worker_answers_in_json_and_ends_with_its_driver(quick):
    process = subprocess.Popen(
        [sys.executable, "-m", "synflow_lib.benchmark.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    request = {"run": asdict(quick), **HERE}
    with process:
        print(json.dumps(request), file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline())["status"] == "done"
        process.stdin.close()
        assert process.wait(30) == 0
    assert records.find(quick)["threads"] == 1


def test_an_attempt_tells_the_run_its_means(quick, monkeypatch):
    asked = []
    monkeypatch.setattr(worker, "run", lambda spec, **means: asked.append(means) or {"status": "done"})
    attempt(quick, "cuda:1", 2, Speed(fused=True), 3)
    assert asked == [{"device": "cuda:1", "threads": 2, "speed": Speed(fused=True), "sharing": 3}]


def test_a_worker_is_told_to_stop_while_it_works(slow):
    lines = [{"run": asdict(slow), **HERE}, {"stop": True}]
    process = subprocess.Popen(
        [sys.executable, "-m", "synflow_lib.benchmark.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        print(*map(json.dumps, lines), sep="\n", file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline()) == {"key": slow.key, "status": "stopped"}
