"""Scores, masks, Algorithm 1 and layer-collapse, for any `nn.Module`."""

from synflow_lib.pruning.collapse import connected, critical_compression, critical_compressions, pruned_to_flow
from synflow_lib.pruning.compact import Compacted, compact
from synflow_lib.pruning.densities import first_collapse, layer_densities, ranked_densities
from synflow_lib.pruning.export import export
from synflow_lib.pruning.losses import LOSSES
from synflow_lib.pruning.masks import Masks, apply_masks, check_masks
from synflow_lib.pruning.prune import SCOPES, check_compression, keep_best, number_kept, prune, rho_max
from synflow_lib.pruning.saliency import (
    NEEDS_DATA,
    SALIENCIES,
    grasp,
    loss_saliency,
    magnitude,
    prunable,
    random,
    snip,
    synaptic_flow,
    synaptic_saliency,
    synflow,
)
from synflow_lib.pruning.schedule import SCHEDULES, exponential, linear

__all__ = [
    "LOSSES",
    "NEEDS_DATA",
    "SALIENCIES",
    "SCHEDULES",
    "SCOPES",
    "Compacted",
    "Masks",
    "apply_masks",
    "check_compression",
    "check_masks",
    "compact",
    "connected",
    "critical_compression",
    "critical_compressions",
    "exponential",
    "export",
    "first_collapse",
    "grasp",
    "keep_best",
    "layer_densities",
    "linear",
    "loss_saliency",
    "magnitude",
    "number_kept",
    "prunable",
    "prune",
    "pruned_to_flow",
    "random",
    "ranked_densities",
    "rho_max",
    "snip",
    "synaptic_flow",
    "synaptic_saliency",
    "synflow",
]
