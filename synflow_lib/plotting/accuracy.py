"""What trained networks reach: the paper's figures 1, 5 and 6."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib.plotting.style import COLOURS, DATASET_NAMES, MODEL_NAMES, NAMES, PRUNERS, axes, look, pruner_legend

MARKS = ("o", "s", "^", "v", "D", "P")  # where lines differ in more than the pruner
CUT = {"linestyle": "none", "marker": "o", "markersize": 7, "fillstyle": "none", "color": "black"}
MANY_POINTS = 12  # on a line: more than these have small markers


def accuracy(axis: Axes, table: pd.DataFrame, band: pd.DataFrame | None = None) -> None:
    """Top-1 accuracy against compression on `axis`: ours as lines with markers, a published range as a band.

    `table` has the columns pruner, log10_compression, accuracy (percent), one row per run; the line goes through the
    means, a bar from the lowest to the highest run. `band` has pruner, log10_compression, min, mean, max.
    """
    if band is not None:
        for pruner, part in band.groupby("pruner"):
            part, colour = part.sort_values("log10_compression"), COLOURS.get(pruner, "black")
            axis.fill_between(
                part["log10_compression"], part["min"], part["max"], color=colour, alpha=0.25, linewidth=0
            )
            axis.plot(part["log10_compression"], part["mean"], color=colour, linewidth=0.9, alpha=0.8)
    for pruner, part in table.groupby("pruner"):
        runs = part.groupby("log10_compression")["accuracy"].agg(["min", "mean", "max"]).reset_index()
        bars = (runs["mean"] - runs["min"], runs["max"] - runs["mean"])
        axis.errorbar(runs["log10_compression"], runs["mean"], yerr=bars, capsize=2, elinewidth=0.9, **look(pruner))
    axis.set(xlabel="log₁₀ compression", ylabel="top-1 accuracy (%)")


def panel_title(dataset: str, model: str, width: float = 1.0) -> str:
    """What a panel shows, e.g. "VGG-16 on CIFAR-10", and the share of the paper's channels where that is not all."""
    share = "" if width == 1 else f", {width:g} of the channels"
    return f"{MODEL_NAMES.get(model, model)} on {DATASET_NAMES.get(dataset, dataset)}{share}"


def accuracy_panel(
    table: pd.DataFrame, band: pd.DataFrame | None = None, title: str = "", band_label: str = "authors, 3 runs"
) -> Figure:
    """One panel of the paper's figure 6; see `accuracy` for the tables. `band_label` says what the band is."""
    figure, grid = axes(width=5.2, height=3.4)
    accuracy(grid[0, 0], table, band)
    grid[0, 0].set_title(title)
    extra = {band_label: {"color": "black", "alpha": 0.3, "linewidth": 5}} if band is not None else None
    pruners = set(table["pruner"]) | (set(band["pruner"]) if band is not None else set())
    pruner_legend(figure, sorted(pruners), extra)
    return figure


def accuracy_grid(
    bands: Mapping[tuple[str, str], pd.DataFrame], tables: Mapping[tuple[str, str], pd.DataFrame]
) -> Figure:
    """The paper's figure 6: one panel per (data set, model), data sets in rows; ours over the bands.

    A panel that `tables` has not says so: "authors only".
    """
    datasets = list(dict.fromkeys(dataset for dataset, _ in bands))
    models = list(dict.fromkeys(model for _, model in bands))
    figure, grid = axes(columns=len(models), rows=len(datasets), width=2.5, height=2.1, sharex=True, sharey="row")
    empty = pd.DataFrame(columns=["pruner", "log10_compression", "accuracy"])
    for (dataset, model), band in bands.items():
        axis = grid[datasets.index(dataset), models.index(model)]
        accuracy(axis, tables.get((dataset, model), empty), band)
        axis.set_title(f"{DATASET_NAMES[dataset]}, {MODEL_NAMES[model]}", fontsize=9)
        axis.label_outer()
    for (dataset, model), band in bands.items():  # now that the axes have their limits
        if (dataset, model) not in tables:
            _in_a_free_corner(grid[datasets.index(dataset), models.index(model)], "authors only", band)
    extra = {"range of the authors' 3 runs": {"color": "black", "alpha": 0.3, "linewidth": 5}}
    extra |= {"ours": {"color": "black", "marker": "o"}} if tables else {}
    lines_only = {NAMES[p]: {"color": COLOURS[p]} for p in PRUNERS}
    pruner_legend(figure, [], lines_only | extra)
    return figure


def _in_a_free_corner(axis: Axes, note: str, band: pd.DataFrame) -> None:
    """Write `note` at the bottom left of a panel or, where curves of `band` fall into that corner, at the top right."""
    low, high = axis.get_ylim()
    left = band[band["log10_compression"] <= band["log10_compression"].max() * 0.4]
    place = (0.04, 0.14, "left") if left["min"].min() > low + 0.3 * (high - low) else (0.98, 0.88, "right")
    x, y, side = place
    axis.text(x, y, note, ha=side, transform=axis.transAxes, fontsize=8, color="#606060")


