"""How scores are spread, and what they conserve: the paper's figures 3 and 4."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synflow_lib.errors import InputError
from synflow_lib.plotting.style import COLOURS, NAMES, axes, look, order
from synflow_lib.theory.conservation import violation


def score_distributions(scores: Mapping[str, Mapping[str, object]], sample: int = 2000) -> Figure:
    """How each pruner's scores are spread in each layer: box plots of log10 of the positive scores.

    `scores` maps a pruner to what its saliency returned; `sample` scores of each layer are drawn, evenly by rank, over
    the median of all that are drawn. Boxes hold the middle half of a layer's scores.
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
    grid[0, 0].set_ylabel("log₁₀ (score / median drawn)")
    return figure


def _logarithms(score, sample: int) -> np.ndarray:
    values = np.sort(score.detach().cpu().double().numpy().ravel())
    values = values[values > 0]
    return np.log10(values[np.linspace(0, len(values) - 1, min(sample, len(values))).astype(int)])


def flow_in_out(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Saliency out of each hidden unit against saliency into it, one panel per pruner (the paper's figure 3).

    `tables` maps a pruner to `conservation.neurons(...)`; conserved units lie on the diagonal, and the title has the
    largest |in - out| over the largest flow. Signed saliencies are drawn on a symmetric logarithmic scale; on a
    logarithmic one a flow of 0 stands at the lower end. Colours run from the first group of units to the last. Raises
    InputError for a table without any flow.
    """
    figure, panels, spare = _panels(len(tables))
    for axis, (pruner, table) in zip(panels, tables.items(), strict=True):
        both = table[["into", "out"]].to_numpy()
        signed, largest = bool((both < 0).any()), float(np.abs(both).max())
        if not largest > 0:
            raise InputError(f"no unit of {NAMES.get(pruner, pruner)} has any flow: there is nothing to draw")
        low = -largest if signed else float(both[both > 0].min())
        axis.plot([low, largest], [low, largest], color="black", linewidth=0.8, linestyle="--", zorder=0)
        colours = sns.color_palette("viridis", table["group"].nunique())
        for colour, (_, group) in zip(colours, table.groupby("group", sort=False), strict=True):
            flows = [group[side].clip(lower=low) for side in ("into", "out")]
            axis.plot(*flows, ".", color=colour, markersize=3, alpha=0.6, rasterized=True)
        scale = {"value": "symlog", "linthresh": largest * 1e-3} if signed else {"value": "log"}
        axis.set_xscale(**scale)
        axis.set_yscale(**scale)
        ticks = _powers(low, largest)
        for each in (axis.xaxis, axis.yaxis):
            each.set_ticks(list(ticks.values()), labels=list(ticks), fontsize=7 if signed else 8)
            each.set_minor_locator(plt.NullLocator())
        axis.set_title(f"{NAMES.get(pruner, pruner)}\nlargest |in − out| {violation(table):.2g}", fontsize=9)
    _name_axes(panels, "saliency into the unit", "saliency out of it")
    if spare is not None:
        diagonal = plt.Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="in = out")
        shades = [(0, "first units"), (len(colours) // 2, "middle"), (-1, "last units")]
        dots = [plt.Line2D([], [], marker=".", linestyle="none", color=colours[i], label=name) for i, name in shades]
        note = "|in − out| as a share of\nthe largest saliency in"
        spare.legend(handles=[diagonal, *dots], title=note, loc="center left", fontsize=9, alignment="left")
    return figure


def _powers(low: float, high: float) -> dict[str, float]:
    """Up to four ticks for a logarithmic axis from `low` to `high`, by label: powers of ten, or the ends as they are
    where there is but one; for a negative `low` 0 and two of either sign.
    """
    last = math.floor(math.log10(high) + 1e-9)
    if low < 0:
        powers = {f"$10^{{{p}}}$": 10.0**p for p in (last - 2, last)}
        return {**{f"−{label}": -value for label, value in powers.items()}, "0": 0.0, **powers}
    first = math.ceil(math.log10(low) - 1e-9)
    if first >= last:
        return {f"{low:.2g}": low, f"{high:.2g}": high}
    step = math.ceil((last - first) / 3)
    return {f"$10^{{{p}}}$": 10.0**p for p in range(last, first - 1, -step)}


def mean_score_against_size(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Mean score of a layer against the inverse of its size, with fitted slopes (the paper's figure 4).

    `table` has the columns pruner, inverse_size, average_score (one row per layer; negative means have no logarithm and
    are left out, and the title says of how many layers); `reference` likewise, drawn hollow behind it. Each is drawn
    over the geometric mean of its layers, for scores are known up to a factor; all panels have the same axes, so that a
    steeper slope looks steeper.
    """
    pruners = sorted(table["pruner"].unique(), key=order)
    figure, panels, spare = _panels(len(pruners), sharex=True, sharey=True)
    for axis, pruner in zip(panels, pruners, strict=True):
        part = _centred(table, pruner)
        lines = [f"{NAMES.get(pruner, pruner)}: slope {draw_slope(axis, part, pruner):.3f}"]
        if len(part) < (layers := int((table["pruner"] == pruner).sum())):
            lines.append(f"{len(part)} of {layers} layers, the rest negative")
        if reference is not None:
            lines.append(f"authors {draw_slope(axis, _centred(reference, pruner), pruner, hollow=True):.3f}")
        axis.set_title("\n".join(lines), fontsize=9)
        axis.set(xscale="log", yscale="log")
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, high / 20), high * 1.3)  # at least one labelled power of ten
    _name_axes(panels, "1 / layer size", "mean score / typical")
    if spare is not None and reference is not None:
        looks = {
            "ours": {},
            "the authors'": {"markerfacecolor": "none", "alpha": 0.5, "linestyle": ":", "markersize": 7},
        }
        spare.legend(
            handles=[
                plt.Line2D([], [], color="black", marker="D", label=name, **style) for name, style in looks.items()
            ],
            loc="center left",
            fontsize=9,
        )
    return figure


def _panels(number: int, **options) -> tuple[Figure, list[Axes], Axes | None]:
    """Panels in rows of three, which stay legible on a page; the empty place after the last is for the legend."""
    columns = min(3, number)
    figure, grid = axes(columns, -(-number // columns), width=2.15, height=2.3, **options)
    panels, rest = list(grid.flat)[:number], list(grid.flat)[number:]
    for axis in rest:
        axis.axis("off")
    for above in list(grid.flat)[number - columns : number]:  # above an empty place the ticks are the last of a column
        above.tick_params(labelbottom=True)
    return figure, panels, rest[0] if rest else None


def _name_axes(panels: list[Axes], x: str, y: str) -> None:
    columns = min(3, len(panels))
    for axis in panels[::columns]:
        axis.set_ylabel(y)
    for axis in panels[-columns:]:
        axis.set_xlabel(x)


def _centred(table: pd.DataFrame, pruner: str) -> pd.DataFrame:
    part = table[(table["pruner"] == pruner) & (table["average_score"] > 0)]
    return part.assign(average_score=part["average_score"] / np.exp(np.log(part["average_score"]).mean()))


def draw_slope(axis: Axes, table: pd.DataFrame, pruner: str, hollow: bool = False) -> float:
    """Draw one pruner's layers and the line fitted to their logarithms; return its slope."""
    part = table[(table["pruner"] == pruner) & (table["average_score"] > 0)]
    x, y = np.log10(part["inverse_size"]), np.log10(part["average_score"])
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    style = look(pruner) | ({"markerfacecolor": "none", "alpha": 0.5, "markersize": 7} if hollow else {})
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
