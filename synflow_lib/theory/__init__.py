"""The theorems, computed."""

from synflow_lib.models.flow_graph import FlowGraph, flow_graph
from synflow_lib.theory import conservation
from synflow_lib.theory.assumptions import Assumptions, assumptions, torchvision_model, torchvision_table

__all__ = [
    "Assumptions",
    "FlowGraph",
    "assumptions",
    "conservation",
    "flow_graph",
    "torchvision_model",
    "torchvision_table",
]
