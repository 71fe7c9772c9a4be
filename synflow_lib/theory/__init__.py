"""The theorems, computed."""

from synflow_lib.theory import conservation
from synflow_lib.theory.flow_graph import FlowGraph, flow_graph

__all__ = ["FlowGraph", "conservation", "flow_graph"]
