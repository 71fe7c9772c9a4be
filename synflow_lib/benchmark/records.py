"""What came out: one JSON file per run, named by its key, written whole or not at all."""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from synflow_lib import paths
from synflow_lib.benchmark.grid import Run
from synflow_lib.errors import InputError
from synflow_lib.training import recipe

log = logging.getLogger(__name__)

RESULTS = (
    *("status", "accuracy_last", "accuracy_best", "best_epoch", "diverged_epoch", "compression", "connected"),
    *("prune_seconds", "train_seconds", "error", "key"),
)
NEEDED = {"done": ("accuracy_last", "accuracy_best", "curve", "settings"), "failed": ("error",)}
NEEDED["diverged"] = NEEDED["done"]
FINISHED = ("done", "diverged")  # a diverged run is a result too
KEY = re.compile("[0-9a-f]{16}")


def path(key: str) -> Path:
    """Where the record of the run with this key lies."""
    return paths.records() / f"{key}.json"


def copy_of(key: str) -> Path:
    """Where the second copy of that record lies: a damaged one would cost a whole training."""
    return paths.records() / "copies" / f"{key}.json"


def write(record: dict[str, Any]) -> Path:
    """Write a record under its key, and a copy of it, and return the path; a reader never sees half of it.

    Raises InputError when the disk is full or the folder cannot be written. The copy may be missing: the log says so.
    """
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    with paths.replacing(path(record["key"]), durable=True) as partial:  # the checkpoint that it makes needless goes
        partial.write_text(text, encoding="utf-8")
    try:
        with paths.replacing(copy_of(record["key"])) as partial:
            partial.write_text(text, encoding="utf-8")
    except InputError as error:
        log.warning("the record is written, its copy is not: %s", error)
    return path(record["key"])


def read(key: str) -> dict[str, Any] | None:
    """Return the record of this key, None where there is none.

    A file that is not a whole record of that key is moved aside (named .damaged) with a sentence in the log, and its
    copy takes its place; without one the run counts as missing and is made again.
    """
    file = path(key)
    try:
        record = _whole(file, key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"cannot read {paths.shown(file)}: {error.strerror or error}") from error
    except ValueError as error:
        # Where the folder can only be read the file stays; it is ignored all the same.
        with contextlib.suppress(OSError):
            file.replace(file.with_suffix(".json.damaged"))
        record = _restored(key)
        then = "its copy takes its place" if record else "the run counts as missing"
        log.warning("%s is damaged (%s): set aside, %s", paths.shown(file), error, then)
    return record


def _whole(file: Path, key: str) -> dict[str, Any]:
    record = json.loads(file.read_text(encoding="utf-8"))
    check(record, key)
    return record


def _restored(key: str) -> dict[str, Any] | None:
    """The copy of the record of this key, put back into its place; None where there is none, or it is damaged too."""
    try:
        record = _whole(copy_of(key), key)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(InputError):  # where the folder can only be read it is used all the same
        write(record)
    return record


def check(record: Any, key: str) -> None:
    """Raise ValueError unless `record` has what a record of `key` must have."""
    if not isinstance(record, dict) or record.get("key") != key:
        raise ValueError("it does not hold the key it is named after")
    if record.get("status") not in NEEDED:
        raise ValueError(f"its status is {record.get('status')!r}")
    needed = (*(field.name for field in fields(Run)[:6]), *NEEDED[record["status"]])
    if missing := [name for name in needed if name not in record]:
        raise ValueError(f"{missing[0]!r} is missing")
    try:
        run_of(record)
    except InputError as error:
        raise ValueError(f"{error}") from error


def find(run: Run) -> dict[str, Any] | None:
    """Return the finished record of `run`; None where it is missing, failed, or made when its recipe had
    other values.
    """
    record = read(run.key)
    return record if record is not None and state(record) in FINISHED else None


def state(record: dict[str, Any]) -> str:
    """The status of a record, or "outdated" where it is finished but its recipe has other values now (or is gone)."""
    if record["status"] not in FINISHED:
        return record["status"]
    return record["status"] if record["settings"] == settings(record) else "outdated"


def settings(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that the recipe of a record, or of any row with its fields, has today; None where it is none (any
    more).
    """
    try:
        return recipe(*(record[name] for name in ("recipe", "dataset", "model"))).settings()
    except InputError:
        return None


def run_of(record: Mapping[str, Any]) -> Run:
    """The run that a record, or a row with its fields, tells of; what this version does not know is left out."""
    known = {field.name: record[field.name] for field in fields(Run) if field.name in record}
    return Run(**{name: None if pd.isna(value) else value for name, value in known.items()})


def layers(run: Run) -> pd.DataFrame:
    """What the run's masks kept: layer, size, kept, density, as `Masks.layers()`; InputError without a record."""
    record = find(run)
    if record is None:
        raise InputError(f"there is no finished record of {run}: do the run first")
    return pd.DataFrame(record["layers"]).rename(columns={"name": "layer"})


def everything() -> Iterator[dict[str, Any]]:
    """All records of the folder, in the order of their keys; files of any other name are none of ours."""
    for file in paths.files(paths.records(), ".json"):
        if KEY.fullmatch(file.stem) and (record := read(file.stem)) is not None:
            yield record


def row(run: Run, record: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of `run` and the scalar results of its record, whose status is "missing" where there is
    none.
    """
    known = {"status": "missing", "key": run.key} if record is None else {**record, "status": state(record)}
    return {**asdict(run), **{name: known.get(name) for name in RESULTS}}


def table(runs: Sequence[Run] | Iterable[Run] | None = None) -> pd.DataFrame:
    """One row per run: its fields, status ("done", "diverged", "outdated", "failed", "missing"), accuracies in
    percent, times.

    For `runs` in their order, or for every record of the folder. The curves and layers are in the records
    themselves.
    """
    if runs is None:
        rows = [row(run_of(record), record) for record in everything()]
    else:
        rows = [row(run, read(run.key)) for run in runs]
    frame = pd.DataFrame(rows, columns=[*(field.name for field in fields(Run)), *RESULTS])
    numbers = ["accuracy_last", "accuracy_best", "compression", "prune_seconds", "train_seconds"]
    return frame.astype(dict.fromkeys(numbers, float))
