"""One palette, one style, one function per kind of figure; `save` writes SVG and PNG for the page and the paper.

Every pruner keeps its colour, its marker and its place in the legend from the first chapter to the last.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib import paths

# Okabe and Ito (2008): distinguishable with any common colour vision deficiency, and in grey by the markers.
PRUNERS = ("random", "magnitude", "snip", "grasp", "synflow")
COLOURS = {
    "random": "#8a8a8a",
    "magnitude": "#e69f00",
    "snip": "#0072b2",
    "grasp": "#009e73",
    "synflow": "#d55e00",
}
MARKERS = {"random": "o", "magnitude": "s", "snip": "^", "grasp": "v", "synflow": "D"}
NAMES = {"random": "Random", "magnitude": "Magnitude", "snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow"}
DATASET_NAMES = {"digits": "digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny ImageNet"}
MODEL_NAMES = {
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "resnet18": "ResNet-18",
    "wide_resnet18": "WideResNet-18",
    "wide_resnet18_published": "“WideResNet-18”",
    "mlp": "MLP",
}
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "grid.color": "#e6e6e6",
    "svg.fonttype": "none",
    "svg.hashsalt": "synflow",  # the same drawing gives the same file
    "figure.constrained_layout.use": True,
}


def axes(
    columns: int = 1, rows: int = 1, width: float = 3.1, height: float = 2.7, **options
) -> tuple[Figure, np.ndarray]:
    """A new figure in the house style with `rows` x `columns` axes of `width` x `height` inches each, as an array."""
    sns.set_theme(context="paper", style="ticks", rc=STYLE)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    for each in grid.flat:
        sns.despine(ax=each)
    return figure, grid


def save(figure: Figure, name: str) -> None:
    """Write `figure` to the figures' folder as NAME.svg and NAME.png; raises InputError where that is impossible."""
    for suffix in ("svg", "png"):
        with paths.replacing(paths.figures() / f"{name}.{suffix}") as partial:
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            figure.savefig(partial, format=suffix, metadata=metadata)


def pruner_legend(figure: Figure, pruners: Sequence[str], extra: Mapping[str, dict] | None = None) -> None:
    """One legend for the whole figure, below it: the pruners in their fixed order, then `extra` line styles."""
    lines = [
        plt.Line2D([], [], color=COLOURS.get(p, "black"), marker=MARKERS.get(p, "o"), label=NAMES.get(p, p))
        for p in sorted(pruners, key=_order)
    ]
    lines += [plt.Line2D([], [], label=label, **style) for label, style in (extra or {}).items()]
    rows = math.ceil(len(lines) / min(7, int(figure.get_figwidth())))  # an entry is about an inch wide
    figure.legend(handles=lines, loc="outside lower center", ncols=math.ceil(len(lines) / rows))


def _order(pruner: str) -> int:
    return PRUNERS.index(pruner) if pruner in PRUNERS else len(PRUNERS)


def _style(pruner: str) -> dict:
    return {"color": COLOURS.get(pruner, "black"), "marker": MARKERS.get(pruner, "o")}


