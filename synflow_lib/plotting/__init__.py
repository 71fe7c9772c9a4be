"""Figures: one function per kind, one palette; `save` writes SVG and PNG for the page and the paper.

Every pruner keeps its colour, its marker and its place in the legend from the first chapter to the last.
"""

from synflow_lib.plotting.accuracy import (
    accuracy,
    accuracy_grid,
    accuracy_panel,
    cycles,
    drift,
    first_epochs,
    panel_title,
)
from synflow_lib.plotting.masks import layer_density, layer_kept, relative_costs, schedule_ratios
from synflow_lib.plotting.saliency import (
    cut_totals,
    draw_slope,
    flow_in_out,
    mean_score_against_size,
    score_distributions,
)
from synflow_lib.plotting.style import (
    COLOURS,
    DATASET_NAMES,
    MARKERS,
    MODEL_NAMES,
    NAMES,
    PRUNERS,
    STYLE,
    axes,
    heatmap,
    lines,
    pruner_legend,
    save,
)

__all__ = [
    "COLOURS",
    "DATASET_NAMES",
    "MARKERS",
    "MODEL_NAMES",
    "NAMES",
    "PRUNERS",
    "STYLE",
    "accuracy",
    "accuracy_grid",
    "accuracy_panel",
    "axes",
    "cut_totals",
    "cycles",
    "draw_slope",
    "drift",
    "first_epochs",
    "flow_in_out",
    "heatmap",
    "layer_density",
    "layer_kept",
    "lines",
    "mean_score_against_size",
    "panel_title",
    "pruner_legend",
    "relative_costs",
    "save",
    "schedule_ratios",
    "score_distributions",
]
