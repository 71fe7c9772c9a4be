"""What initialisation, pruning and isometry do to signals, and what that does to training: chapter 10."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib.plotting.accuracy import MARKS
from synflow_lib.plotting.style import COLOURS, NAMES, axes, look, order, pruner_legend

STATES = {"pruned": {"linestyle": "--"}, "after isometry": {"linestyle": "-"}}


def kept_by_initialisation(table: pd.DataFrame) -> Figure:
    """Density of each layer, a line per initialisation; a column of axes per network and a row per depth.

    `table` has network (the titles), depth, initialisation, layer (1 for the first) and density. An empty layer is a
    cross on the floor.
    """
    networks, depths, schemes = (table[name].unique() for name in ("network", "depth", "initialisation"))
    figure, grid = axes(columns=len(networks), rows=len(depths), width=2.7, height=2.0, sharey=True)
    looks = dict(zip(schemes, zip(sns.color_palette("colorblind", len(schemes)), MARKS * 2, strict=False), strict=True))
    floor = table.loc[table["density"] > 0, "density"].min() / 2
    for row, depth in zip(grid, depths, strict=True):
        for axis, network in zip(row, networks, strict=True):
            part = table[(table["network"] == network) & (table["depth"] == depth)]
            for scheme, line in part.groupby("initialisation", sort=False):
                colour, mark = looks[scheme]
                axis.plot(line["layer"], line["density"].clip(lower=floor), color=colour, marker=mark, markersize=4)
                empty = line[line["density"] == 0]
                axis.plot(empty["layer"], [floor] * len(empty), "x", color="black", markersize=8, zorder=5)
            axis.set(title=f"{network}, {depth} layers", yscale="log", xticks=part["layer"].unique())
        row[0].set_ylabel("density of the layer")
    for axis in grid[-1]:
        axis.set_xlabel("layer, input to output")
    extra = {scheme: {"color": colour, "marker": mark} for scheme, (colour, mark) in looks.items()}
    extra |= {"empty": {"color": "black", "marker": "x", "linestyle": "none"}} if (table["density"] == 0).any() else {}
    pruner_legend(figure, [], extra)
    return figure


def singular_values(table: pd.DataFrame, floor: float = 1e-6) -> Figure:
    """Singular values over the share of weights removed: a row of axes per quantity, a column per pruner.

    `table` has quantity, pruner, state ("at initialisation" once for all pruners; "pruned", "after isometry"), removed
    (percent), mean, min and max. Lines are means, bands reach from the smallest to the largest value: grey at
    initialisation, hatched pruned, full after isometry. What is below `floor` is drawn there.
    """
    start = table[table["state"] == "at initialisation"].set_index("quantity")
    after = table[table["state"] != "at initialisation"]
    pruners, ticks = sorted(after["pruner"].unique(), key=order), sorted(after["removed"].unique())
    figure, grid = axes(columns=len(pruners), rows=len(start), width=2.3, height=2.3, sharex=True, sharey=True)
    for row, quantity in zip(grid, start.index, strict=True):
        for axis, pruner in zip(row, pruners, strict=True):
            least, mean, largest = start.loc[quantity, ["min", "mean", "max"]].clip(lower=floor)
            axis.axhspan(least, largest, color="#e4e4e4", zorder=0)
            axis.axhline(mean, color="#707070", linewidth=1, zorder=1)
            part = after[(after["quantity"] == quantity) & (after["pruner"] == pruner)]
            for state, line in part.groupby("state"):
                _band(axis, line.assign(x=_logit(line["removed"])), pruner, state, floor)
            axis.set_yscale("log")
            axis.set_xticks(_logit(pd.Series(ticks)), labels=[f"{tick:g}" for tick in ticks], fontsize=7.5)
        row[0].set_ylabel(f"singular values,\n{quantity}")
    for axis, pruner in zip(grid[0], pruners, strict=True):
        axis.set_title(NAMES.get(pruner, pruner))
    for axis in grid[-1]:
        axis.set_xlabel("weights removed (%)")
    extra = {"at initialisation": {"color": "#707070", "linewidth": 1}}
    extra |= {state: {"color": "black", **style} for state, style in STATES.items()}
    pruner_legend(figure, [], extra)
    return figure


def _band(axis: Axes, line: pd.DataFrame, pruner: str, state: str, floor: float) -> None:
    """One line of means with its band from the smallest to the largest value."""
    colour = COLOURS.get(pruner, "black")
    low, mean, high = (line[name].clip(lower=floor) for name in ("min", "mean", "max"))
    fill = {"facecolor": colour, "alpha": 0.3, "linewidth": 0}
    if state == "pruned":
        fill = {"facecolor": "none", "edgecolor": colour, "alpha": 0.5, "hatch": "////", "linewidth": 0}
    axis.fill_between(line["x"], low, high, **fill)
    hollow = {"markerfacecolor": "white"} if state == "pruned" else {}
    axis.plot(line["x"], mean, **look(pruner), **STATES[state], **hollow)


def _logit(removed: pd.Series) -> pd.Series:
    """Percentages where 90 and 99 lie as far apart as 10 and 1 do."""
    return np.log10(removed / (100 - removed))


def trainability(table: pd.DataFrame) -> Figure:
    """Training loss by epoch with and without isometry, a column per mask, a row per compression; bands span the seeds.

    `table` has pruner, log10_compression, state, seed, epoch, train_loss.
    """
    table = table[table["epoch"] > 0]
    pruners, powers = sorted(table["pruner"].unique(), key=order), sorted(table["log10_compression"].unique())
    figure, grid = axes(columns=len(pruners), rows=len(powers), width=2.0, height=2.1, sharex=True, sharey=True)
    for row, power in zip(grid, powers, strict=True):
        for axis, pruner in zip(row, pruners, strict=True):
            part = table[(table["pruner"] == pruner) & (table["log10_compression"] == power)]
            for state, runs in part.groupby("state"):
                losses = runs.groupby("epoch")["train_loss"].agg(["mean", "min", "max"])
                axis.plot(losses.index, losses["mean"], color=COLOURS.get(pruner, "black"), **STATES[state])
                band = {"color": COLOURS.get(pruner, "black"), "alpha": 0.2, "linewidth": 0}
                axis.fill_between(losses.index, losses["min"], losses["max"], **band)
            axis.set(ylim=(0, None))
        row[0].set_ylabel(f"training loss\nat compression {10**power:,.3g}")
    for axis, pruner in zip(grid[0], pruners, strict=True):
        axis.set_title(NAMES.get(pruner, pruner))
    for axis in grid[-1]:
        axis.set(xlabel="epoch", xticks=sorted(table["epoch"].unique()))
    pruner_legend(figure, [], {state: {"color": "black", **style} for state, style in STATES.items()})
    return figure


def two_theories(table: pd.DataFrame) -> Figure:
    """Every layer's deviation from isometry against its deviation from conservation, one axis per pruner.

    `table` has pruner, log10_compression (the colour), conservation and isometry. Deviations below 1e-8 are rounding
    and are drawn there; the dotted line is that of a layer without weights.
    """
    pruners = sorted(table["pruner"].unique(), key=order)
    figure, grid = axes(columns=len(pruners), width=2.0, height=2.6, sharex=True, sharey=True)
    scale = plt.cm.ScalarMappable(plt.Normalize(0, table["log10_compression"].max()), "viridis")
    for axis, pruner in zip(grid[0], pruners, strict=True):
        part = table[table["pruner"] == pruner]
        style = {"c": scale.to_rgba(part["log10_compression"]), "marker": look(pruner)["marker"], "s": 16}
        axis.scatter(part["conservation"].clip(lower=1e-8), part["isometry"], alpha=0.8, linewidths=0, **style)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
        axis.set(title=NAMES.get(pruner, pruner), xscale="log", ylim=(0, None))
        axis.set_xlabel("deviation from conservation", fontsize=8)
        axis.set_xticks([1e-8, 1e-4, 1])
    grid[0, 0].set_ylabel("deviation from isometry")
    figure.colorbar(scale, ax=grid[0, -1], label="log₁₀ compression")
    return figure
