"""Runs that take a fraction of a second, or long enough to be interrupted."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import pytest

from synflow_lib.benchmark import Run, first_cycle, records
from synflow_lib.training import recipe


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """No test goes on from the first cycle of another."""
    first_cycle.forget()


@pytest.fixture
def quick() -> Run:
    return Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.25)


@pytest.fixture
def slow() -> Run:
    """Two epochs of about a second."""
    return Run("digits", "vgg11", "magnitude", 1.0, recipe="smoke", width=0.25)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts, under "all", how often a network is evaluated here: once an epoch, and once before the first."""
    counted = Counter()
    module = sys.modules["synflow_lib.training.train"]
    original = module.evaluate

    def evaluate(*arguments):
        counted["all"] += 1
        return original(*arguments)

    monkeypatch.setattr(module, "evaluate", evaluate)
    return counted


@pytest.fixture
def record() -> Callable[..., dict]:
    """A function (run, status, **more) -> record that writes what `run` would have recorded, in short, and `more`."""

    def made(run: Run, status: str = "done", **more) -> dict:
        settings = recipe(run.recipe, run.dataset, run.model).settings()
        results = {"accuracy_last": 50.0, "accuracy_best": 60.0, "best_epoch": 1, "curve": [{"epoch": 0}, {"epoch": 2}]}
        results |= {"settings": settings, "compression": run.compression, "prune_seconds": 1.0, "train_seconds": 10.0}
        extra = {"error": "it broke"} if status == "failed" else results
        written = {**asdict(run), "key": run.key, "status": status, **extra, **more}
        records.write(written)
        return written

    return made
