import random
import sys
from dataclasses import asdict, replace

import pytest
import torch

from synflow_lib import data, models, paths, provenance
from synflow_lib.benchmark import Run, claims, preparation, records, results, run
from synflow_lib.benchmark.preparation import pruned
from synflow_lib.benchmark.run import execute
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.pruning import SALIENCIES
from synflow_lib.training import Stopped, checkpoint, recipe

CPU = torch.device("cpu")
module = sys.modules["synflow_lib.benchmark.run"]


def test_a_run_is_recorded_with_all_that_a_reader_asks(quick):
    record = run(quick, device="cpu")
    assert record == records.read(quick.key)
    assert {name: record[name] for name in asdict(quick)} == asdict(quick)
    assert record["status"] == "done" and record["connected"] is True
    assert record["compression"] == pytest.approx(10, rel=1e-3)
    assert [row["epoch"] for row in record["curve"]] == [0, 1, 2]
    assert record["accuracy_best"] == max(row["test_accuracy"] for row in record["curve"])
    assert record["accuracy_last"] == record["curve"][-1]["test_accuracy"]
    layers = record["layers"]
    assert sum(row["size"] for row in layers) / sum(row["kept"] for row in layers) == record["compression"]
    assert record["settings"] == recipe("smoke", "digits", "mlp").settings()
    assert record["dataset_fingerprint"] == data.load("digits").fingerprint
    assert set(record["versions"]) >= {"library", "torch", "python"} and record["device_name"] == "CPU"
    assert record["threads"] == record["sharing"] == 1 and record["device"] == "cpu" and record["peak_memory"] > 2**20
    assert record["speed"] == asdict(Speed.auto(CPU))
    assert record["created"].endswith("+00:00") and record["git_revision"]
    assert record["prune_seconds"] >= 0 and record["train_seconds"] > 0


def test_a_record_says_how_many_runs_shared_the_gpu(monkeypatch):
    monkeypatch.setattr(provenance, "device_name", lambda name: name)
    found = [module.circumstances(torch.device(kind), Speed(), 1, 3) for kind in ("cuda:0", "cpu")]
    assert [about["sharing"] for about in found] == [3, 1]


def test_a_recorded_run_is_not_run_again(quick, monkeypatch):
    first = run(quick, device="cpu")
    monkeypatch.setattr(module, "execute", lambda *_: pytest.fail("trained again"))
    assert run(quick, device="cpu") == first


def test_the_same_run_gives_the_same_bits(quick):
    def result() -> dict:
        record = execute(replace(quick, pruner="snip"), CPU, Speed.auto(CPU))
        curve = [{k: v for k, v in row.items() if k != "seconds"} for row in record["curve"]]
        return {"curve": curve, "layers": record["layers"]}

    assert result() == result()


