"""Chapter 10's figures show what their tables hold."""

from itertools import product

import pandas as pd
import pytest

from synflow_lib import plotting

STATES = ("pruned", "after isometry")


def test_an_empty_layer_is_a_cross_on_the_floor_and_every_initialisation_a_line():
    rows = [
        ("tanh", depth, s, layer, 0.0 if s == "normal" and layer == depth == 5 else 0.1)
        for depth in (3, 5)
        for s in ("normal", "he")
        for layer in range(1, depth + 1)
    ]
    table = pd.DataFrame(rows, columns=["network", "depth", "initialisation", "layer", "density"])
    figure = plotting.kept_by_initialisation(table)
    shallow, deep = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["tanh, 3 layers", "tanh, 5 layers"]
    crosses = [line for line in deep.get_lines() if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1 and list(crosses[0].get_xdata()) == [5]
    assert not any(line.get_marker() == "x" and len(line.get_xdata()) for line in shallow.get_lines())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal", "he", "empty"]


def test_singular_values_have_a_line_for_the_mean_and_a_band_from_the_smallest_to_the_largest():
    points = product(["layers", "whole"], ["snip", "synflow"], STATES, [10.0, 99.0])
    table = pd.DataFrame(points, columns=["quantity", "pruner", "state", "removed"])
    table = table.assign(mean=0.5, min=[0.0 if state == "pruned" else 0.4 for state in table["state"]], max=0.9)
    start = pd.DataFrame({"quantity": ["layers", "whole"], "pruner": "", "state": "at initialisation", "removed": 0.0})
    figure = plotting.singular_values(pd.concat([start.assign(mean=1.0, min=0.2, max=2.0), table]), floor=1e-3)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["SNIP", "SynFlow", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes][::2] == ["singular values,\nlayers", "singular values,\nwhole"]
    for axis in figure.axes:
        initial, *lines = axis.get_lines()
        assert set(initial.get_ydata()) == {1.0} and axis.patches[0].get_extents().height > 0
        assert sorted(line.get_linestyle() for line in lines) == ["-", "--"]
        assert all(list(line.get_ydata()) == [0.5, 0.5] for line in lines)
        bands = [
            (b.get_paths()[0].vertices[:, 1].min(), b.get_paths()[0].vertices[:, 1].max()) for b in axis.collections
        ]
        assert sorted(bands) == [(1e-3, 0.9), (0.4, 0.9)]  # what is smaller than the floor is drawn there
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["10", "99"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["at initialisation", *STATES]


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
