"""Data sets: one verified file each, whole on the device, augmented there."""

from synflow_lib.data.catalogue import describe, load, load_once, prepare
from synflow_lib.data.loader import coins, crop_flip, normalise, scoring_batches, test_batches, train_batches
from synflow_lib.data.specs import DATASETS, DatasetSpec
from synflow_lib.data.store import Dataset

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetSpec",
    "coins",
    "crop_flip",
    "describe",
    "load",
    "load_once",
    "normalise",
    "prepare",
    "scoring_batches",
    "test_batches",
    "train_batches",
]
