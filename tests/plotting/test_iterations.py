"""Figures of iterations draw what their tables say, without a warning (warnings are errors here)."""

import numpy as np
import pandas as pd

from synflow_lib import plotting


def test_layers_by_plan_draw_a_line_a_plan_and_a_cross_where_nothing_is_left():
    kept = {(1, "exponential"): [9, 0, 0], (10, "exponential"): [3, 3, 3], (10, "linear"): [5, 0, 4]}
    rows = [(n, s, f"l{i}", number) for (n, s), counts in kept.items() for i, number in enumerate(counts)]
    figure = plotting.layers_by_plan(pd.DataFrame(rows, columns=["iterations", "schedule", "layer", "kept"]))
    drawn = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_label() for line in drawn] == ["n = 1", "n = 10", "n = 10, linear"]
    assert [line.get_ydata().tolist() for line in drawn] == [[9], [3, 3, 3], [5, 4]]
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[2, 3], [], [2]]
    assert crosses[0].get_ydata()[0] > crosses[2].get_ydata()[0]  # beside each other, not on top


def test_schedule_ratios_draw_each_schedule_over_the_authors():
    rows = [(s, a, n, a / n) for a in (0.0, 2.0, 3.0) for s in ("exponential", "linear") for n in (1, 10, 100)]
    authors = pd.DataFrame(rows, columns=["schedule", "log10_compression", "iterations", "ratio"])
    ours = authors[authors["iterations"] != 10]
    figure = plotting.schedule_ratios(ours, authors)
    for axis in figure.axes:
        assert len(axis.lines) == 5  # two compressions twice, and the line at 1
        theirs, mine = axis.lines[:2]
        assert theirs.get_color() == mine.get_color() and theirs.get_ydata().tolist() == [2.0, 0.2, 0.02]
        assert mine.get_xdata().tolist() == [1, 100] and mine.get_linestyle() == "None"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$10^{2}$", "$10^{3}$", "authors", "ours"]


def test_mask_differences_begin_at_the_first_swap_and_name_the_runs_without_one():
    rows = [("single", k, max(0, k - 2)) for k in range(1, 6)] + [("noise", k, 0) for k in range(1, 6)]
    figure = plotting.mask_differences(pd.DataFrame(rows, columns=["run", "iteration", "differing"]))
    line, first = figure.axes[0].lines[:2]
    np.testing.assert_equal(line.get_ydata(), [np.nan, np.nan, 1, 2, 3])
    assert (first.get_xdata(), first.get_ydata()) == ([3], [1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["single", "noise: never"]


def test_flow_ranges_are_hollow_where_float32_overflows():
    rows = [("MLP", 10, 8.0, 8.0), ("MLP", 60, np.inf, 43.0)]
    figure = plotting.flow_ranges(pd.DataFrame(rows, columns=["family", "layers", "float32", "scaled"]))
    full, hollow = figure.axes[0].lines[:2]
    assert full.get_ydata().tolist() == [8.0] and hollow.get_ydata().tolist() == [43.0]
    assert hollow.get_markerfacecolor() == "white" and full.get_markerfacecolor() != "white"
    assert "largest float32" in [text.get_text() for text in figure.axes[0].texts]
