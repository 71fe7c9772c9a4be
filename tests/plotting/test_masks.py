"""Figures of masks draw what their tables say, without a warning (warnings are errors here)."""

import numpy as np
import pandas as pd

from synflow_lib import plotting


def layers(kept):
    table = pd.DataFrame({"layer": [f"l{i}" for i in range(len(kept))], "size": 100, "kept": kept})
    return table.assign(density=table["kept"] / table["size"])


def texts(figure):
    found = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        found += [axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
    return found


def test_layer_kept_counts_the_empty_layers_and_marks_them():
    figure = plotting.layer_kept({"random": layers([50, 1, 9]), "n = 3": layers([50, 0, 0])})
    assert texts(figure)[0] == "Random\nno layer empty" and "n = 3\n2 of 3 layers empty" in texts(figure)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    crosses = figure.axes[1].lines[-1]
    assert heights == [50, 1, 9] and crosses.get_xdata().tolist() == [2, 3]


def test_layer_density_marks_the_first_collapse():
    steps = [layers([100, 100]), layers([10, 40]), layers([0, 9]), layers([0, 1])]
    table = pd.concat([step.assign(pruner="magnitude", log10_compression=float(i)) for i, step in enumerate(steps)])
    axis = plotting.layer_density(table).axes[0]
    assert [text.get_text().strip() for text in axis.texts] == ["collapse"]
    assert axis.lines[-1].get_xdata() == [2.0, 2.0]
    drawn = axis.lines[0].get_ydata()
    assert drawn[:2].tolist() == [1.0, 0.1] and np.isnan(drawn[2:]).all()  # the line of an emptied layer ends


def test_no_line_leads_across_a_compression_at_which_a_layer_is_empty():
    steps = [layers([100, 100]), layers([0, 40]), layers([5, 9])]
    table = pd.concat([step.assign(pruner="magnitude", log10_compression=float(i)) for i, step in enumerate(steps)])
    drawn = plotting.layer_density(table).axes[0].lines[0].get_ydata()
    assert np.isnan(drawn[1]) and drawn[[0, 2]].tolist() == [1.0, 0.05]


def test_relative_costs_draw_compact_lines_masked_markers_and_the_promise():
    rows = [
        (pruner, a, network, 10**-a if network == "compact" else 1.0, 0.5)
        for pruner, last in (("random", 1.0), ("synflow", 2.0))
        for a in (1.0, 2.0)
        if a <= last
        for network in ("masked", "compact")
    ]
    table = pd.DataFrame(rows, columns=["pruner", "log10_compression", "network", "weights", "flops"])
    figure = plotting.relative_costs(table, {"weights": "weights", "flops": "FLOPs"})
    assert {"weights", "FLOPs", "Random", "SynFlow", "masked", "1 / compression"} <= set(texts(figure))
    promise, *drawn = figure.axes[0].lines
    assert promise.get_ydata().tolist() == [0.1, 0.01]
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in drawn if line.get_linestyle() == "-"]
    assert ends == [(1.0, 0.1), (2.0, 0.01)]  # random's masks cut the network at 100
    hollow = [line.get_ydata().tolist() for line in drawn if line.get_linestyle() == "None"]
    assert hollow == [[1.0], [1.0, 1.0]]


def test_layer_density_draws_the_authors_as_dots_and_tells_both_collapses():
    steps = [layers([100, 100]), layers([10, 40]), layers([0, 9])]
    ours = pd.concat([step.assign(pruner="magnitude", log10_compression=float(i)) for i, step in enumerate(steps)])
    theirs = ours[ours["density"] > 0]
    figure = plotting.layer_density(ours, theirs)
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "Magnitude\ncollapse: $10^{2.0}$, authors none"
    dots = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert [dot.get_ydata().tolist() for dot in dots] == [[1.0, 0.1], [1.0, 0.4, 0.09]]  # theirs lacks what is empty
    (legend,) = [each.get_legend() for each in figure.axes if each.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "authors", "first empty layer, ours"]
