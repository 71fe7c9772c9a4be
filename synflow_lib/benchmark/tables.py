"""The form of a result: one row per run, its columns, and the CSV file that such rows make.

The rows stand in a fixed order and numbers have a fixed number of digits, so that a file differs where results do.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from synflow_lib import models, paths
from synflow_lib.benchmark import records
from synflow_lib.benchmark.grid import Run
from synflow_lib.data import DATASETS
from synflow_lib.errors import InputError
from synflow_lib.pruning import SALIENCIES

FIELDS = [field.name for field in fields(Run)]
TEXTS = ("dataset", "model", "pruner", "recipe", "schedule", "scope", "status", "device_name", "speed", "torch")
TEXTS += ("library", "git_revision", "dataset_fingerprint", "settings", "key", "loss", "source")
BOOLS = ("train_mode", "invert", "shuffle", "reinitialise", "rewind", "connected", "disconnected", "dataset_official")
BOOLS += ("isometry",)
WHOLE = ("seed", "iterations", "cycles", "best_epoch", "epochs", "diverged_epoch", "peak_memory", "threads", "sharing")
# Accuracies are shares of 10,000 images at most, so two digits are all of them, but for the 360 digits.
DIGITS = {"log10_compression": 9, "width": 9, "accuracy_last": 2, "accuracy_best": 2, "compression": 4, "density": 6}
DIGITS |= {"lowest_density": 6, "compact_share": 6, "prune_seconds": 1, "train_seconds": 1, "epoch_seconds": 3}
DIGITS |= {"images_per_second": 0}
SHARES = ("density", "lowest_density")  # one weight of a layer of millions is not none
OUTCOME = ["status", "accuracy_last", "accuracy_best", "best_epoch", "epochs", "diverged_epoch", "compression"]
OUTCOME += ["density", "lowest_density", "connected", "compact_share", "disconnected", "prune_seconds"]
OUTCOME += ["train_seconds", "epoch_seconds", "images_per_second", "peak_memory", "device_name", "threads", "sharing"]
OUTCOME += ["speed", "torch", "library", "git_revision", "dataset_fingerprint", "dataset_official", "settings", "key"]
COLUMNS = FIELDS + OUTCOME
# A file that was written before one of these lacks it; None is what nobody knows any more.
LATER = {field.name: field.default for field in fields(Run)[6:]} | {"sharing": None}
NEEDED = [name for name in COLUMNS if name not in LATER]


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A finished record as one row of `COLUMNS`: its scalars, and what of its layers, curve and versions fits in one.

    `density` is the share of the weights that was kept, `lowest_density` that of the emptiest layer; `sharing` is how
    many runs shared the GPU, whose times are longer then; `speed` names the features that were on; `settings` is a hash
    of the recipe's values, `dataset_fingerprint` the start of the data's.
    """
    known = records.run_of(record)
    versions, curve, layers = record.get("versions") or {}, record["curve"], record.get("layers") or ()
    derived = {
        "epochs": curve[-1]["epoch"] if curve else None,
        "density": 1 / record["compression"] if record.get("compression") else None,
        "lowest_density": min((layer["density"] for layer in layers), default=None),
        **(record.get("savings") or {}),
        "sharing": record.get("sharing", 1 if record.get("device") == "cpu" else None),  # older ones do not tell
        "speed": "+".join(name for name, on in (record.get("speed") or {}).items() if on),
        "torch": versions.get("torch"),
        "library": versions.get("library"),
        "dataset_fingerprint": (record.get("dataset_fingerprint") or "")[:16],
        "settings": settings_hash(record["settings"]),
    }
    return {name: getattr(known, name) for name in FIELDS} | {n: ({**record, **derived}).get(n) for n in OUTCOME}


def settings_hash(settings: Mapping[str, Any] | None) -> str:
    """8 hexadecimal digits of the values of a recipe."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def write(path: Path, frame: pd.DataFrame, force: bool = False) -> Path:
    """Write rows to `path` in the fixed order, all columns of `COLUMNS`, numbers with a fixed number of digits.

    Raises InputError where there is no row, the file cannot be written, or without `force` holds anything but rows of
    the same runs: those would be lost.
    """
    if frame.empty:
        raise InputError("there are no finished runs to write: see `synflow status` for what is recorded")
    if not force and path.exists() and (lost := set(read(path)["key"]) - set(frame["key"])):
        raise InputError(
            f"{paths.shown(path)} has other runs than these, which would be lost ({len(lost)}): choose another file, "
            "or replace it with --force"
        )
    shown = ordered(frame)[COLUMNS].copy()
    for name, digits in DIGITS.items():
        shown[name] = [_number(value, digits, name in SHARES) for value in shown[name]]
    with paths.replacing(path) as partial:
        shown.to_csv(partial, index=False, lineterminator="\n")
    return path


def read(path: Path) -> pd.DataFrame:
    """The rows of one file, typed, a column that was added after it was written as it was then.

    Raises InputError for a file that is absent or lacks any other column.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {paths.shown(path)}: {error}") from error
    if missing := [name for name in NEEDED if name not in frame]:
        raise InputError(f"{paths.shown(path)} has no column {missing[0]!r}: it is not a file of `synflow results`")
    return typed(frame.assign(**{name: LATER[name] for name in LATER if name not in frame})[COLUMNS])


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns as text, bool or missing, whole numbers or missing, and floats, whatever they came as."""
    for name in frame.columns.intersection(COLUMNS):
        values = [None if pd.isna(value) or value == "" else value for value in frame[name]]
        if name in BOOLS:
            values = pd.array([None if v is None else str(v) == "True" for v in values], dtype="boolean")
        elif name in WHOLE:
            values = pd.array([None if v is None else int(v) for v in values], dtype="Int64")
        elif name in TEXTS:
            values = pd.array(["" if v is None else str(v) for v in values], dtype=object)
        else:
            values = [float("nan") if v is None else float(v) for v in values]
        frame = frame.assign(**{name: values})
    return frame


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of the data sets, models, widths, recipes, pruners, compressions, options and seeds."""
    places = {"dataset": list(DATASETS), "model": list(models.MODELS), "pruner": list(SALIENCIES)}
    axes = ["dataset", "model", "width", "recipe", "pruner", "log10_compression"]
    axes += [name for name in FIELDS if name not in (*axes, "seed")] + ["seed", "key"]
    keys = frame[axes].assign(**{n: [_place(known, v) for v in frame[n]] for n, known in places.items()})
    keys["iterations"] = [-1 if pd.isna(value) else value for value in keys["iterations"]]
    return frame.loc[keys.sort_values(axes, kind="stable").index].reset_index(drop=True)


def _place(known: list[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _number(value: float, digits: int, small: bool = False) -> str:
    """`value` with at most `digits` digits after the point and no zeros at the end; empty where there is none.

    Where `small`, a value that has not two of them is written with three significant digits.
    """
    if pd.isna(value):
        return ""
    if small and 0 < value < 10.0 ** (2 - digits):
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
