from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from synflow_lib.benchmark import Run, engines, grid, published_grid
from synflow_lib.benchmark import measurement as measurement_module
from synflow_lib.benchmark.estimate import COLUMNS, estimate, parallel, report
from synflow_lib.benchmark.measurement import Sample
from synflow_lib.errors import InputError
from synflow_lib.training import History, recipe

TINY = Sample(batch=2, steps=1, test=2, scoring=2)
FULL = Run("cifar10", "vgg11", "synflow", 1.0, 0, "fast")
EPOCHS = recipe("fast", "cifar10", "vgg11").epochs
HERE = {"device_name": "CPU", "threads": 1}


@pytest.fixture
def measured(monkeypatch):
    """No measurement takes time: an image of a step takes 1 ms, of a test 0.1 ms, pruning 3 s; the list of what was."""
    done = []

    def step_and_test(run, settings, here):
        done.append((run.dataset, run.model))
        return 1e-3, 1e-4

    def pruning(run, here):
        done.append(run.pruner)
        return 3.0 / (100 if run.pruner in ("snip", "grasp") else 1)

    monkeypatch.setattr(measurement_module, "step_and_test", step_and_test)
    monkeypatch.setattr(measurement_module, "pruning", pruning)
    return done


def test_the_hours_are_those_of_the_parts(measured):
    (row,) = estimate([FULL, replace(FULL, pruner="snip"), replace(FULL, log10_compression=0.0)], "cpu").to_dict(
        "records"
    )
    epoch = 50_000 * 1e-3 + 10_000 * 1e-4
    assert row["epoch_seconds"] == pytest.approx(epoch) and (row["runs"], row["trainings"]) == (3, 3)
    assert row["hours"] * 3600 == pytest.approx(3 * EPOCHS * epoch + 3 + 3)  # nothing is pruned at compression 1
    assert row["source"] == "measured" and measured == [("cifar10", "vgg11"), "synflow", "snip"]


def test_a_step_is_timed_without_the_evaluation_of_its_epoch(monkeypatch):
    """The second and third epoch take 4 and 3 s, for 6 images."""
    seen = []

    def train(model, dataset, short, device, speed):
        seen.append((len(dataset.train_labels), len(dataset.test_labels), short.epochs, short.lr))
        return History([{"seconds": seconds} for seconds in (1.0, 9.0, 13.0, 16.0)])

    monkeypatch.setattr(measurement_module, "train", train)
    monkeypatch.setattr(measurement_module, "evaluate", lambda model, dataset, speed: seen.append(dataset.test_labels))
    here = measurement_module.Here(torch.device("cpu"), 1, None, replace(TINY, steps=3, test=4), print)
    step, test = measurement_module.step_and_test(FULL, recipe("fast", "cifar10", "vgg11"), here)
    assert step == 3 / 6 and 0 <= test < 1
    assert seen[0] == (6, 1, 3, 0.0) and all(len(labels) == 4 for labels in seen[1:])


def test_isometry_takes_its_time_once_for_each_compression(measured, monkeypatch):
    def isometry(run, here):
        measured.append(("isometry", run.log10_compression))
        return 7.0

    monkeypatch.setattr(measurement_module, "isometry", isometry)
    runs = [FULL, *(replace(FULL, isometry=True, seed=seed) for seed in (0, 1))]
    hours = [estimate([run], "cpu")["hours"][0] * 3600 for run in runs]
    assert hours[1] - hours[0] == hours[2] - hours[0] == pytest.approx(7.0)
    measured.clear()
    estimate(runs, "cpu")
    assert measured == [("cifar10", "vgg11"), "synflow", ("isometry", 1.0)]


def test_isometry_is_timed_on_the_network_of_the_run(monkeypatch):
    seen = []
    monkeypatch.setattr(measurement_module, "approximate_isometry", lambda model, masks: seen.append((model, masks)))
    run = Run("digits", "mlp", "snip", 1.5, recipe="smoke", width=0.1, isometry=True)
    here = measurement_module.Here(torch.device("cpu"), 1, None, TINY, print)
    assert measurement_module.isometry(run, here) >= 0
    ((model, masks),) = seen
    assert masks.compression == pytest.approx(10**1.5, rel=1e-2)
    assert masks.total == sum(p.numel() for n, p in model.named_parameters() if n in masks)


def test_what_is_shared_is_counted_and_measured_once(measured):
    table = estimate(published_grid("fast"), "cpu").set_index(["dataset", "model"])
    assert table["runs"].tolist() == [195] * 12
    assert table["trainings"].unstack(sort=False).to_numpy().tolist() == [[183, 183, 183, 0]] * 3
    assert table["source"].xs("wide_resnet18_published", level=1).tolist() == ["nothing to do"] * 3
    assert len([one for one in measured if isinstance(one, tuple)]) == 6  # the two CIFARs have images of one size
    said = report(table.reset_index(), "cpu", workers=4)
    assert "2,340 runs to do, 1,647 trainings" in said and "core-hours on CPU" in said and "on 4 cores" in said


