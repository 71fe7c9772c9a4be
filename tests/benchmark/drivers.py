"""Drivers in processes of their own, to be killed and interrupted, and what tells how much work a resumed run did."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from synflow_lib.benchmark import Run, claims
from synflow_lib.training.checkpoint import HEADER

# The arguments: an engine, and the runs as JSON. Every run that is really begun leaves a line in the file "starts".
SCRIPT = """
import json, os, sys
from dataclasses import asdict
from synflow_lib import paths
from synflow_lib.benchmark import Run, run_all
module = sys.modules["synflow_lib.benchmark.run"]
original = module.execute

def execute(run, *rest):
    with open(paths.records() / "starts", "a") as file:
        file.write(run.key + "\\n")
    return original(run, *rest)

module.execute = execute
runs = [Run(**fields) for fields in json.loads(sys.argv[2])]
print("ready", flush=True)
sys.stdin.readline()
table = run_all(runs, sys.argv[1], workers=2, device="cpu", address=json.loads(sys.argv[3]))
print(table["status"].tolist())
"""


def start(runs: list[Run], engine: str, address: str | None = None) -> subprocess.Popen:
    """A driver that waits, ready, for a line on its standard input."""
    fields = json.dumps([vars(run) for run in runs])
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, engine, fields, json.dumps(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout.readline() == "ready\n", driver.communicate()[1]
    return driver


def go(driver: subprocess.Popen) -> None:
    """Let a driver begin."""
    driver.stdin.write("\n")
    driver.stdin.flush()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return as soon as `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def epochs_saved(run: Run) -> int | None:
    """How many epochs the checkpoint of `run` holds, None where there is none."""
    try:
        # Opened once: safetensors does it twice, and in between the run may end, and the file go.
        with claims.checkpoint(run.key).open("rb") as file:
            metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    except FileNotFoundError:
        return None
    return len(json.loads(metadata[HEADER])["training"]["history"]["curve"]) - 1


def starts(folder: Path) -> list[str]:
    """The keys of the runs that were begun, in the order in which they were."""
    return (folder / "starts").read_text().split()
