"""The commands about what is recorded, `status` and `results`: their options and what they do.

The library is imported when a command runs, so that `synflow --help` answers at once.
"""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from synflow_lib import panels
from synflow_lib.errors import InputError, lookup

if TYPE_CHECKING:
    import pandas as pd

PAIR = {"dataset": "digits", "model": "vgg11"}  # unless told otherwise
SHOWN = ["dataset", "model", "pruner", "compression", "seed", "recipe", "status", "accuracy_last", "accuracy_best"]
PANELS_HELP = "panels of figure 6: all, or data sets, models or pairs such as cifar10_vgg16"


def define_status(sub: argparse.ArgumentParser) -> None:
    """The options of `synflow status`."""
    sub.add_argument("--panels", nargs="+", metavar="WHICH", help=f"only these, records or not: {PANELS_HELP}")
    sub.add_argument("--recipe", nargs="+", help="only what was trained by these")
    sub.add_argument("--records", type=Path, metavar="DIR", help="folder of the records (default: data/records)")


def define_results(sub: argparse.ArgumentParser) -> None:
    """The options of `synflow results`."""
    sub.add_argument("--out", type=Path, metavar="FILE", help="write them there as CSV, e.g. data/results/mine.csv")
    sub.add_argument("--force", action="store_true", help="replace a FILE that has other runs too, which are lost")
    sub.add_argument("--compare", action="store_true", help="show ours minus the authors', committed results included")
    sub.add_argument("--panels", nargs="+", metavar="WHICH", help=f"only {PANELS_HELP}, at full width")
    for name in ("dataset", "model", "pruner", "recipe"):
        sub.add_argument(f"--{name}", nargs="+", help=f"only this {name}")
    sub.add_argument("--width", type=float, help="only networks of this width")
    sub.add_argument(
        *("--options",),
        nargs="+",
        metavar="NAME",
        help="only runs for which bench was given one of these options, such as isometry (none: those without any)",
    )
    sub.add_argument("--records", type=Path, metavar="DIR", help="folder of the records (default: data/records)")


def status(arguments: argparse.Namespace) -> int:
    """Print the grid of each panel, its counts, and where the records lie."""
    from synflow_lib import paths

    chosen = None if arguments.panels is None else panels.chosen(arguments.panels)
    check_recipes(arguments.recipe or (), chosen)
    with records_in(require_folder(arguments.records)):
        show_status(chosen, arguments.recipe)
        damaged = paths.files(paths.records(), ".damaged")
        print(f"records in {paths.shown(paths.records())}" + (f", {len(damaged)} damaged set aside" if damaged else ""))
    return 0


def results(arguments: argparse.Namespace) -> int:
    """Write the matching finished runs as CSV, show them, or compare them with the authors'."""
    from synflow_lib import paths
    from synflow_lib.benchmark import comparison, results

    if arguments.compare and arguments.out is not None:
        raise InputError("--compare shows a table and writes no file: leave out --out")
    if arguments.force and arguments.out is None:
        raise InputError("--force replaces the file of --out: name one, or leave it out")
    with records_in(require_folder(arguments.records)):
        rows = matching(results.everything() if arguments.compare else results.recorded(), arguments)
    if rows.empty:
        raise InputError("no finished run matches: `synflow status` shows what is recorded")
    if arguments.out is not None:
        print(f"{len(rows)} runs in {paths.shown(results.write(arguments.out, rows, arguments.force))}")
        return 0
    shown = comparison.compare(rows) if arguments.compare else with_options(rows)[[*SHOWN, "key"]]
    if shown.empty:
        raise InputError("none of these runs is a cell of the paper's figure 6 at full width: nothing to compare")
    print(shown.to_string(index=False, float_format="{:.2f}".format, na_rep="-"))
    return 0


