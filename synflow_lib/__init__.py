"""A companion to SynFlow: pruning neural networks without any data, checked by running it.

import synflow_lib as sf
masks = sf.prune(model, "synflow", compression=100, input_shape=(3, 32, 32))
sf.apply_masks(model, masks)
"""

from synflow_lib import benchmark, data, devices, models, notebook, plotting, pruning, theory, training
from synflow_lib.errors import InputError
from synflow_lib.pruning import (
    NEEDS_DATA,
    SALIENCIES,
    Masks,
    apply_masks,
    connected,
    critical_compression,
    prunable,
    prune,
    rho_max,
)

__version__ = "0.1.0"
__all__ = [
    "NEEDS_DATA",
    "SALIENCIES",
    "InputError",
    "Masks",
    "apply_masks",
    "benchmark",
    "connected",
    "critical_compression",
    "data",
    "devices",
    "models",
    "notebook",
    "plotting",
    "prunable",
    "prune",
    "pruning",
    "rho_max",
    "theory",
    "training",
]
