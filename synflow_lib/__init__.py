"""A companion to SynFlow: pruning neural networks without any data, checked by running it.

import synflow_lib as sf
masks = sf.prune(model, "synflow", compression=100, input_shape=(3, 32, 32))
sf.apply_masks(model, masks)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synflow_lib import (
        benchmark,
        data,
        devices,
        experiments,
        models,
        notebook,
        plotting,
        pruning,
        theory,
        training,
    )
    from synflow_lib.errors import InputError
    from synflow_lib.pruning import (
        NEEDS_DATA,
        SALIENCIES,
        Masks,
        apply_masks,
        compact,
        connected,
        critical_compression,
        export,
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
    "compact",
    "connected",
    "critical_compression",
    "data",
    "devices",
    "experiments",
    "export",
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

_MODULES = {
    "benchmark",
    "data",
    "devices",
    "experiments",
    "models",
    "notebook",
    "plotting",
    "pruning",
    "theory",
    "training",
}


def __getattr__(name: str) -> object:
    # Imported at first use: the command line answers --help, and refuses a typing mistake, before torch is loaded.
    if name not in __all__:
        raise AttributeError(f"module 'synflow_lib' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"synflow_lib.{name}")
    return getattr(
        importlib.import_module("synflow_lib.errors" if name == "InputError" else "synflow_lib.pruning"), name
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
