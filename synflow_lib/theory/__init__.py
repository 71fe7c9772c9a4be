"""The theorems, computed."""

from synflow_lib.models.flow_graph import FlowGraph, flow_graph
from synflow_lib.theory import conservation

__all__ = ["FlowGraph", "conservation", "flow_graph"]
