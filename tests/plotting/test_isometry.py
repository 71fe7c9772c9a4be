"""Chapter 10's figures show what their tables hold."""

from itertools import product

import pandas as pd
import pytest

from synflow_lib import plotting

STATES = ("pruned", "after isometry")


def test_an_empty_layer_is_a_cross_on_the_floor_and_every_initialisation_a_line():
    rows = [
        ("tanh", s, layer, 0.0 if s == "normal" and layer == 3 else 0.1)
        for s in ("normal", "he")
        for layer in (1, 2, 3)
    ]
    table = pd.DataFrame(rows, columns=["network", "initialisation", "layer", "density"])
    figure = plotting.kept_by_initialisation(table)
    (axis,) = figure.axes
    crosses = [line for line in axis.get_lines() if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1 and list(crosses[0].get_xdata()) == [3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal", "he", "empty"]


def test_singular_values_are_dashed_before_and_solid_after_isometry():
    points = product(["layers", "whole"], ["snip", "synflow"], STATES, [10.0, 99.0])
    table = pd.DataFrame(points, columns=["quantity", "pruner", "state", "removed"]).assign(mean=0.5)
    figure = plotting.singular_values(table, ["layers", "whole"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["layers", "whole"]
    for axis in figure.axes:
        styles = sorted(line.get_linestyle() for line in axis.get_lines()[1:])
        assert styles == ["-", "-", "--", "--"]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["10", "99"]


def test_losses_have_a_row_per_compression_and_a_band_over_the_seeds():
    points = product(["random", "snip"], [1.0, 2.0], STATES, [0, 1], [0, 1, 2])
    names = ["pruner", "log10_compression", "state", "seed", "epoch"]
    table = pd.DataFrame(points, columns=names)
    table["train_loss"] = 1.0 + table["seed"]
    figure = plotting.trainability(table)
    assert len(figure.axes) == 4
    for axis in figure.axes:
        assert [list(line.get_ydata()) for line in axis.get_lines()] == [[1.5, 1.5]] * 2
        assert axis.collections[0].get_datalim(axis.transData).bounds[1::2] == pytest.approx((1.0, 1.0))


def test_both_theories_have_one_axis_per_pruner_in_their_order_and_rounding_is_drawn_at_its_bound():
    rows = [("synflow", 1.0, 1e-16, 0.5), ("magnitude", 2.0, 0.3, 0.9)]
    table = pd.DataFrame(rows, columns=["pruner", "log10_compression", "conservation", "isometry"])
    first, second, *_ = plotting.two_theories(table).axes
    assert first.get_title(loc="left") == "Magnitude"
    assert second.collections[0].get_offsets().tolist() == [[1e-8, 0.5]]
