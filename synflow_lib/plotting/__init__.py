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
from synflow_lib.plotting.isometry import kept_by_initialisation, singular_values, trainability, two_theories
from synflow_lib.plotting.iterations import flow_ranges, layers_by_plan, mask_differences, schedule_ratios
from synflow_lib.plotting.masks import layer_density, layer_kept, relative_costs
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
    "flow_ranges",
    "heatmap",
    "kept_by_initialisation",
    "layer_density",
    "layer_kept",
    "layers_by_plan",
    "lines",
    "mask_differences",
    "mean_score_against_size",
    "panel_title",
    "pruner_legend",
    "relative_costs",
    "save",
    "schedule_ratios",
    "score_distributions",
    "singular_values",
    "trainability",
    "two_theories",
]
