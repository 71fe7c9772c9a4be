"""Figure 7 and the weights that iterations leave, on small networks and in the committed tables."""

import numpy as np
import pandas as pd
import pytest

from synflow_lib import models
from synflow_lib.benchmark import published
from synflow_lib.experiments import iterations, table
from synflow_lib.pruning import pruned_to_flow
from synflow_lib.pruning.prune import number_kept

SMALL = {"width": 1 / 16, "input_shape": (3, 32, 32), "classes": 10}


def test_single_precision_is_enough_for_the_ratios():
    model = models.build("vgg19", (SMALL["input_shape"], 10), SMALL["width"])
    double = models.build("vgg19", (SMALL["input_shape"], 10), SMALL["width"]).double()
    pair = [pruned_to_flow(m, 100.0, input_shape=SMALL["input_shape"], iterations=10) for m in (model, double)]
    np.testing.assert_allclose(*pair, rtol=1e-3)


def test_runs_that_begin_alike_are_run_once_and_give_what_each_alone_gives(monkeypatch):
    ran = []
    monkeypatch.setattr(iterations.pool, "each", lambda f, parts, _: ran.extend(parts) or [f(**p) for p in parts])
    found = iterations.vgg19_schedule(**SMALL, log10_compressions=(0.0, 0.5, 1.0), iterations=(1, 5, 10))
    assert len(found) == 18 and len(ran) == 6 + 9  # exponential: 0/n are one run, and 0.5/5 begins 1/10
    model = models.build("vgg19", (SMALL["input_shape"], 10), SMALL["width"])
    for row in found.itertuples():
        plan = {"iterations": row.iterations, "schedule": row.schedule}
        alone = max(pruned_to_flow(model, 10**row.log10_compression, input_shape=SMALL["input_shape"], **plan))
        assert row.ratio == pytest.approx(alone, rel=1e-6)


def test_small_tables_keep_what_was_asked_for():
    kept = iterations.vgg11_iterations(2.0, width=1 / 16)
    plans = kept.groupby(["iterations", "schedule"])["kept"].sum()
    assert len(plans) == 5 and set(plans) == {number_kept(kept["size"].sum() // 5, 0.01)}
    shortcuts = iterations.resnet18_shortcuts((1.0, 2.0), width=1 / 16)
    assert shortcuts.groupby("log10_compression")["shortcut"].sum().tolist() == [3, 3]
    assert shortcuts["connected"].all() and len(shortcuts) == 2 * 21


def plans() -> dict[str, np.ndarray]:
    found = table("vgg11_iterations").groupby(["iterations", "schedule"], sort=False)
    return {f"{n} {schedule}": part["kept"].to_numpy() for (n, schedule), part in found}


def test_vgg11_at_10_to_the_4_keeps_every_layer_alive_from_five_iterations_on():
    kept = plans()
    assert {int(counts.sum()) for counts in kept.values()} == {923}
    assert (kept["1 exponential"] > 0).sum() == 2 and kept["1 exponential"][[0, -1]].min() > 100
    for n, low, high in ((5, 32, 192), (10, 93, 128), (100, 79, 116)):
        counts = kept[f"{n} exponential"]
        assert counts.min() == pytest.approx(low, rel=0.2) and counts.max() == pytest.approx(high, rel=0.2), n
    linear = kept["100 linear"]
    assert (linear == 0).sum() >= 5 and linear[0] > 500 and linear[-1] > 200


def test_the_committed_numbers_come_out_again():
    for n in (1, 5):
        again = iterations._layers_after((n, "exponential"), 4.0, 1.0, 0)["kept"].to_numpy()
        assert np.abs(again - plans()[f"{n} exponential"]).max() <= 2


def both() -> pd.DataFrame:
    authors = published.table("figure7_schedule").rename(columns={"max_prune_size_over_cut_size": "theirs"})
    return table("vgg19_schedule").merge(authors, on=["schedule", "log10_compression", "iterations"])


def test_figure_7_is_that_of_vgg19():
    compared = both()
    assert len(compared) == 2 * 7 * len(iterations.ITERATIONS)
    assert (compared.query("log10_compression == 0")[["ratio", "theirs"]] == 0).all(axis=None)
    pruned = compared.query("log10_compression > 0")
    once = pruned.query("iterations == 1")
    np.testing.assert_allclose(once["ratio"], once["theirs"], rtol=2e-3)
    np.testing.assert_allclose(pruned["ratio"], pruned["theirs"], rtol=0.1)


def test_which_plans_are_safe_is_what_the_authors_found():
    compared = both()
    assert ((compared["ratio"] < 1) == (compared["theirs"] < 1)).all()
    at = compared.query("log10_compression == 3").set_index(["schedule", "iterations"])["ratio"]
    assert at["exponential", 100] < at["exponential", 70] < 1 < at["exponential", 50] and at["linear", 100] > 10


def test_shortcuts_of_resnet18_vanish_and_signal_passes():
    kept = (
        table("resnet18_shortcuts").query("shortcut").pivot(index="layer", columns="log10_compression", values="kept")
    )
    assert len(kept) == 3 and (kept[2.0] == 0).all() and (kept[0.1] > 0).all()
    assert table("resnet18_shortcuts")["connected"].all()
