"""How scores are spread, and what they conserve: the paper's figures 3 and 4."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib.plotting.style import COLOURS, NAMES, axes, look, order


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
    pruners = sorted(table["pruner"].unique(), key=order)
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
    style = look(pruner) | ({"markerfacecolor": "none", "alpha": 0.5} if hollow else {})
    axis.plot(part["inverse_size"], part["average_score"], linestyle="none", **style)
    style["marker"], style["linestyle"] = "", ":" if hollow else "-"
    axis.plot(10**ends, 10 ** (slope * ends + offset), linewidth=1, **style)
    return float(slope)


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
