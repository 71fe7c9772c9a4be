import json
import subprocess
import sys
from dataclasses import asdict

from synflow_lib.benchmark import records
from synflow_lib.benchmark.worker import attempt
from synflow_lib.errors import InputError


def test_attempt_tells_the_status(quick):
    assert attempt(quick, "cpu", 1) == {"key": quick.key, "status": "done"}


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


def test_a_worker_answers_in_json_and_ends_with_its_driver(quick):
    process = subprocess.Popen(
        [sys.executable, "-m", "synflow_lib.benchmark.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        print(json.dumps({"run": asdict(quick), "device": "cpu", "threads": 1}), file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline()) == {"key": quick.key, "status": "done"}
        process.stdin.close()
        assert process.wait(30) == 0
    assert records.find(quick)["threads"] == 1
