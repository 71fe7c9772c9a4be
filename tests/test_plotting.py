"""Every figure draws what its tables say, with its labels, and without a warning (warnings are errors here)."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from synflow_lib import paths, plotting
from synflow_lib.pruning import SALIENCIES

matplotlib.use("Agg")
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def layers(kept):
    table = pd.DataFrame({"layer": [f"l{i}" for i in range(len(kept))], "size": 100, "kept": kept})
    return table.assign(density=table["kept"] / table["size"])


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


def test_every_pruner_has_a_colour_a_marker_and_a_name_of_its_own():
    for table in (plotting.COLOURS, plotting.MARKERS, plotting.NAMES):
        assert list(table) == list(plotting.PRUNERS) and len(set(table.values())) == 5
    assert set(plotting.PRUNERS) == set(SALIENCIES)


def test_a_figure_is_saved_as_svg_and_png_and_the_same_drawing_gives_the_same_svg():
    figures = []
    for _ in range(2):
        plotting.save(plotting.accuracy_panel(accuracies()), "panel")
        figures.append((paths.figures() / "panel.svg").read_bytes())
    assert figures[0] == figures[1] and b"SynFlow" in figures[0]
    with Image.open(paths.figures() / "panel.png") as image:
        assert image.width > 500


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
    assert axis.lines[0].get_ydata().tolist() == [1.0, 0.1]  # the line of an emptied layer ends


@pytest.mark.parametrize("signed", [False, True])
def test_flow_in_out_draws_each_unit_once_and_the_diagonal(signed):
    flow = RANDOM.uniform(-1 if signed else 0.1, 1, 20)
    table = pd.DataFrame({"group": ["a"] * 10 + ["b"] * 10, "into": flow, "out": flow, "error": 0.25})
    axis = plotting.flow_in_out({"synflow": table}).axes[0]
    assert sum(len(line.get_xdata()) for line in axis.lines[1:]) == 20
    assert axis.get_title(loc="left") == "SynFlow\nworst error 0.25"


def test_mean_score_against_size_fits_the_slope_that_the_data_have():
    size = np.array([10.0, 100.0, 1000.0])
    table = pd.DataFrame({"pruner": "synflow", "inverse_size": 1 / size, "average_score": 3 / size})
    reference = table.assign(average_score=(1 / size) ** 0.5)
    title = plotting.mean_score_against_size(table, reference).axes[0].get_title(loc="left")
    assert title == "SynFlow: slope 1.000\nauthors 0.500"


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


def test_score_distributions_have_a_box_for_each_layer():
    scores = {"snip": {"a": torch.rand(50), "b": torch.rand(9)}, "random": {"a": torch.rand(5), "b": torch.ones(3)}}
    figure = plotting.score_distributions(scores)
    assert [len(axis.patches) for axis in figure.axes] == [2, 2]


def test_a_heatmap_writes_its_numbers():
    figure = plotting.heatmap(pd.DataFrame([[1.0, -0.25], [-0.25, 1.0]]), "correlation")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "-0.25", "-0.25", "1.00"]


def test_cut_totals_draw_every_cut():
    axis = plotting.cut_totals(pd.DataFrame({"synflow": [1.0, 1.0], "signed loss": [0.5, 1.5]})).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["SynFlow", "signed loss"]
    assert axis.lines[1].get_ydata().tolist() == [0.5, 1.5]


def test_cycles_have_a_line_for_each_number():
    table = pd.DataFrame({"cycles": [0, 0, 2, 2], "log10_compression": [2.0, 1.0] * 2, "accuracy_last": [1.0, 2, 3, 4]})
    figure = plotting.cycles(table, table[table["cycles"] == 2])
    assert [len(axis.lines) for axis in figure.axes] == [2, 1]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1.0, 2.0]


def test_drift_compares_the_first_epoch_with_the_last():
    squares = pd.DataFrame({"epoch": [0, 0, 1, 1, 2, 2], "inverse_size": [0.1, 0.01] * 3, "average_score": range(1, 7)})
    figure = plotting.drift(squares, {"ours": pd.Series([0.4, 0.5, 0.6])})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[1, 2], [5, 6]]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.4, 0.5, 0.6]


def test_schedule_ratios_draw_each_schedule_beside_the_authors():
    rows = [(f"10^{a}", s, n, 1.0 / n) for a in (2, 3) for s in ("exponential", "linear") for n in (1, 10)]
    table = pd.DataFrame(rows, columns=["compression", "schedule", "iterations", "ratio"])
    figure = plotting.schedule_ratios(table, table)
    assert [len(axis.lines) for axis in figure.axes] == [3, 3, 3]  # two compressions or schedules, and the line at 1


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
