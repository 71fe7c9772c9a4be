import random
import sys
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from synflow_lib import data, models, paths, provenance
from synflow_lib.benchmark import Run, claims, records, run
from synflow_lib.benchmark.run import NEW_WEIGHTS, execute, pruned, surviving
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.pruning import LOSSES, SALIENCIES, Masks, apply_masks, prune
from synflow_lib.theory import approximate_isometry
from synflow_lib.training import History, Stopped, checkpoint, recipe

CPU = torch.device("cpu")
module = sys.modules["synflow_lib.benchmark.run"]


@pytest.fixture
def trainings(monkeypatch):
    """Every training of the test: its network at the start, its masks; nothing is learned, the weights only move."""
    seen = []

    def train(model, dataset, recipe, masks=None, **options):
        if masks is not None:
            apply_masks(model, masks)
        seen.append(({name: tensor.clone() for name, tensor in model.state_dict().items()}, masks))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(len(seen))
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator) * (parameter != 0)
            for name, buffer in model.named_buffers():
                if "running" in name:
                    buffer += 1
        return History([{"epoch": 0, "test_accuracy": 10.0}])

    monkeypatch.setattr(module, "train", train)
    return seen


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


@pytest.mark.parametrize("cycles", [1, 3])
def test_survivors_start_every_cycle_from_their_initial_values(cycles, quick, trainings):
    spec = replace(quick, model="vgg11", width=0.03, cycles=cycles)
    execute(spec, CPU, Speed())
    initial = models.build("vgg11", "digits", width=0.03, seed=spec.seed).state_dict()
    assert len(trainings) == cycles + 1
    kept = []
    for state, masks in trainings:
        for name, tensor in state.items():
            alive = masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor[alive], initial[name][alive]) and not tensor[~alive].any()
        kept.append(masks.compression)
    assert kept == pytest.approx([10 ** (i / cycles) for i in range(cycles + 1)], rel=5e-3)


def test_without_rewinding_training_goes_on_from_where_it_was(quick, trainings):
    execute(replace(quick, cycles=2, rewind=False), CPU, Speed())
    (first, _), (second, masks), _ = trainings
    name = next(iter(masks))
    assert not torch.equal(first[name][masks[name]], second[name][masks[name]])


@pytest.mark.parametrize("pruner", ["random", "magnitude", "grasp", "synflow"])
@pytest.mark.parametrize("invert", [False, True])
def test_a_pruned_weight_never_comes_back_in_a_later_cycle(pruner, invert, quick, trainings):
    execute(replace(quick, pruner=pruner, cycles=3, invert=invert), CPU, Speed())
    for before, after in pairwise(masks for _, masks in trainings):
        assert after.kept < before.kept
        assert all(not (after[name] & ~before[name]).any() for name in before)


def test_a_cycle_that_diverges_ends_the_run(quick, monkeypatch):
    history = History([{"epoch": 0, "test_accuracy": 10.0}], diverged_epoch=1)
    calls = []
    monkeypatch.setattr(module, "train", lambda *a, **k: calls.append(1) or history)
    record = execute(replace(quick, cycles=2), CPU, Speed())
    assert record["status"] == "diverged" and len(calls) == 1
    assert [row["cycle"] for row in record["cycle_results"]] == [1]


def test_cycles_are_recorded(quick):
    record = run(replace(quick, cycles=2), device="cpu")
    assert [row["cycle"] for row in record["cycle_results"]] == [1, 2]
    assert all(0 <= row["accuracy_last"] <= row["accuracy_best"] for row in record["cycle_results"])


def test_shuffling_moves_the_masks_and_keeps_every_layers_density(quick, trainings):
    plain, moved = (execute(replace(quick, shuffle=shuffle), CPU, Speed()) for shuffle in (False, True))
    assert plain["layers"] == moved["layers"]
    (_, before), (_, after) = trainings
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_reinitialising_draws_other_weights_under_the_same_masks(quick, trainings):
    execute(quick, CPU, Speed())
    execute(replace(quick, reinitialise=True), CPU, Speed())
    (old, before), (new, after) = trainings
    expected = models.reinitialise(models.build("mlp", "digits", width=0.25), NEW_WEIGHTS).state_dict()
    for name, mask in before.items():
        assert torch.equal(mask, after[name])
        assert not torch.equal(old[name], new[name])
        assert torch.equal(new[name], expected[name] * mask)


@pytest.mark.parametrize("reinitialise", [False, True])
def test_isometry_repairs_the_kept_weights_before_training(reinitialise, quick, trainings):
    spec = replace(quick, isometry=True, reinitialise=reinitialise)
    record = execute(spec, CPU, Speed())
    ((state, masks),) = trainings
    model = models.build("mlp", "digits", width=0.25)
    assert masks.overlap(pruned(quick, model, data.load("digits"))) == 1
    if reinitialise:
        models.reinitialise(model, NEW_WEIGHTS)
    repair = approximate_isometry(model, masks)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert record["isometry_results"] == {
        **{"before": repair.curve[0], "after": repair.curve[-1], "steps": len(repair.curve) - 1, "converged": True}
    }
    assert repair.curve[-1] < repair.curve[0] / 2
    assert record["layers"] == execute(replace(quick, reinitialise=reinitialise), CPU, Speed())["layers"]


def test_after_cycles_isometry_comes_once_before_the_last_training(quick, trainings):
    execute(replace(quick, cycles=2, isometry=True), CPU, Speed())
    initial = models.build("mlp", "digits", width=0.25).state_dict()
    same = [
        all(torch.equal(state[name][mask], initial[name][mask]) for name, mask in masks.items())
        for state, masks in trainings
    ]
    assert same == [True, True, False]


