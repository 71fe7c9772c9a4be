"""Ours minus the authors', cell by cell, in points and in units of the spread from run to run."""

import numpy as np
import pandas as pd

from synflow_lib.benchmark import published
from synflow_lib.benchmark.grid import Run

CELL = ["dataset", "model", "pruner", "log10_compression"]
COLUMNS = [*CELL, "recipe", "seeds", "ours_best", "authors_best", "best", "best_in_spreads"]
COLUMNS += ["ours_last", "authors_last", "last", "last_in_spreads"]


def compare(ours: pd.DataFrame, authors: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per cell of figure 6 and recipe for which `ours` (as `results.everything()`) has runs of full width.

    `best` is the mean of our best epochs minus that of the authors', in points; `last` the same of the last epochs,
    which the authors gave for VGG-16 on CIFAR-100 alone. `best_in_spreads` and `last_in_spreads` divide them by the
    run-to-run spread, the pooled standard deviation

        s = sqrt(((m - 1) s_authors^2 + (n - 1) s_ours^2) / (m + n - 2))

    of the authors' m runs (three) and our n (`seeds`), each s_ with its own mean and the divisor m - 1 or n - 1; NaN
    where s is zero or unknown. Such an s rests on few runs: for m = n = 3 and no true difference the quotient is
    sqrt(1/m + 1/n) times a t variable of 4 degrees of freedom, so one cell in twenty lies outside -2.3 to 2.3.
    Runs that a record is shared by (the dense network, two names of one network) all get it.
    """
    authors = published.accuracy() if authors is None else authors
    known = ours[ours["status"].isin(("done", "diverged"))].drop_duplicates("key")
    recipes, seeds = known["recipe"].unique(), sorted(known["seed"].unique())
    compressions, known = set(known["log10_compression"]), known.set_index("key")[["accuracy_last", "accuracy_best"]]
    rows = []
    for cell, theirs in authors[authors["log10_compression"].isin(compressions)].groupby(CELL, sort=False):
        for recipe in recipes:
            runs = [Run(*cell, seed, recipe) for seed in seeds]
            keys = [run.key for run in runs if run.recipe == recipe]  # "fast:epochs=16" may be `fast` itself here
            if len(found := known.loc[[key for key in keys if key in known.index]]):
                rows.append(dict(zip(CELL, cell, strict=True)) | {"recipe": recipe} | difference(found, theirs))
    return pd.DataFrame(rows, columns=COLUMNS)


def difference(ours: pd.DataFrame, authors: pd.DataFrame) -> dict[str, float]:
    """The numbers of one row of `compare`, for runs of one cell."""
    row: dict[str, float] = {"seeds": len(ours)}
    for epoch, theirs in (("best", authors["top1_accuracy"]), ("last", authors["top1_last"])):
        mine = ours[f"accuracy_{epoch}"].astype(float)
        points = mine.mean() - theirs.mean()
        spread = pooled_deviation(mine, theirs)
        row |= {f"ours_{epoch}": mine.mean(), f"authors_{epoch}": theirs.mean(), epoch: points}
        row[f"{epoch}_in_spreads"] = points / spread if spread > 0 else np.nan
    return row


def pooled_deviation(*samples: pd.Series) -> float:
    """The standard deviation within `samples`, pooled; NaN where no sample has two values."""
    known = [sample.dropna() for sample in samples]
    freedom = sum(len(sample) - 1 for sample in known if len(sample))
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in known if len(sample))
    return float(np.sqrt(squares / freedom)) if freedom > 0 else float("nan")
