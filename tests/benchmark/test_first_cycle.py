"""Runs that begin with the same training share it, and come out as if they had not."""

from dataclasses import replace

import pytest
import torch

from synflow_lib import tensors
from synflow_lib.benchmark import claims, first_cycle, records, run
from synflow_lib.benchmark.run import execute
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import Stopped, checkpoint

CPU = torch.device("cpu")
AUTO = Speed.auto(CPU)
ALONE = replace(AUTO, share_cycles=False)
TRAINING = 3  # evaluations of one by `smoke`: before it, and after each of two epochs


def result(record: dict) -> dict:
    """What came out, without the times."""
    names = ("status", "cycle_results", "layers", "compression", "connected", "accuracy_last", "isometry_results")
    curve = [{name: value for name, value in row.items() if name != "seconds"} for row in record["curve"]]
    return {"curve": curve, **{name: record[name] for name in names}}


@pytest.mark.parametrize(
    "change",
    [
        {"cycles": 3},
        {"rewind": False},
        {"pruner": "snip"},
        {"pruner": "synflow", "iterations": 5},
        {"log10_compression": 0.5},
        {"invert": True, "scope": "layer", "isometry": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_with_the_first_cycle_of_another_comes_out_to_the_same_bits(change, quick, evaluations):
    first = replace(quick, model="vgg11", width=0.03, cycles=1)
    other = replace(first, **change)
    alone = result(execute(other, CPU, ALONE))
    for file in claims.checkpoints(other.key):
        file.unlink()
    execute(first, CPU, AUTO)
    before = evaluations["all"]
    assert result(execute(other, CPU, AUTO)) == alone
    assert evaluations["all"] - before == TRAINING * other.cycles  # instead of one more


@pytest.mark.parametrize("change", [{"seed": 1}, {"width": 0.5}, {"recipe": "smoke:lr=0.07"}, {"model": "vgg11"}])
def test_another_training_is_not_taken_for_it(change, quick, evaluations):
    execute(replace(quick, cycles=1), CPU, AUTO)
    before = evaluations["all"]
    execute(replace(quick, cycles=1, **change), CPU, AUTO)
    assert evaluations["all"] - before == 2 * TRAINING


def test_nothing_is_shared_without_the_feature(quick, evaluations):
    for speed, seed in ((ALONE, 0), (AUTO, 1), (ALONE, 1)):
        execute(replace(quick, cycles=1, seed=seed), CPU, speed)
        for file in claims.checkpoints(replace(quick, cycles=1, seed=seed).key):
            file.unlink()
    assert evaluations["all"] == 3 * 2 * TRAINING


def test_other_speed_is_another_training(quick, evaluations):
    execute(replace(quick, cycles=1), CPU, AUTO)
    execute(replace(quick, cycles=1, pruner="random"), CPU, replace(AUTO, channels_last=not AUTO.channels_last))
    assert evaluations["all"] == 2 * 2 * TRAINING


def test_a_run_taken_over_by_another_process_keeps_the_first_cycle(quick, evaluations):
    first, second = replace(quick, cycles=1), replace(quick, cycles=1, log10_compression=1.5)
    run(first, "cpu")
    assert claims.checkpoints(first.key) == []
    checkpoint.STOP.set()
    try:
        with pytest.raises(Stopped):
            run(second, "cpu")
    finally:
        checkpoint.STOP.clear()
    first_cycle.forget()  # as a new process knows nothing
    before = evaluations["all"]
    record = run(second, "cpu")
    assert evaluations["all"] - before == 1  # the second epoch of the last training
    assert record["cycle_results"] == records.read(first.key)["cycle_results"]
    assert claims.checkpoints(second.key) == []


def test_a_full_disk_costs_the_sharing_and_not_the_run(quick, evaluations, monkeypatch):
    execute(replace(quick, cycles=1), CPU, AUTO)

    def full(target):
        raise InputError("no space left")

    monkeypatch.setattr(first_cycle.paths, "replacing", full)
    monkeypatch.setattr(tensors, "replacing", full)
    other = replace(quick, cycles=1, log10_compression=1.5)
    assert execute(other, CPU, AUTO)["status"] == "done"
    assert evaluations["all"] == 2 * 2 * TRAINING and not claims.checkpoints(other.key)


def test_a_first_cycle_that_diverged_is_shared_too(quick, evaluations):
    wild = replace(quick, recipe="smoke:lr=1e+30", cycles=2)
    assert execute(wild, CPU, AUTO)["status"] == "diverged"
    before = evaluations["all"]
    assert execute(replace(wild, pruner="random"), CPU, AUTO)["status"] == "diverged"
    assert evaluations["all"] == before