def test_records_on_this_kind_of_device_count_instead(measured, record):
    for seed in range(3):
        record(replace(FULL, seed=seed + 1), **HERE, epoch_seconds=7.0, train_seconds=100.0 + seed, prune_seconds=9.0)
    (row,) = estimate([FULL, replace(FULL, seed=1)], "cpu").to_dict("records")
    assert (row["runs"], row["trainings"], row["source"]) == (1, 1, "records") and measured == []
    assert row["hours"] * 3600 == pytest.approx(110.0)  # the median, of the same pruner and compression
    (higher,) = estimate([replace(FULL, log10_compression=2.0)], "cpu").to_dict("records")
    assert higher["hours"] * 3600 == pytest.approx(EPOCHS * 7.0 + 9.0)


def test_a_recorded_dense_network_counts_for_every_pruner_and_its_epoch_is_shown(measured, record):
    record(
        replace(FULL, log10_compression=0.0, seed=1), **HERE, epoch_seconds=8.0, train_seconds=50.0, prune_seconds=1.0
    )
    record(replace(FULL, seed=1), **HERE, epoch_seconds=6.0, train_seconds=40.0, prune_seconds=9.0)
    (row,) = estimate([replace(FULL, pruner="snip", log10_compression=0.0), FULL], "cpu").to_dict("records")
    assert row["hours"] * 3600 == pytest.approx(51.0 + 49.0)
    assert (row["source"], row["epoch_seconds"]) == ("records", 8.0) and measured == []


def test_of_pruned_networks_alone_the_dense_epoch_is_not_known(measured, record):
    record(replace(FULL, seed=1), **HERE, epoch_seconds=6.0, train_seconds=40.0, prune_seconds=9.0)
    (row,) = estimate([FULL], "cpu").to_dict("records")
    assert row["source"] == "records" and np.isnan(row["epoch_seconds"])


def test_a_record_without_its_times_tells_nothing(measured, record):
    record(replace(FULL, seed=1), **HERE, epoch_seconds=6.0, train_seconds=None, prune_seconds=9.0)
    (row,) = estimate([FULL], "cpu").to_dict("records")
    assert row["source"] == "measured"


def test_records_from_before_epochs_were_timed_have_their_mean(measured, record):
    curve = [{"epoch": epoch} for epoch in (0, 10, 20)]
    record(replace(FULL, seed=1), **HERE, curve=curve, train_seconds=100.0, prune_seconds=9.0)
    (row,) = estimate([replace(FULL, log10_compression=2.0)], "cpu").to_dict("records")
    assert row["hours"] * 3600 == pytest.approx(EPOCHS * 5.0 + 9.0)


def test_the_report_says_whose_hours_they_are_and_whether_they_are_a_bound():
    rows = [
        ["cifar10", "vgg11", 1.0, "fast", 30, 20, 12.345, 150.4, "measured"],
        ["digits", "mlp", 0.25, "smoke", 1, 0, float("nan"), 0.0, "nothing to do"],
    ]
    said = report(pd.DataFrame(rows, columns=COLUMNS), "cpu", workers=4).splitlines()
    assert [line.split() for line in said[1:3]] == [
        ["vgg11", "on", "cifar10", "fast", "30", "20", "12.3", "150", "measured"],
        ["mlp", "x", "0.25", "on", "digits", "smoke", "1", "0", "-", "0", "nothing", "to", "do"],
    ]
    assert said[4:6] == ["31 runs to do, 20 trainings, 150 core-hours on CPU", "37.6 hours by the clock on 4 cores"]
    assert "7.52 hours by the clock on 20 cores" in report(pd.DataFrame(rows, columns=COLUMNS), "cpu", workers=64)
    assert said[6].startswith("an upper bound")
    for sources, bound in ((("records", "measured"), 1), (("records", "both"), 1), (("records", "nothing to do"), 0)):
        table = pd.DataFrame(rows, columns=COLUMNS).assign(source=sources)
        assert report(table, "cpu", workers=4).count("upper bound") == bound


def test_records_of_runs_that_shared_a_gpu_count_for_their_share(measured, record):
    for seed, sharing in ((1, 4), (2, 1), (3, 1)):
        record(
            replace(FULL, seed=seed),
            **HERE,
            train_seconds=100.0 * sharing,
            prune_seconds=9.0 * sharing,
            sharing=sharing,
        )
    (row,) = estimate([FULL], "cpu").to_dict("records")
    assert row["hours"] * 3600 == pytest.approx(109.0)


