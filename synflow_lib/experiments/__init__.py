"""The paper's experiments that need no training, at the paper's size: one function each, one small committed table.

    sf.experiments.table("vgg19_layer_scores")                  # as committed under data/results
    sf.experiments.table("vgg19_layer_scores", scale="paper")   # computed now, and written there

`EXPERIMENTS` lists them. `synflow reproduce --only 03 --scale paper` does so for all that a chapter shows. Beside them
stand `signal_propagation`, `labels` and `sculpting`, what chapter 10 prunes and trains, small enough for a CPU.
"""

from synflow_lib.experiments import labels, sculpting, signal_propagation
from synflow_lib.experiments.tables import EXPERIMENTS, SCALES, Experiment, table

__all__ = ["EXPERIMENTS", "SCALES", "Experiment", "labels", "sculpting", "signal_propagation", "table"]
