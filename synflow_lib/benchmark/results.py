"""Our results: what this computer recorded and what is committed under data/results, one row per run.

Where both have a run, the record counts. Rows made when their recipe had other values ("outdated") are left out
everywhere. The columns, and the files, are those of `tables`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from synflow_lib import paths
from synflow_lib.benchmark import records
from synflow_lib.benchmark.engines import run_all
from synflow_lib.benchmark.grid import SAME_NETWORK, Run, grid
from synflow_lib.benchmark.tables import COLUMNS, FIELDS, NEEDED, ordered, read, row, settings_hash, typed, write
from synflow_lib.errors import InputError
from synflow_lib.training import spelled

__all__ = [
    "committed",
    "everything",
    "finished",
    "first_epochs",
    "obtain",
    "panel",
    "read",
    "recorded",
    "table",
    "write",
]

FIRST_EPOCHS = ["recipe", "dataset", "model", "seed", "epoch", "train_loss", "test_accuracy"]


def recorded() -> pd.DataFrame:
    """The finished, current records of this computer, as rows."""
    rows = [row(record) for record in records.everything() if records.state(record) in records.FINISHED]
    return ordered(typed(pd.DataFrame(rows, columns=COLUMNS)))


def committed() -> pd.DataFrame:
    """All rows of the files under data/results that have these columns; `file` names where each comes from."""
    found = [pd.DataFrame(columns=[*COLUMNS, "file"])]
    for path in sorted(paths.results().rglob("*.csv")):
        if set(NEEDED) <= set(pd.read_csv(path, nrows=0).columns):
            found.append(read(path).assign(file=path.name))
    return ordered(typed(pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)))


def everything() -> pd.DataFrame:
    """Records and committed rows together, one row per run; `file` is "records" or the name of the file."""
    both = [recorded().assign(file="records"), committed()]
    frame = pd.concat([part for part in both if len(part)] or both[:1], ignore_index=True)
    known = [current(row) for row in frame.to_dict("records")]
    return ordered(frame.loc[pd.Series(known, dtype=bool)].drop_duplicates("key"))


def current(row: Mapping[str, Any]) -> bool:
    """Whether a row was made with the values that its recipe has today."""
    return row["settings"] == settings_hash(records.settings(row))


def table(runs: Iterable[Run], rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per run in their order, from `rows` (default: `everything()`); what nobody has done is "missing".

    A row's fields are those of the run that was asked for: runs may share one result under several names.
    """
    known = {row["key"]: row for row in (everything() if rows is None else rows).to_dict("records")}
    found = [{**known.get(run.key, {"status": "missing", "file": ""}), **_fields(run)} for run in runs]
    return typed(pd.DataFrame(found, columns=[*COLUMNS, "file"]))


def obtain(runs: Iterable[Run], train: bool = True, **how: Any) -> pd.DataFrame:
    """`table(runs)`, if `train` after `run_all` did those that are not committed; `how` are options of `run_all`."""
    runs = [run.validate() for run in runs]
    kept = [file.endswith(".csv") for file in table(runs)["file"]]
    todo = [run for run, committed in zip(runs, kept, strict=True) if not committed]
    if train and todo:
        run_all(todo, **how)
    return table(runs)


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that have a result; raises InputError where none has."""
    rows = table[table["status"].isin(records.FINISHED)]
    if rows.empty:
        raise InputError(f"none of these {len(table)} runs has a result yet: set train to True, or run `synflow bench`")
    return rows.reset_index(drop=True)


def means(table: pd.DataFrame, value: str = "accuracy_last") -> pd.DataFrame:
    """Mean of the column `value` over the seeds: one row per pruner, one column per log10 compression.

    The pruners in the order of `table`, the compressions ascending; NaN where there is no run. Percent for accuracies.
    """
    return table.pivot_table(value, "pruner", "log10_compression", sort=False).sort_index(axis=1)


def panel(
    dataset: str, model: str, width: float = 1.0, recipe: str | None = None, rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The finished runs of one panel without further options, from `rows` (default: `everything()`); maybe none.

    The dense network stands there once for each pruner, and a network under the name that was asked for. Without
    `recipe`, the one with the most runs.
    """
    rows = everything() if rows is None else rows
    names = [name for name in SAME_NETWORK if SAME_NETWORK[name] == SAME_NETWORK.get(model, model)]
    names.append(SAME_NETWORK.get(model, model))
    own = rows[(rows["dataset"] == dataset) & rows["model"].isin(names) & (rows["width"] == width)]
    own = own[[not records.run_of(row).changed for row in own.to_dict("records")]]
    if own.empty:
        return own
    recipe = spelled(recipe, dataset, model) if recipe else own["recipe"].value_counts().index[0]
    own = own[own["recipe"] == recipe]
    pruned = own[own["log10_compression"] > 0]  # of the dense network the name of the pruner says nothing
    pruners = (pruned if len(pruned) else own)["pruner"].unique()
    compressions, seeds = (sorted(own[name].unique()) for name in ("log10_compression", "seed"))
    found = table(grid(dataset, model, pruners, compressions, seeds, recipe, width=width), rows)
    return found[found["status"].isin(records.FINISHED)].reset_index(drop=True)


def first_epochs() -> pd.DataFrame:
    """The first epochs of trainings of dense networks: data/results/first_epochs.csv, no rows where there is none."""
    path = paths.results() / "first_epochs.csv"
    return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=FIRST_EPOCHS)


def _fields(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in FIELDS} | {"key": run.key}