def test_records_with_options_count_for_runs_with_the_same(measured, record, monkeypatch):
    """A plain run takes 30 + 2 s, with cycles 30 + 70, with isometry 30 + 9, with shuffled masks 80 + 2."""
    monkeypatch.setattr(measurement_module, "isometry", lambda run, here: 5.0)
    taken = [
        ({}, 30.0, 2.0),
        ({"cycles": 2}, 30.0, 70.0),
        ({"isometry": True}, 30.0, 9.0),
        ({"shuffle": True}, 80.0, 2.0),
    ]
    for options, training, pruning in taken:
        times = {"train_seconds": training, "prune_seconds": pruning, "epoch_seconds": training / EPOCHS}
        record(replace(FULL, **options, seed=1), **HERE, **times)

    def seconds(**changes):
        ((hours, source),) = estimate([replace(FULL, **changes)], "cpu")[["hours", "source"]].to_numpy()
        return round(hours * 3600, 6), source

    for options, training, pruning in taken:
        assert (training + pruning, "records") == seconds(**options)
    assert seconds(log10_compression=2.0) == (30.0 + 2.0, "records") and measured == []
    assert seconds(log10_compression=2.0, isometry=True) == (30.0 + 2.0 + 5.0, "records")
    assert seconds(shuffle=True, isometry=True) == (80.0 + 2.0 + 5.0, "records")
    assert seconds(log10_compression=2.0, reinitialise=True) == (30.0 + 2.0, "records") and measured == []
    assert seconds(pruner="magnitude") == (30.0 + 3.0, "records") and measured == ["magnitude"]
    assert [seconds(**more)[1] for more in ({"cycles": 3}, {"scope": "layer"})] == ["measured", "measured"]
    record(replace(FULL, log10_compression=0.0), **HERE, epoch_seconds=90.0 / EPOCHS, prune_seconds=0.0)
    assert seconds(scope="layer") == (90.0 + 3.0, "records")  # what keeps all weights is not faster


def test_a_more_compressed_network_says_nothing_of_a_denser_one(measured, record):
    record(FULL, **HERE, epoch_seconds=7.0)
    (row,) = estimate([replace(FULL, log10_compression=0.5), replace(FULL, seed=1)], "cpu").to_dict("records")
    assert row["source"] == "both" and measured == [("cifar10", "vgg11"), "synflow"]


@pytest.mark.parametrize("other", [{"device_name": "NVIDIA H200"}, {"threads": 2}])
def test_records_made_otherwise_do_not_count(measured, record, other):
    record(replace(FULL, seed=1), **(HERE | other), epoch_seconds=7.0)
    assert estimate([FULL], "cpu")["source"].tolist() == ["measured"]


def test_a_short_recipe_and_cycles(measured):
    quick = Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.25)
    once, twice = (estimate([replace(quick, cycles=n)], "cpu")["hours"].item() * 3600 for n in (0, 2))
    assert once == pytest.approx(2 * (1_437 * 1e-3 + 360 * 1e-4) + 3)
    assert twice == pytest.approx(3 * (once - 3) + 2 * 3)


@pytest.mark.parametrize("pruner", ["magnitude", "snip", "synflow"])
def test_a_real_measurement_of_a_tiny_network_needs_no_data_and_keeps_the_random_state(pruner, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "nothing"))
    run, said = Run("cifar100", "resnet18", pruner, 1.0, 0, "published", width=0.05), []
    before = torch.get_rng_state()
    table = estimate([run], "cpu", sample=TINY, tell=said.append)
    assert table["hours"].item() > 0 and table["epoch_seconds"].item() > 0
    assert said == ["measuring resnet18 on images of 32x32 pixels ..."]
    assert torch.equal(before, torch.get_rng_state()) and not (tmp_path / "nothing").exists()


def test_runs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="unknown model 'vgg12'"):
        estimate(grid("cifar10", "vgg12", "snip", 1.0), "cpu")


def test_numbers_below_one_are_refused():
    with pytest.raises(InputError, match="threads must be at least 1, not None and 0"):
        estimate([FULL], "cpu", threads=0)
    for workers, sharing, sentence in ((0, 1, "workers and threads must"), (1, 0, "runs_per_gpu must be at least 1")):
        with pytest.raises(InputError, match=sentence):
            parallel(torch.device("cuda", 0), workers, sharing)


def test_runs_that_share_a_gpu_are_one_device():
    assert parallel(torch.device("cuda", 0), 6, 3) == 2 and parallel(torch.device("cpu"), 6, 3) == 6


def test_runs_of_several_threads_take_as_many_cores(monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 9)
    row = dict.fromkeys(COLUMNS, 2) | {"dataset": "cifar10", "model": "vgg11", "recipe": "fast", "source": "records"}
    said = report(pd.DataFrame([row | {"hours": 8.0}]), "cpu", threads=4)
    assert "32 core-hours on CPU" in said and "4 hours by the clock on 8 cores" in said


def test_a_gpu_is_measured_with_whole_batches():
    assert Sample.of(torch.device("cuda", 0)).batch is None and Sample.of(torch.device("cpu")).batch == 64