def matching(rows: "pd.DataFrame", arguments: argparse.Namespace) -> "pd.DataFrame":
    """The rows that the filters of `results` leave; InputError for a name that no row has and nothing here bears."""
    from dataclasses import fields

    from synflow_lib.benchmark import records
    from synflow_lib.benchmark.grid import SAME_NETWORK, Run

    for name, (known, kind) in names_of_axes().items():
        if (wanted := getattr(arguments, name)) is not None:
            for one in wanted:
                lookup({**dict.fromkeys(known), **dict.fromkeys(rows[name])}, one, kind)
            rows = rows[rows[name].isin(wanted)]
    if arguments.recipe is not None:
        rows = trained_by(rows, arguments)
    if arguments.width is not None:
        rows = rows[rows["width"] == arguments.width]
    if arguments.options is not None:
        known = {field.name.replace("_", "-"): field.name for field in fields(Run)[7:]}
        known |= {"no-rewind": "rewind", "none": "none"}
        wanted = {lookup(known, name, "option") for name in arguments.options}
        used = [set(records.run_of(row).changed) or {"none"} for row in rows.to_dict("records")]
        rows = rows.loc[[bool(wanted & names) for names in used]]
    if arguments.panels is not None:
        pairs = {(d, SAME_NETWORK.get(m, m)) for d, m in panels.chosen(arguments.panels)}
        same = [
            (d, SAME_NETWORK.get(m, m)) in pairs and w == 1 for d, m, w in rows[["dataset", "model", "width"]].values
        ]
        rows = rows.loc[same]
    return rows


def names_of_axes() -> dict[str, tuple[Iterable[str], str]]:
    """By axis of the grid: the names that this version knows, and what they are names of."""
    from synflow_lib.data import DATASETS
    from synflow_lib.models import MODELS
    from synflow_lib.pruning import SALIENCIES

    return {"dataset": (DATASETS, "data set"), "model": (MODELS, "model"), "pruner": (SALIENCIES, "pruning method")}


def trained_by(rows: "pd.DataFrame", arguments: argparse.Namespace) -> "pd.DataFrame":
    """The rows of the recipes that are asked for, in any spelling; InputError for one that has no row and is none."""
    from synflow_lib.training import spelled

    found = list(zip(*(rows[name] for name in ("recipe", "dataset", "model")), strict=True))
    pair = tuple((getattr(arguments, name) or [default])[0] for name, default in PAIR.items())
    own = {asked: [name == spelled(asked, *where) for name, *where in found] for asked in arguments.recipe}
    check_recipes([asked for asked, matches in own.items() if not any(matches)], [pair])
    return rows.loc[[any(matches) for matches in zip(*own.values(), strict=True)]]


def with_options(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows, each pruner with the options that its runs do not have by default: as `status` tells them apart."""
    from synflow_lib.benchmark import records, status

    options = [status.options(records.run_of(row)) for row in rows.to_dict("records")]
    names = [f"{pruner} {told}".strip() for pruner, told in zip(rows["pruner"], options, strict=True)]
    return rows.assign(pruner=names)


def show_status(chosen: list[tuple[str, str]] | None, recipes: list[str] | None) -> None:
    """Print the grids of the panels."""
    from synflow_lib.benchmark import status

    print("\n".join(status.report(chosen, recipes)))


def check_recipes(names: Iterable[str], chosen: list[tuple[str, str]] | None) -> None:
    """Raise InputError for a name that is no recipe, on the `chosen` panels where it is for these."""
    from synflow_lib.training import recipe

    for name, pair in product(names, chosen or panels.PANELS[:1]):
        recipe(name, *pair)


def require_folder(folder: Path | None) -> Path | None:
    """`folder`; InputError where it was named and is not there, or the records may not be looked into."""
    from synflow_lib import paths

    paths.files(folder or paths.records(), "")  # first this: whether a folder is there can itself be hidden
    if folder is not None and not folder.is_dir():
        raise InputError(f"there is no folder {paths.shown(folder)}")
    return folder


@contextlib.contextmanager
def records_in(folder: Path | None) -> Iterator[None]:
    """Keep the records in `folder` for the block, in this process and the workers it starts."""
    before = os.environ.get("SYNFLOW_RECORDS")
    if folder is not None:
        os.environ["SYNFLOW_RECORDS"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("SYNFLOW_RECORDS")
            os.environ.update({} if before is None else {"SYNFLOW_RECORDS": before})
