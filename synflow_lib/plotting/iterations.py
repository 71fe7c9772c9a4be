"""What the iterations of Algorithm 1 do: the paper's figure 7, the weights that are left, and where rounding tells."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from synflow_lib.plotting.style import COLOURS, axes

SCHEDULES = ("exponential", "linear")
FLOOR = 0.5  # where crosses stand for layers without weights, below every count on a logarithmic axis
LIMITS = {"float32": float(np.log10(np.finfo(np.float32).max)), "float64": float(np.log10(np.finfo(np.float64).max))}


def layers_by_plan(table: pd.DataFrame, title: str = "") -> Figure:
    """Weights kept in each layer, a line for each number of iterations; a layer without any is a cross on the floor.

    `table` has the columns iterations, schedule, layer (in order), kept. The exponential schedule is drawn in
    SynFlow's colour, the darker the more iterations, the linear one in black.
    """
    figure, grid = axes(width=5.6, height=3.3)
    axis, floor = grid[0, 0], FLOOR
    plans = sorted(table.groupby(["schedule", "iterations"]), key=lambda plan: plan[0])
    shades = iter(sns.light_palette(COLOURS["synflow"], 2 + sum(s == "exponential" for (s, _), _ in plans))[2:])
    for (schedule, n), part in plans:
        linear = schedule == "linear"
        style = {"color": "black", "linestyle": "--"} if linear else {"color": next(shades), "linestyle": "-"}
        kept, place = part["kept"].to_numpy(), np.arange(1, len(part) + 1)
        axis.plot(place, np.where(kept > 0, kept, floor), linewidth=1.2, **style)
        style |= {"linestyle": "none"}
        axis.plot(place[kept == 0], np.full((kept == 0).sum(), floor), marker="x", markeredgewidth=1.5, **style)
        label = f"n = {n}" + (", linear" if linear else "")
        axis.plot(place[kept > 0], kept[kept > 0], marker="o", label=label, **style)
        floor /= 1.6 if not (kept > 0).all() else 1
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set(yscale="log", xlabel="layer, input to output", ylabel="weights kept (x: none)", xticks=place, title=title)
    figure.legend(loc="outside right center", title="iterations")
    return figure


def schedule_ratios(ours: pd.DataFrame, authors: pd.DataFrame) -> Figure:
    """Largest removed score over flow against the number of iterations, per schedule (the paper's figure 7).

    Both tables have schedule, log10_compression, iterations, ratio; the authors' are lines, ours are circles on them.
    Ratios of 0, at compression 1, have no logarithm and are not drawn.
    """
    figure, grid = axes(columns=2, width=3.1, height=3.3, sharex=True, sharey=True)
    steps = sorted(a for a in authors["log10_compression"].unique() if a > 0)
    colours = dict(zip(steps, sns.color_palette("viridis_r", len(steps)), strict=True))
    for axis, schedule in zip(grid[0], SCHEDULES, strict=True):
        for step, colour in colours.items():
            theirs, mine = (t[(t["schedule"] == schedule) & (t["log10_compression"] == step)] for t in (authors, ours))
            axis.plot(theirs["iterations"], theirs["ratio"], color=colour, linewidth=1.2)
            axis.plot(mine["iterations"], mine["ratio"], "o", color=colour, markerfacecolor="white")
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", yscale="log", title=f"{schedule} schedule", xlabel="iterations n")
    grid[0, 0].set_ylabel("largest removed score / flow R")
    entries = [plt.Line2D([], [], color=colour, label=f"$10^{{{step:g}}}$") for step, colour in colours.items()]
    entries += [
        plt.Line2D([], [], color="#606060", label="authors"),
        plt.Line2D([], [], color="#606060", marker="o", markerfacecolor="white", linestyle="none", label="ours"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4)
    return figure


def mask_differences(table: pd.DataFrame, title: str = "") -> Figure:
    """In how many weights the masks of two runs differ after each iteration; a dot marks the first swap.

    `table` has the columns run (the label), iteration, differing. A line has a gap where the masks are equal; runs that
    never part are named in the legend.
    """
    figure, grid = axes(width=6.2, height=3.2)
    axis = grid[0, 0]
    for shade, (label, part) in zip(sns.color_palette("colorblind"), table.groupby("run", sort=False), strict=False):
        apart = part["differing"].where(part["differing"] > 0)
        axis.plot(part["iteration"], apart, color=shade, label=label if apart.any() else f"{label}: never")
        first = apart.first_valid_index()
        if first is not None:
            axis.plot(part["iteration"][first], apart[first], "o", color=shade, markersize=6)
    last = table["iteration"].max()
    axis.set(yscale="log", xlabel="iteration", ylabel="weights in one mask only", xlim=(0, last * 1.02), title=title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def flow_ranges(table: pd.DataFrame, title: str = "") -> Figure:
    """log10 of the flow R against depth, with the largest numbers that float32 and float64 can hold.

    `table` has the columns family, layers, float32 and scaled (log10 R); hollow where float32 overflows.
    """
    figure, grid = axes(width=5.6, height=3.1)
    axis = grid[0, 0]
    markers = ("o", "s", "D", "^")
    for marker, shade, (family, part) in zip(
        markers, sns.color_palette("colorblind"), table.groupby("family", sort=False), strict=False
    ):
        held = np.isfinite(part["float32"])
        style = {"marker": marker, "color": shade, "linestyle": "none"}
        axis.plot(part["layers"][held], part["scaled"][held], label=family, **style)
        axis.plot(part["layers"][~held], part["scaled"][~held], markerfacecolor="white", **style)
    for kind, limit in LIMITS.items():
        axis.axhline(limit, color="black", linewidth=0.8, linestyle="--")
        axis.annotate(f"largest {kind}", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom")
    axis.plot([], [], "o", color="#606060", markerfacecolor="white", label="inf in float32")
    axis.set(xscale="log", yscale="log", xlabel="layers", ylabel="log₁₀ R", title=title)
    figure.legend(loc="outside right center")
    return figure
