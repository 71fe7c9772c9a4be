"""Figure 4: theorem 2 at a small width, and the slopes of the committed table beside the authors'."""

import numpy as np
import pytest

from synflow_lib import experiments
from synflow_lib.benchmark import published
from synflow_lib.experiments import layers
from synflow_lib.pruning import SALIENCIES
from synflow_lib.theory.conservation import slope

SMALL = {"width": 1 / 16, "input_shape": (3, 32, 32)}
WITHIN = {"synflow": 0.01, "grasp": 0.02, "snip": 0.04, "magnitude": 0.01, "random": 0.01}


@pytest.fixture(scope="module")
def table():
    return experiments.table("vgg19_layer_scores")


@pytest.fixture
def authors():
    return published.table("figure4_layer_scores").query("state == 'initialization'")


def test_every_layer_has_the_same_total_by_synflow_and_sizes_are_those_of_the_network(monkeypatch):
    monkeypatch.setenv("SYNFLOW_PROCESSES", "1")
    small = layers.vgg19_layer_scores(images=5, **SMALL)
    assert small.groupby("pruner", sort=False)["layer"].apply(list).to_dict() == {
        p: list(range(19)) for p in SALIENCIES
    }
    flow = small.query("pruner == 'synflow'")
    totals = flow["average_score"] / flow["inverse_size"]
    assert totals.to_numpy() == pytest.approx(np.full(19, totals.iloc[0]), rel=1e-12)  # biases begin at zero
    sizes = (1 / flow["inverse_size"]).round().astype(int).tolist()
    assert sizes[:3] == [4 * 27, 4 * 36, 8 * 36] and sizes[-1] == 256 * 1000
    seen = small.groupby("pruner")["images"].unique().map(list).to_dict()
    assert seen["snip"] == seen["grasp"] == ["5 digits"] and seen["magnitude"] == ["none"]


def test_the_committed_layers_are_the_authors(table, authors):
    for pruner in SALIENCIES:
        ours, theirs = (t.loc[t["pruner"] == pruner, "inverse_size"].to_numpy() for t in (table, authors))
        assert (ours / theirs).min() >= 1 and (ours / theirs).max() < 1.04  # they count the biases


@pytest.mark.parametrize("pruner", SALIENCIES)
def test_slopes_are_the_authors(table, authors, pruner):
    ours, theirs = (slope(t[t["pruner"] == pruner]) for t in (table, authors))
    assert ours == pytest.approx(theirs, abs=WITHIN[pruner])


def test_the_mean_magnitude_of_each_layer_is_that_of_its_initialisation(table, authors):
    ours, theirs = (t.query("pruner == 'magnitude'")["average_score"].to_numpy() for t in (table, authors))
    assert ours == pytest.approx(theirs, rel=0.03)