def test_weights_that_diverged_are_not_repaired(quick, monkeypatch):
    history = History([{"epoch": 0, "test_accuracy": 10.0}], diverged_epoch=1)
    monkeypatch.setattr(module, "train", lambda *a, **k: history)
    monkeypatch.setattr(module, "isometric", lambda *_: pytest.fail("repaired"))
    assert execute(replace(quick, cycles=1, isometry=True), CPU, Speed())["status"] == "diverged"


@pytest.mark.parametrize("pruner", ["snip", "grasp"])
def test_the_loss_reaches_the_scores(pruner, quick):
    dataset, model = data.load_once("digits"), models.build("mlp", "digits", width=0.25)
    spec = replace(quick, pruner=pruner)
    batches = data.scoring_batches(dataset, seed=spec.seed)
    for loss in LOSSES:
        masks = pruned(replace(spec, loss=loss), model, dataset)
        by_hand = prune(model, partial(SALIENCIES[pruner], loss=loss), 10, batches=batches)
        assert masks.overlap(by_hand) == 1
    assert masks.overlap(pruned(spec, model, dataset)) < 1


@pytest.mark.parametrize("cycles", [0, 1])
def test_the_source_is_what_is_scored_on_and_nothing_else(cycles, quick, monkeypatch, trainings):
    digits = data.load_once("digits")
    other = replace(digits, train_images=digits.train_images.flip(0, 3), fingerprint="other")
    known = {"digits": digits, "cifar10": other}
    monkeypatch.setattr(data, "load_once", lambda name, device: known[name])
    scored = []
    original = data.scoring_batches
    monkeypatch.setattr(data, "scoring_batches", lambda d, **k: scored.append(d) or original(d, **k))
    datasets = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda m, d, *a, **k: datasets.append(d) or train(m, d, *a, **k))
    spec = replace(quick, pruner="snip", cycles=cycles)
    found = [execute(replace(spec, source=source), CPU, Speed()) for source in ("", "cifar10")]
    assert [d.fingerprint for d in scored] == [digits.fingerprint, "other"]
    assert all(d is digits for d in datasets) and len(datasets) == 2 * (cycles + 1)
    assert [record["source_fingerprint"] for record in found] == [digits.fingerprint, "other"]
    (*_, (_, before)), (*_, (_, after)) = trainings[: cycles + 1], trainings[cycles + 1 :]
    assert before.overlap(after) < 1 and before.kept == after.kept


@pytest.mark.parametrize("pruner", ["snip", "grasp"])
def test_methods_that_need_data_score_on_the_training_set(pruner, quick, monkeypatch):
    seen = []
    original = data.scoring_batches
    monkeypatch.setattr(data, "scoring_batches", lambda *a, **k: seen.append(k) or original(*a, **k))
    execute(replace(quick, pruner=pruner, seed=4), CPU, Speed())
    assert seen == [{"seed": 4}]


def test_options_reach_the_pruning(quick):
    dataset = data.load_once("digits")
    model = models.build("mlp", "digits", width=0.25)
    plain = pruned(quick, model, dataset)
    by_layer = pruned(replace(quick, scope="layer"), model, dataset)
    inverted = pruned(replace(quick, invert=True), model, dataset)
    assert (by_layer.layers()["density"] - 0.1).abs().max() < 0.01 < (plain.layers()["density"] - 0.1).abs().max()
    assert not any((plain[name] & inverted[name]).any() for name in plain)


def test_surviving_only_lowers_the_scores_of_what_is_gone():
    model = models.build("mlp", "digits", width=0.1)
    live = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if "weight" in name}
    among = Masks(
        {name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, mask in live.items()}
    )
    plain = SALIENCIES["magnitude"](model, among)
    scores = surviving(SALIENCIES["magnitude"], among, invert=False)(model, live)
    for name, score in scores.items():
        assert torch.equal(score[among[name]], plain[name][among[name]])
        assert (score[~among[name]] < 0).all()


VGG = Run("digits", "vgg11", "synflow", 2.0, recipe="smoke", width=0.25)


@pytest.mark.parametrize("isometry", [False, True])
def test_the_compact_network_trains_to_the_same_accuracy_as_the_masked_one(isometry, monkeypatch):
    """Up to rounding: in float64 the test losses agree to ten digits."""
    original = models.build
    monkeypatch.setattr(module.models, "build", lambda *a, **k: original(*a, **k).double())
    monkeypatch.setattr(module, "recipe", lambda *_: replace(recipe("smoke", "digits", "vgg11"), max_steps=6))
    spec = replace(VGG, isometry=isometry)
    small, full = (execute(spec, CPU, Speed(compact=compact)) for compact in (True, False))
    assert small["savings"]["compact_share"] < 0.1 and full["savings"]["compact_share"] is None
    assert small["isometry_results"] == full["isometry_results"] and bool(small["isometry_results"]) == isometry
    assert small["layers"] == full["layers"] and small["compression"] == full["compression"]
    for ours, theirs in zip(small["curve"], full["curve"], strict=True):
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-10)
        assert ours["test_accuracy"] == theirs["test_accuracy"]


@pytest.mark.parametrize(
    "whole",
    [{"cycles": 1}, {"log10_compression": 0.0}, {"pruner": "random", "log10_compression": 0.25}],
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
                monkeypatch.setattr(module, "pruned", lambda *_: pytest.fail("pruned again"))
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
