"""Figures of accuracies draw what their tables say, without a warning (warnings are errors here)."""

import numpy as np
import pandas as pd
import pytest

from synflow_lib import plotting


def accuracies(pruners=plotting.PRUNERS, runs=2):
    rows = [(p, c, 90 - 10 * c - run) for p in pruners for c in (0.0, 1.0, 2.0) for run in range(runs)]
    return pd.DataFrame(rows, columns=["pruner", "log10_compression", "accuracy"])


def band():
    table = accuracies(runs=1).rename(columns={"accuracy": "mean"})
    return table.assign(min=table["mean"] - 2, max=table["mean"] + 2)


def texts(figure):
    found = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        found += [axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
    return found


def test_accuracy_goes_through_the_means_and_spans_the_runs():
    figure = plotting.accuracy_panel(accuracies(), band(), title=plotting.panel_title("cifar10", "vgg16", 0.25))
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "VGG-16 on CIFAR-10, 0.25 of the channels"
    means = [line for line in axis.lines if line.get_marker() == plotting.MARKERS["snip"]]
    assert means[0].get_ydata().tolist() == [89.5, 79.5, 69.5]
    assert texts(figure)[:6] == [*(plotting.NAMES[p] for p in plotting.PRUNERS), "authors, 3 runs"]


def test_the_grid_has_one_panel_for_each_pair_and_one_legend():
    bands = {(d, m): band() for d in ("cifar10", "cifar100") for m in ("vgg11", "vgg16")}
    figure = plotting.accuracy_grid(bands, {("cifar100", "vgg16"): accuracies(("synflow",))})
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["CIFAR-10, VGG-11", "CIFAR-10, VGG-16", "CIFAR-100, VGG-11", "CIFAR-100, VGG-16"]
    assert len(figure.legends) == 1 and len(figure.axes[3].lines) > len(figure.axes[2].lines)
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["authors only"]] * 3 + [[]]
    assert texts(figure)[5:7] == ["range of the authors' 3 runs", "ours"]
    assert "ours" not in texts(plotting.accuracy_grid(bands, {}))


@pytest.mark.parametrize(("lowest", "corner"), [(60.0, 0.04), (5.0, 0.98)])
def test_the_note_of_a_panel_stands_where_no_curve_is(lowest, corner):
    falls = band().assign(min=[100.0, lowest, 5.0] * (len(band()) // 3), mean=100.0, max=100.0)
    falls["log10_compression"] = [0.0, 1.0, 3.0] * (len(band()) // 3)
    (note,) = plotting.accuracy_grid({("cifar10", "vgg11"): falls}, {}).axes[0].texts
    assert note.get_position()[0] == corner


def test_first_epochs_have_a_line_for_each_run_and_the_authors_range():
    rows = [(recipe, seed, epoch, 4.0 - epoch, 5.0 * epoch) for recipe in "ab" for seed in (0, 1) for epoch in range(3)]
    ours = pd.DataFrame(rows, columns=["recipe", "seed", "epoch", "train_loss", "test_accuracy"])
    authors = pd.DataFrame([(e, 5.0 - e - r, 4.0 * e + r) for r in (0, 1) for e in range(9)])
    figure = plotting.first_epochs(ours, authors.set_axis(["epoch", "train_loss", "top1_accuracy"], axis=1))
    for axis, low in zip(figure.axes, ([3.0, 2.0], [4.0, 8.0]), strict=True):
        assert [line.get_xdata().tolist() for line in axis.lines] == [[1, 2]] * 4
        assert [bar.get_y() for bar in axis.patches] == low and {bar.get_height() for bar in axis.patches} == {1.0}
    assert texts(figure)[:3] == ["a", "b", "range of the authors' runs"]


def test_a_band_of_something_else_says_what_it_is():
    assert "authors, full width" in texts(
        plotting.accuracy_panel(accuracies(), band(), band_label="authors, full width")
    )


def test_cycles_have_a_panel_for_each_table_and_a_line_for_each_number():
    table = pd.DataFrame({"cycles": [0, 0, 2, 2], "log10_compression": [2.0, 1.0] * 2, "accuracy_last": [1.0, 2, 3, 4]})
    figure = plotting.cycles({"ours": table, "authors": table[table["cycles"] == 2]})
    drawn = [[line for line in axis.lines if len(line.get_xdata())] for axis in figure.axes]
    assert [len(lines) for lines in drawn] == [2, 1]
    assert drawn[0][0].get_xdata().tolist() == [1.0, 2.0]
    assert drawn[0][1].get_color() == drawn[1][0].get_color()  # two cycles look alike in all panels
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ours", "authors"]
    assert texts(figure)[:2] == ["0 cycles", "2 cycles"] and "cut in two" not in texts(figure)


def test_cycles_ring_the_networks_that_are_cut():
    table = pd.DataFrame({"cycles": 1, "log10_compression": [1.0, 2.0], "accuracy_last": [90.0, 10.0]})
    figure = plotting.cycles({"ours": table.assign(connected=[True, False])})
    rings = [line for line in figure.axes[0].lines if line.get_fillstyle() == "none" and len(line.get_xdata())]
    assert [ring.get_xydata().tolist() for ring in rings] == [[[2.0, 10.0]]]
    unknown = plotting.cycles({"ours": table.assign(connected=[None, np.nan])})
    assert "cut in two" not in texts(unknown)
    assert texts(figure)[:2] == ["1 cycle", "cut in two"]


def test_drift_compares_the_first_epoch_with_the_last_and_with_slope_one():
    squares = pd.DataFrame({"epoch": [0, 0, 1, 1, 2, 2], "inverse_size": [0.1, 0.01] * 3, "average_score": range(1, 7)})
    figure = plotting.drift({"a": squares, "b": squares}, {"ours": pd.Series([0.4, 0.5, 0.6])})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b", "slope"]
    before, after, law = figure.axes[1].lines
    assert [line.get_ydata().tolist() for line in (before, after)] == [[2, 1], [6, 5]]  # from small to large 1 / size
    x, y = law.get_xdata(), law.get_ydata()
    assert np.allclose(y / x, (y / x)[0]) and np.isclose(np.prod(y), 5 * 6)
    assert figure.axes[2].lines[0].get_ydata().tolist() == [0.4, 0.5, 0.6]