def test_the_number_of_threads_is_pinned_and_put_back(quick, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(module, "execute", lambda *_: seen.append(torch.get_num_threads()) or {"status": "done"})
    run(quick, device="cpu", threads=3)
    assert seen == [3] and torch.get_num_threads() == before


def test_the_highest_seed_is_one(quick):
    everything = replace(quick, seed=2**63 - 1, pruner="snip", shuffle=True, reinitialise=True)
    assert run(everything.validate(), device="cpu")["status"] == "done"
    assert results.recorded()["seed"].tolist() == [2**63 - 1]


def test_a_failure_is_recorded_raised_and_tried_again(quick, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(module, "execute", broken)
        with pytest.raises(ZeroDivisionError):
            run(quick, device="cpu")
    record = records.read(quick.key)
    assert (record["status"], record["error"]) == ("failed", "a bug")
    assert "ZeroDivisionError" in record["traceback"]
    assert run(quick, device="cpu")["status"] == "done"


@pytest.mark.parametrize("wrong", [{"model": "vgg"}, {"log10_compression": 9.0}])
def test_bad_input_is_refused_before_anything_is_written(wrong, quick):
    with pytest.raises(InputError):
        run(replace(quick, **wrong), device="cpu")
    with pytest.raises(InputError, match="unknown device"):
        run(quick, device="tpu")
    assert not paths.records().exists()


def test_a_folder_that_cannot_be_written_is_noticed_before_training(quick, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYNFLOW_RECORDS", str(tmp_path / "file" / "records"))
    monkeypatch.setattr(module, "execute", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match="cannot write"):
        run(quick, device="cpu")


VGG = Run("digits", "vgg11", "synflow", 2.0, recipe="smoke", width=0.25)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"isometry": True},
        {"cycles": 1},
        {"cycles": 1, "reinitialise": True, "isometry": True},
        {"model": "resnet18", "width": 0.1, "cycles": 1},
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_the_compact_network_trains_to_the_same_accuracy_as_the_masked_one(change, monkeypatch):
    """Up to rounding: in float64 the test losses agree to ten digits."""
    original = models.build
    monkeypatch.setattr(module.models, "build", lambda *a, **k: original(*a, **k).double())
    monkeypatch.setattr(module, "recipe", lambda *which: replace(recipe(*which), max_steps=3))
    digits = data.load("digits")
    few = replace(digits, test_images=digits.test_images[:50], test_labels=digits.test_labels[:50])
    monkeypatch.setattr(data, "load_once", lambda *_: few)
    spec = replace(VGG, **{"width": 0.15, **change})
    small, full = (execute(spec, CPU, Speed(compact=compact)) for compact in (True, False))
    assert small["savings"]["compact_share"] < 0.1 and full["savings"]["compact_share"] is None
    assert small["isometry_results"] == full["isometry_results"] and bool(small["isometry_results"]) == spec.isometry
    assert small["layers"] == full["layers"] and small["compression"] == full["compression"]
    for ours, theirs in zip(small["curve"], full["curve"], strict=True):
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-10)
        assert ours["test_accuracy"] == theirs["test_accuracy"]


@pytest.mark.parametrize(
    "whole",
    [{"cycles": 1, "rewind": False}, {"log10_compression": 0.0}, {"pruner": "random", "log10_compression": 0.25}],
    ids=["cycles", "dense", "random"],
)
def test_what_would_not_be_smaller_or_not_the_same_is_trained_masked(whole):
    model = models.build("vgg11", "digits", width=0.25)
    spec = replace(VGG, **whole)
    masks = pruned(replace(spec, cycles=0), model, data.load("digits"))
    assert module.compacted(spec, model, masks, (3, 32, 32)) is None


@pytest.mark.parametrize("isometry", [False, True])
def test_a_network_cut_in_two_is_not_trained(isometry, monkeypatch):
    spec = replace(VGG, pruner="random", log10_compression=3.5, isometry=isometry)
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    record = execute(spec, CPU, Speed(skip_disconnected=True))
    assert record["connected"] is False and record["savings"]["disconnected"] is True
    assert record["status"] == "done" and record["epoch_seconds"] is None
    digits = data.load("digits")
    most = int(digits.train_labels.bincount().argmax())
    assert record["accuracy_last"] == pytest.approx(100 * float((digits.test_labels == most).float().mean()))


def test_the_constant_answer_is_what_training_approaches():
    """The same run trained all the same: whatever it learns, it gets no better than the frequencies of the classes."""
    spec = replace(VGG, pruner="random", log10_compression=3.5)
    trained, answer = execute(spec, CPU, Speed()), execute(spec, CPU, Speed(skip_disconnected=True))
    assert trained["savings"]["disconnected"] is False and len(trained["curve"]) == 3
    assert answer["curve"][-1]["train_loss"] <= trained["curve"][-1]["train_loss"]
    assert answer["curve"][-1]["test_loss"] == pytest.approx(trained["curve"][-1]["test_loss"], rel=0.01)
    shares = data.load("digits").test_labels.bincount() / len(data.load("digits").test_labels)
    assert any(trained["accuracy_last"] == pytest.approx(100 * float(share)) for share in shares)


@pytest.mark.parametrize("cycles", [0, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(cycles, quick, monkeypatch):
    spec = replace(quick, pruner="snip", cycles=cycles, isometry=True)

    def result(record: dict) -> dict:
        curve = [{k: v for k, v in row.items() if k != "seconds"} for row in record["curve"]]
        return {
            "curve": curve,
            **{name: record[name] for name in ("layers", "cycle_results", "compression", "isometry_results")},
        }

    uninterrupted = result(execute(spec, CPU, replace(Speed.auto(CPU), share_cycles=False)))
    checkpoint.STOP.set()
    try:
        for _ in range(2 * (cycles + 1)):  # two epochs in each training
            with pytest.raises(Stopped):
                run(spec, device="cpu")
            assert records.read(spec.key) is None and claims.checkpoints(spec.key)
            if not cycles:  # the masks are in the file, so pruning is not repeated
                monkeypatch.setattr(preparation, "pruned", lambda *_: pytest.fail("pruned again"))
        assert len(claims.checkpoints(spec.key)) == cycles + 1
    finally:
        checkpoint.STOP.clear()
    assert result(run(spec, device="cpu")) == uninterrupted
    assert claims.checkpoints(spec.key) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"iterations": 3}])
