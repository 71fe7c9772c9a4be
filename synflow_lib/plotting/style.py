"""The house style: one palette, one look, and what every figure is built from."""

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
        for p in sorted(pruners, key=order)
    ]
    lines += [plt.Line2D([], [], label=label, **style) for label, style in (extra or {}).items()]
    rows = math.ceil(len(lines) / min(7, int(figure.get_figwidth())))  # an entry is about an inch wide
    figure.legend(handles=lines, loc="outside lower center", ncols=math.ceil(len(lines) / rows))


def order(pruner: str) -> int:
    return PRUNERS.index(pruner) if pruner in PRUNERS else len(PRUNERS)


def look(pruner: str) -> dict:
    return {"color": COLOURS.get(pruner, "black"), "marker": MARKERS.get(pruner, "o")}


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