def layer_kept(tables: Mapping[str, pd.DataFrame], colour: str = "black") -> Figure:
    """Weights kept in each layer, one axis per pruner side by side; an emptied layer is a cross on the floor.

    `tables` maps a pruner, or any other label (drawn in `colour`), to `Masks.layers()`.
    """
    figure, grid = axes(columns=len(tables), width=2.1, height=2.6, sharey=True)
    for axis, (pruner, table) in zip(grid[0], tables.items(), strict=True):
        position, kept = np.arange(1, len(table) + 1), table["kept"].to_numpy()
        alive = kept > 0
        axis.plot(position, table["size"], color="#c8c8c8", linewidth=1.2)
        axis.bar(position[alive], kept[alive], color=COLOURS.get(pruner, colour), width=0.7)
        axis.plot(position[~alive], np.full((~alive).sum(), 1.0), "x", color="black", markersize=6, markeredgewidth=1.5)
        verdict = "no layer empty" if alive.all() else f"{(~alive).sum()} of {len(table)} layers empty"
        axis.set_title(f"{NAMES.get(pruner, pruner)}\n{verdict}", fontsize=9)
        axis.set(yscale="log", ylim=(0.6, None), xlabel="layer", xticks=position[:: max(1, len(table) // 5)])
    grid[0, 0].set_ylabel("weights kept (grey: all)")
    return figure


def layer_density(table: pd.DataFrame) -> Figure:
    """Density of each layer over compression, one axis per pruner (the paper's figure 2).

    `table` has the columns pruner, log10_compression, layer (any labels, in order), density. The lines run from the
    first layer (dark) to the last (light) and end where a layer is empty.
    """
    pruners = sorted(table["pruner"].unique(), key=_order)
    figure, grid = axes(columns=len(pruners), width=2.1, height=2.5, sharex=True, sharey=True)
    layers = list(dict.fromkeys(table["layer"]))
    shades = sns.color_palette("viridis", len(layers))
    for axis, pruner in zip(grid[0], pruners, strict=True):
        part = table[table["pruner"] == pruner]
        for shade, layer in zip(shades, layers, strict=True):
            line = part[(part["layer"] == layer) & (part["density"] > 0)]
            axis.plot(line["log10_compression"], line["density"], color=shade, linewidth=1.2)
        emptied = part.groupby("log10_compression")["density"].min()
        if (emptied == 0).any():
            first = emptied.index[emptied == 0].min()
            axis.axvline(first, color="black", linewidth=0.8, linestyle=":")
            axis.text(first, 1.3, "collapse ", ha="right", va="bottom", fontsize=7.5)
        axis.set_title(NAMES.get(pruner, pruner), pad=12)
        axis.set(yscale="log", xlabel="log₁₀ compression")
    grid[0, 0].set_ylabel("density of the layer")
    scale = plt.cm.ScalarMappable(plt.Normalize(1, len(layers)), sns.color_palette("viridis", as_cmap=True))
    figure.colorbar(scale, ax=grid[0, -1], label="layer, input to output", ticks=[1, len(layers)])
    return figure


def flow_in_out(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Saliency out of each hidden unit against saliency into it, one axis per pruner (the paper's figure 3).

    `tables` maps a pruner to `conservation.neurons(...)`; conserved units lie on the diagonal. Signed saliencies are
    drawn on a symmetric logarithmic scale.
    """
    figure, grid = axes(columns=len(tables), width=2.1, height=2.5)
    for axis, (pruner, table) in zip(grid[0], tables.items(), strict=True):
        both = table[["into", "out"]].to_numpy()
        signed, largest = bool((both < 0).any()), float(np.abs(both).max())
        low = -largest if signed else float(both[both > 0].min())
        axis.plot([low, largest], [low, largest], color="black", linewidth=0.8, linestyle="--", zorder=0)
        colours = sns.color_palette("viridis", table["group"].nunique())
        for colour, (_, group) in zip(colours, table.groupby("group", sort=False), strict=True):
            axis.plot(group["into"], group["out"], ".", color=colour, markersize=3, alpha=0.6, rasterized=True)
        scale = {"value": "symlog", "linthresh": largest * 1e-3} if signed else {"value": "log"}
        axis.set_xscale(**scale)
        axis.set_yscale(**scale)
        ticks = [-largest, 0, largest] if signed else [low, largest]
        for each in (axis.xaxis, axis.yaxis):
            each.set_ticks(ticks, labels=[f"{tick:.0e}" if tick else "0" for tick in ticks], fontsize=7)
            each.set_minor_locator(plt.NullLocator())
        axis.set_title(f"{NAMES.get(pruner, pruner)}\nworst error {table['error'].max():.2g}", fontsize=9)
        axis.set_xlabel("saliency into the unit")
    grid[0, 0].set_ylabel("saliency out of the unit")
    return figure


def mean_score_against_size(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Mean score of a layer against the inverse of its size, with fitted slopes (the paper's figure 4).

    `table` has the columns pruner, inverse_size, average_score (one row per layer; negative means are left out, they
    have no logarithm); `reference` likewise, drawn hollow behind it.
    """
    pruners = sorted(table["pruner"].unique(), key=_order)
    figure, grid = axes(columns=len(pruners), width=2.1, height=2.5, sharex=True)
    for axis, pruner in zip(grid[0], pruners, strict=True):
        lines = [f"{NAMES.get(pruner, pruner)}: slope {draw_slope(axis, table, pruner):.3f}"]
        if reference is not None:
            lines.append(f"authors {draw_slope(axis, reference, pruner, hollow=True):.3f}")
        axis.set_title("\n".join(lines), fontsize=8.5)
        axis.set(xscale="log", yscale="log", xlabel="1 / layer size")
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, high / 20), high * 1.3)  # at least one labelled power of ten
    grid[0, 0].set_ylabel("mean score of the layer")
    return figure


def draw_slope(axis: Axes, table: pd.DataFrame, pruner: str, hollow: bool = False) -> float:
    """Draw one pruner's layers and the line fitted to their logarithms; return its slope."""
    part = table[(table["pruner"] == pruner) & (table["average_score"] > 0)]
    x, y = np.log10(part["inverse_size"]), np.log10(part["average_score"])
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    style = _style(pruner) | ({"markerfacecolor": "none", "alpha": 0.5} if hollow else {})
    axis.plot(part["inverse_size"], part["average_score"], linestyle="none", **style)
    style["marker"], style["linestyle"] = "", ":" if hollow else "-"
    axis.plot(10**ends, 10 ** (slope * ends + offset), linewidth=1, **style)
    return float(slope)


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
        axis.errorbar(runs["log10_compression"], runs["mean"], yerr=bars, capsize=2, elinewidth=0.9, **_style(pruner))
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
        if (dataset, model) not in tables:
            axis.text(0.04, 0.14, "authors only", transform=axis.transAxes, fontsize=8, color="#606060")
        axis.label_outer()
    extra = {"range of the authors' 3 runs": {"color": "black", "alpha": 0.3, "linewidth": 5}}
    extra |= {"ours": {"color": "black", "marker": "o"}} if tables else {}
    lines_only = {NAMES[p]: {"color": COLOURS[p]} for p in PRUNERS}
    pruner_legend(figure, [], lines_only | extra)
    return figure


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
    extra = {recipe: {"color": colour, "marker": "."} for recipe, colour in colours.items()}
    pruner_legend(figure, [], extra | {"range of the authors' runs": {"color": "#c8c8c8", "linewidth": 5}})
    return figure


def lines(
    axis: Axes, table: pd.DataFrame, x: str, y: str, by: str, palette: str = "viridis", log: str = "", **labels: str
) -> None:
    """Draw y over x, one line per value of `by` from dark to light; `log` names the logarithmic axes ("x", "xy")."""
    groups = list(table.groupby(by, sort=False))
    for colour, (value, part) in zip(sns.color_palette(palette, len(groups)), groups, strict=True):
        axis.plot(part[x], part[y], marker=".", color=colour, label=str(value))
    for each in log:
        getattr(axis, f"set_{each}scale")("log")
    axis.set(**labels)


def score_distributions(scores: Mapping[str, Mapping[str, object]], sample: int = 2000) -> Figure:
    """How each pruner's scores are spread in each layer: box plots of log10 of the positive scores, over their median.

    `scores` maps a pruner to what its saliency returned; `sample` scores of each layer are drawn, evenly by rank.
    """
    figure, grid = axes(columns=len(scores), width=2.1, height=2.5, sharey=True)
    for axis, (pruner, layers) in zip(grid[0], scores.items(), strict=True):
        columns = [_logarithms(score, sample) for score in layers.values()]
        centre = np.median(np.concatenate(columns))
        axis.boxplot(
            [column - centre for column in columns],
            widths=0.65,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": COLOURS[pruner], "linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 0.9},
            whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6},
        )
        axis.set(title=NAMES.get(pruner, pruner), xlabel="layer", xticks=range(1, len(columns) + 1, 2))
        axis.set_xticklabels(range(1, len(columns) + 1, 2))
    grid[0, 0].set_ylabel("log₁₀ (score / median score)")
    return figure


def _logarithms(score, sample: int) -> np.ndarray:
    values = np.sort(score.detach().cpu().double().numpy().ravel())
    values = values[values > 0]
    return np.log10(values[np.linspace(0, len(values) - 1, min(sample, len(values))).astype(int)])


def heatmap(table: pd.DataFrame, label: str, vmin: float = -1, vmax: float = 1) -> Figure:
    """A small matrix with its numbers written in the cells, from `vmin` to `vmax`."""
    figure, grid = axes(width=5.4, height=3.2)
    sns.heatmap(
        table,
        annot=True,
        fmt=".2f",
        vmin=vmin,
        vmax=vmax,
        cmap="vlag",
        ax=grid[0, 0],
        cbar_kws={"label": label},
    )
    grid[0, 0].tick_params(length=0)
    grid[0, 0].tick_params(axis="y", rotation=0)
    return figure


def cut_totals(table: pd.DataFrame) -> Figure:
    """Totals over many cuts, one column of dots per score, each divided by its mean: conserved scores all lie at 1."""
    figure, grid = axes(width=5.2, height=2.9)
    axis, generator = grid[0, 0], np.random.default_rng(0)
    for position, (name, column) in enumerate(table.items()):
        jitter = generator.uniform(-0.28, 0.28, len(column))
        axis.plot(position + jitter, column, ".", color=COLOURS.get(name, "black"), markersize=3, alpha=0.6)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--", zorder=0)
    axis.set_xticks(range(len(table.columns)), labels=[NAMES.get(name, name) for name in table.columns])
    axis.set(ylabel="total over the cut / mean of all cuts")
    return figure


def cycles(ours: pd.DataFrame, authors: pd.DataFrame) -> Figure:
    """Accuracy after iterative pruning against compression, a line per number of cycles; ours left, published right.

    Both tables have the columns cycles, log10_compression, accuracy_last.
    """
    figure, grid = axes(columns=2, width=3.4, height=2.8)
    shades = sns.color_palette("viridis", 1 + max(ours["cycles"].max(), authors["cycles"].max()))
    for axis, table, title in zip(grid[0], (ours, authors), ("ours", "authors, VGG-11 on CIFAR-10"), strict=True):
        for number, part in table.groupby("cycles"):
            part = part.sort_values("log10_compression")
            style = {"color": shades[number]} if number else {"color": "#8a8a8a", "linestyle": "--"}
            axis.plot(part["log10_compression"], part["accuracy_last"], marker=".", label=number, **style)
        axis.set(title=title, xlabel="log₁₀ compression")
        axis.legend(title="cycles", loc="lower left")
    grid[0, 0].set_ylabel("top-1 accuracy, last epoch (%)")
    return figure


def drift(squares: pd.DataFrame, slopes: Mapping[str, pd.Series]) -> Figure:
    """Left, mean squared weight of each layer against 1/size before and after training; right, the slope by epoch.

    `squares` has epoch, inverse_size, average_score; `slopes` maps a label to a series over epochs.
    """
    figure, grid = axes(columns=2, width=3.4, height=2.8)
    ends = {"before training": squares["epoch"].min(), "after training": squares["epoch"].max()}
    for colour, (label, epoch) in zip(("#8a8a8a", COLOURS["magnitude"]), ends.items(), strict=True):
        part = squares[squares["epoch"] == epoch]
        grid[0, 0].plot(part["inverse_size"], part["average_score"], "o", color=colour, label=label)
    grid[0, 0].set(xscale="log", yscale="log", xlabel="1 / layer size", ylabel="mean squared weight")
    grid[0, 0].legend()
    grid[0, 0].yaxis.set_minor_formatter(plt.NullFormatter())
    for colour, (label, series) in zip(sns.color_palette("colorblind"), slopes.items(), strict=False):
        grid[0, 1].plot(series.index / series.index.max(), series, color=colour, label=label)
    grid[0, 1].axhline(1, color="black", linewidth=0.8, linestyle="--")
    grid[0, 1].text(1, 0.99, "equal layer totals", ha="right", va="top", fontsize=8)
    grid[0, 1].set(xlabel="share of training", ylabel="slope of the logarithms", ylim=(0, 1.05))
    grid[0, 1].legend(loc="lower right")
    return figure


def schedule_ratios(ours: pd.DataFrame, authors: pd.DataFrame) -> Figure:
    """Largest removed score over flow against the number of iterations, per schedule (the paper's figure 7).

    Both tables have compression (a label such as "10^3", which of the authors' is drawn), schedule, iterations, ratio.
    """
    figure, grid = axes(columns=3, width=3.0, height=2.8, sharey=True)
    for axis, schedule in zip(grid[0], ("exponential", "linear"), strict=False):
        part = ours[ours["schedule"] == schedule]
        lines(axis, part, "iterations", "ratio", by="compression", title=f"ours, {schedule}", xlabel="iterations")
        axis.legend(title="compression")
    part = authors[authors["compression"] == "10^3"]
    lines(
        grid[0, 2], part, "iterations", "ratio", by="schedule", title="authors, compression 10^3", xlabel="iterations"
    )
    grid[0, 2].legend()
    for axis in grid[0]:
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", yscale="log")
    grid[0, 0].set_ylabel("largest removed score / flow")
    return figure


def relative_costs(table: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Costs over those of the dense network against compression, one axis for each of `columns`, which names them.

    `table` has pruner, log10_compression, network ("compact": lines; "masked": hollow markers) and `columns`. The
    dotted line is 1 / compression. A line ends where the masks cut the network in two and there is nothing to measure.
    """
    figure, grid = axes(columns=len(columns), width=1.9, height=3.0, sharey=True)
    steps = np.sort(table["log10_compression"].unique())
    for axis, (column, title) in zip(grid[0], columns.items(), strict=True):
        axis.plot(steps, 10.0**-steps, color="black", linewidth=0.9, linestyle=":")
        for (pruner, network), part in table.groupby(["pruner", "network"]):
            hollow = {"linestyle": "none", "markerfacecolor": "none", "markersize": 5.5, "alpha": 0.7}
            style = _style(pruner) | (hollow if network == "masked" else {})
            axis.plot(part["log10_compression"], part[column], **style)
        axis.set(title=title, xlabel="log₁₀ compression", yscale="log", xticks=steps)
    grid[0, 0].set_ylabel("relative to the dense network")
    extra = {
        "masked": {"color": "black", "marker": "o", "markerfacecolor": "none", "linestyle": "none"},
        "1 / compression": {"color": "black", "linewidth": 0.9, "linestyle": ":"},
    }
    pruner_legend(figure, table["pruner"].unique(), extra)
    return figure
