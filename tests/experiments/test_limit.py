"""Near rho_max: rows are those of `prune`, Theorem 3 bounds them, and the committed table says what is told of it."""

import math

import pytest

from synflow_lib import models
from synflow_lib.experiments import limit, table
from synflow_lib.pruning import prune, rho_max


def test_rows_are_what_prune_leaves(monkeypatch):
    monkeypatch.setenv("SYNFLOW_PROCESSES", "1")
    asked = []

    def noted(model, method, compression, **options):
        asked.append((method, options.get("iterations", 100)))
        return prune(model, method, compression, **options)

    monkeypatch.setattr(limit, "prune", noted)
    found = limit.synflow_near_rho_max(seeds=(0, 1), below=(0.5, 0.0), width=0.1, vgg19=False)
    assert set(asked) == {("synflow", 100)}
    assert list(found["below"].unique()) == [0.5, 0.0] and len(found) == 8
    row = found.query("seed == 1 and precision == 'float64' and below == 0.5").iloc[0]
    model = models.build("vgg16", limit.CIFAR, 0.1, 1).double()
    masks = prune(model, "synflow", rho_max(model) / 10**0.5, input_shape=(3, 32, 32))
    assert (row["layers"], row["kept"], row["empty"]) == (len(masks), masks.kept, len(masks.collapsed()))
    assert row["log10_compression"] == pytest.approx(math.log10(rho_max(model)) - 0.5)


def test_at_rho_max_there_is_a_weight_for_each_layer():
    """So a layer is whole only where every layer has exactly one, and none can be spared."""
    near = table("synflow_near_rho_max")
    top = near[near["below"] == 0]
    assert (top["kept"] == top["layers"]).all() and (near["empty"] < near["layers"]).all()
    assert (near["empty"] == 0).groupby(near["below"]).mean().is_monotonic_increasing  # nearer, fewer are whole
    assert set(near["precision"]) == set(limit.PRECISIONS) and set(near["network"]) == {"vgg16", "vgg19"}
