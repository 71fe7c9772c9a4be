"""The theorems, computed."""

from synflow_lib.models.flow_graph import FlowGraph, flow_graph
from synflow_lib.theory import conservation, isometry, jacobians, sensitivity
from synflow_lib.theory.assumptions import Assumptions, assumptions, torchvision_model, torchvision_table
from synflow_lib.theory.isometry import approximate_isometry

__all__ = [
    "Assumptions",
    "FlowGraph",
    "approximate_isometry",
    "assumptions",
    "conservation",
    "flow_graph",
    "isometry",
    "jacobians",
    "sensitivity",
    "torchvision_model",
    "torchvision_table",
]