def test_the_checkpoint_of_another_run_is_not_used(change, quick):
    speed = Speed.auto(CPU)
    settings, digits = recipe("smoke", "digits", "mlp"), data.load("digits")
    file = claims.checkpoint(quick.key)
    checkpoint.STOP.set()
    try:
        with pytest.raises(Stopped):
            run(quick, device="cpu")
    finally:
        checkpoint.STOP.clear()
    assert module.checkpoint(quick, settings, digits, CPU, speed).state is not None
    other = replace(quick, **change)
    file.rename(claims.checkpoint(other.key))
    assert module.checkpoint(other, settings, digits, CPU, speed).state is None
    assert module.checkpoint(other, settings, digits, CPU, Speed()).state is None


def test_published_trains_the_shortcuts_of_a_resnet(monkeypatch):
    spec = Run("digits", "resnet18", "magnitude", 1.0, recipe="published", width=0.1)
    seen = []
    original = module.train

    def train(network, dataset, settings, masks, **options):
        seen.append(sorted(name for name in network.state_dict() if name.endswith("scale")))
        return original(network, dataset, replace(settings, epochs=1, max_steps=2), masks, **options)

    monkeypatch.setattr(module, "train", train)
    record = execute(spec, CPU, Speed.auto(CPU))
    assert len(seen[0]) == 5 and record["settings"]["identity_scales"] is True
    assert record["speed"] == asdict(
        replace(Speed.auto(CPU), channels_last=False, fused=False)
    )  # 1x1 shortcuts of few channels
    execute(replace(spec, recipe="described"), CPU, Speed.auto(CPU))
    assert seen[1] == []


OPTIONS = {
    "model": ["vgg11", "resnet18"],
    "pruner": list(SALIENCIES),
    "log10_compression": [0.0, 0.5, 1.0],
    "recipe": ["smoke:max_steps=1", "published:epochs=1,max_steps=1,milestones="],
    "iterations": [None, 3],
    "schedule": ["exponential", "linear"],
    "scope": ["global", "layer"],
    "cycles": [0, 1, 2],
    **{name: [False, True] for name in ("rewind", "isometry", "shuffle", "reinitialise", "invert", "train_mode")},
}


@pytest.mark.parametrize("number", range(16))
def test_options_go_together(number):
    """Any of them with any others leaves as many weights as were asked for, and a result."""
    choice = random.Random(number).choice
    chosen = {name: choice(values) for name, values in OPTIONS.items()}
    spec = Run("digits", seed=0, width=0.05, **chosen).validate()
    speed = Speed(**{name: choice([False, True]) for name in asdict(Speed()) if name not in ("graphs", "compile")})
    record = execute(spec, CPU, speed)
    assert record["status"] in ("done", "diverged")
    size, kept = (sum(row[name] for row in record["layers"]) for name in ("size", "kept"))
    if spec.scope == "global" and record["status"] == "done":
        assert kept == size - int((1 - 1 / spec.compression) * size)


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan"])
def test_an_interval_that_is_none_is_refused_before_any_work(wrong, quick, monkeypatch):
    monkeypatch.setenv("SYNFLOW_CHECKPOINT_SECONDS", wrong)
    with pytest.raises(InputError, match="must be a number of seconds"):
        run(quick, device="cpu")
    assert records.read(quick.key) is None


def test_a_record_names_the_revision_at_which_the_run_began(quick, monkeypatch):
    before = module.execute

    def meanwhile_committed(*arguments):
        monkeypatch.setattr(provenance, "revision", lambda: "after")
        return before(*arguments)

    monkeypatch.setattr(provenance, "revision", lambda: "before")
    monkeypatch.setattr(module, "execute", meanwhile_committed)
    assert run(quick, "cpu")["git_revision"] == "before"


def test_a_record_says_that_repeated_updates_are_not_fused(quick):
    assert run(quick, device="cpu")["speed"]["fused"] is Speed.auto(CPU).fused is True
    repeated = replace(quick, recipe="published:epochs=1,max_steps=2,milestones=")
    assert run(repeated, device="cpu")["speed"]["fused"] is False
