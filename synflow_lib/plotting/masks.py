"""What pruning leaves: weights by layer, and what they cost; the paper's figure 2."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib.plotting.style import COLOURS, NAMES, axes, look, order, pruner_legend
from synflow_lib.pruning.densities import first_collapse


def layer_kept(tables: Mapping[str, pd.DataFrame], colour: str = "black", what: str = "weights kept") -> Figure:
    """Weights kept in each layer, one axis per pruner side by side; an emptied layer is a cross on the floor.

    `tables` maps a pruner, or any other label (drawn in `colour`), to `Masks.layers()`, whose `kept` counts `what`.
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
    grid[0, 0].set_ylabel(f"{what} (grey: all)")
    return figure


def layer_density(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Density of each layer over compression, one axis per pruner (the paper's figure 2).

    `table` has the columns pruner, log10_compression, layer (any labels, in order), density. The lines run from the
    first layer (dark) to the last (light) and end where a layer is empty: the dotted line is the first compression
    with one. `reference` is such a table of the same layers, drawn as dots; then the panels stand in two rows.
    """
    pruners = sorted(table["pruner"].unique(), key=order)
    rows, columns = (1, len(pruners)) if reference is None else (2, len(pruners) // 2 + 1)
    figure, grid = axes(columns=columns, rows=rows, width=2.1, height=2.5, sharex=True, sharey=True)
    layers = list(dict.fromkeys(table["layer"]))
    shades = dict(zip(layers, sns.color_palette("viridis", len(layers)), strict=True))
    for axis, pruner in zip(grid.flat, pruners, strict=False):
        part = table[table["pruner"] == pruner]
        if reference is not None:
            _beside(axis, pruner, part, reference[reference["pruner"] == pruner], shades)
        _layer_lines(axis, part, shades, linewidth=1.2)
        if (first := first_collapse(part)) < np.inf:
            axis.axvline(first, color="black", linewidth=0.8, linestyle=":")
        if reference is None:
            axis.set_title(NAMES.get(pruner, pruner), pad=12)
            axis.text(min(first, 1e9), 1.3, "collapse " * (first < np.inf), ha="right", va="bottom", fontsize=7.5)
        axis.set(yscale="log", xlabel="log₁₀ compression")
        axis.tick_params(labelbottom=True)
    for axis in grid[:, 0]:
        axis.set_ylabel("density of the layer")
    _layer_key(figure, grid, len(pruners), len(layers))
    return figure


def _layer_lines(axis: Axes, table: pd.DataFrame, shades: Mapping[object, tuple], **style) -> None:
    for layer, shade in shades.items():
        line = table[table["layer"] == layer].sort_values("log10_compression")
        axis.plot(line["log10_compression"], line["density"].where(line["density"] > 0), color=shade, **style)


def _beside(axis: Axes, pruner: str, ours: pd.DataFrame, authors: pd.DataFrame, shades: Mapping) -> None:
    """Draw the authors' densities, and say in the title where either table has its first empty layer."""
    _layer_lines(axis, authors, shades, linestyle="none", marker="o", markersize=2.4, alpha=0.5)
    said = [f"$10^{{{log10:.1f}}}$" if log10 < np.inf else "none" for log10 in map(first_collapse, (ours, authors))]
    axis.set_title(f"{NAMES.get(pruner, pruner)}\ncollapse: {said[0]}, authors {said[1]}", fontsize=8.5)


def _layer_key(figure: Figure, grid: np.ndarray, panels: int, layers: int) -> None:
    """The colours of the layers; in a grid of more axes than `panels`, in the first that is left, with a legend."""
    scale = plt.cm.ScalarMappable(plt.Normalize(1, layers), sns.color_palette("viridis", as_cmap=True))
    options = {"label": "layer, input to output", "ticks": [1, layers]}
    for axis in grid.flat[panels:]:
        axis.set_axis_off()
    if grid.size == panels:
        figure.colorbar(scale, ax=grid[0, -1], **options)
        return
    key = grid.flat[panels]
    figure.colorbar(scale, cax=key.inset_axes((0.08, 0.18, 0.75, 0.08)), orientation="horizontal", **options)
    looks = {
        "ours": {"color": "#404040", "linewidth": 1.2},
        "authors": {"color": "#404040", "linestyle": "none", "marker": "o", "markersize": 2.4},
        "first empty layer, ours": {"color": "black", "linewidth": 0.8, "linestyle": ":"},
    }
    handles = [plt.Line2D([], [], label=label, **look) for label, look in looks.items()]
    key.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.08, 0.95))


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
