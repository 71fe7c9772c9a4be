"""What pruning leaves: weights by layer, the schedule behind them and what they cost; the paper's figures 2 and 7."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from synflow_lib.plotting.style import COLOURS, NAMES, axes, lines, look, order, pruner_legend


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
    pruners = sorted(table["pruner"].unique(), key=order)
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
            style = look(pruner) | (hollow if network == "masked" else {})
            axis.plot(part["log10_compression"], part[column], **style)
        axis.set(title=title, xlabel="log₁₀ compression", yscale="log", xticks=steps)
    grid[0, 0].set_ylabel("relative to the dense network")
    extra = {
        "masked": {"color": "black", "marker": "o", "markerfacecolor": "none", "linestyle": "none"},
        "1 / compression": {"color": "black", "linewidth": 0.9, "linestyle": ":"},
    }
    pruner_legend(figure, table["pruner"].unique(), extra)
    return figure