def first_epochs(ours: pd.DataFrame, authors: pd.DataFrame) -> Figure:
    """Training loss and test accuracy of the first epochs: our recipes as lines, the range of the authors' runs grey.

    `ours` has recipe, seed, epoch, train_loss, test_accuracy; `authors` has epoch, train_loss, top1_accuracy, a row
    per run and epoch.
    """
    figure, grid = axes(columns=2, width=3.4, height=2.8)
    names = {"train_loss": "training loss", "test_accuracy": "top-1 accuracy (%)"}
    columns = {"train_loss": "train_loss", "test_accuracy": "top1_accuracy"}
    colours = dict(zip(ours["recipe"].unique(), sns.color_palette("colorblind"), strict=False))
    authors = authors[authors["epoch"].between(1, ours["epoch"].max())]
    for axis, (name, label) in zip(grid[0], names.items(), strict=True):
        band = authors.groupby("epoch")[columns[name]].agg(["min", "max"])
        # A band over a single epoch would have no width: bars reach half an epoch to both sides.
        axis.bar(band.index, band["max"] - band["min"], bottom=band["min"], width=0.7, color="#c8c8c8", zorder=0)
        for (recipe, _), part in ours[ours["epoch"] > 0].groupby(["recipe", "seed"]):
            axis.plot(part["epoch"], part[name], marker=".", color=colours[recipe])
        axis.use_sticky_edges = False  # else the axis would end where the bars do
        axis.set(xlabel="epoch", ylabel=label, xticks=band.index, xlim=(0.4, band.index.max() + 0.6))
    line = "-" if len(band) > 1 else ""
    extra = {recipe: {"color": colour, "marker": ".", "linestyle": line} for recipe, colour in colours.items()}
    pruner_legend(figure, [], extra | {"range of the authors' runs": {"color": "#c8c8c8", "linewidth": 5}})
    return figure


def cycles(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """The paper's figure 5a: accuracy after iterative pruning against compression, a line per number of cycles.

    One panel per title of `panels`; the tables have the columns cycles, log10_compression, accuracy_last (percent), and
    may have `connected`: a ring stands where it says that no path is left from input to output.
    """
    figure, grid = axes(columns=len(panels), width=2.6, height=2.8, sharey=True)
    numbers = sorted({int(number) for table in panels.values() for number in table["cycles"]})
    colours = dict(zip(numbers, sns.color_palette("viridis", len(numbers)), strict=True))
    styles = {n: {"color": colours[n], "marker": MARKS[n % len(MARKS)]} for n in numbers}
    styles |= {0: {"color": COLOURS["random"], "marker": "x", "linestyle": "--", "zorder": 3}} if 0 in numbers else {}
    ringed = False
    for axis, (title, table) in zip(grid[0], panels.items(), strict=True):
        for number, part in table.groupby("cycles"):
            part = part.sort_values("log10_compression")
            size = 4 if len(part) <= MANY_POINTS else 2
            axis.plot(part["log10_compression"], part["accuracy_last"], markersize=size, **styles[number])
            cut = part[part["connected"].eq(False)] if "connected" in part else part[:0]
            ring = {**CUT, "color": styles[number]["color"], "markersize": 7 + 2.5 * number}  # several share a place
            axis.plot(cut["log10_compression"], cut["accuracy_last"], **ring)
            ringed |= bool(len(cut))
        axis.set(xlabel="log₁₀ compression", ylim=(0, 102))
        axis.set_title(title, fontsize=9)
    grid[0, 0].set_ylabel("top-1 accuracy, last epoch (%)")
    legend = {_counted(number): style for number, style in styles.items()}
    pruner_legend(figure, [], legend | ({"cut in two": CUT} if ringed else {}))
    return figure


def _counted(cycles: int) -> str:
    return "1 cycle" if cycles == 1 else f"{cycles} cycles"


def drift(squares: Mapping[str, pd.DataFrame], slopes: Mapping[str, pd.Series]) -> Figure:
    """The paper's figure 5b: mean squared weight of each layer against 1/size before and after training; slopes last.

    A panel per title of `squares`, whose tables have epoch, inverse_size, average_score; the dashed line has slope 1.
    `slopes` maps a label to the slope by epoch, drawn in the last panel over the share of training.
    """
    rows = math.ceil((len(squares) + 1) / 2)
    figure, grid = axes(columns=2, rows=rows, width=3.4, height=2.6)
    *panels, last = grid.flat[: len(squares) + 1]
    for unused in grid.flat[len(squares) + 1 :]:
        unused.remove()
    for axis, (title, table) in zip(panels, squares.items(), strict=True):
        _before_and_after(axis, table)
        axis.set(title=title, xscale="log", yscale="log", xlabel="1 / layer size", ylabel="mean squared weight")
    panels[0].legend(loc="upper left")
    for colour, mark, (label, series) in zip(sns.color_palette("colorblind"), MARKS, slopes.items(), strict=False):
        points = {"marker": mark, "markevery": [0, -1]}
        last.plot(series.index / series.index.max(), series, color=colour, label=label, **points)
    last.axhline(1, color="black", linewidth=0.8, linestyle="--")
    last.text(1, 0.99, "equal layer totals", ha="right", va="top", fontsize=8)
    last.set(title="slope", xlabel="share of training", ylabel="slope of the logarithms", ylim=(0, 1.05))
    last.legend(loc="lower right")
    return figure


def _before_and_after(axis: Axes, table: pd.DataFrame) -> None:
    """The layers at the first and at the last epoch of `table`, and slope 1 through the middle of the last."""
    ends = {"before training": table["epoch"].min(), "after training": table["epoch"].max()}
    looks = {"color": COLOURS["random"], "marker": "o"}, {"color": COLOURS["magnitude"], "marker": "s"}
    for style, (label, epoch) in zip(looks, ends.items(), strict=True):
        part = table[table["epoch"] == epoch].sort_values("inverse_size")
        axis.plot(part["inverse_size"], part["average_score"], linestyle="none", label=label, **style)
    total = np.exp(np.log(part["average_score"] / part["inverse_size"]).mean())
    axis.plot(part["inverse_size"], total * part["inverse_size"], "k--", linewidth=0.8, label="equal layer totals")
