"""Where the benchmark stands, as text of at most 100 columns: for each panel a grid of pruners and compressions.

Each cell has one character per seed. Runs that share a record (the dense network of all pruners, two names of one
network) share its character too.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from synflow_lib import paths
from synflow_lib.benchmark import claims, records
from synflow_lib.benchmark.grid import (
    PUBLISHED_COMPRESSIONS,
    PUBLISHED_PANELS,
    PUBLISHED_PRUNERS,
    PUBLISHED_SEEDS,
    SAME_NETWORK,
    Run,
    published_grid,
)
from synflow_lib.pruning import SALIENCIES
from synflow_lib.training import RECIPES, spelled

COLUMNS = 100
MARKS = {
    "done": "#",
    "running": ">",
    "interrupted": "~",  # a checkpoint, and nobody at work
    "missing": ".",
    "diverged": "D",
    "failed": "F",
    "outdated": "o",  # made when the recipe had other values: it will be done again
}
AXES = ("pruner", "log10_compression", "seed")


@dataclass(frozen=True)
class Panel:
    """One grid: what its runs have in common, and the runs that were begun or recorded."""

    dataset: str
    model: str
    width: float
    recipe: str
    runs: tuple[Run, ...] = ()

    @property
    def published(self) -> bool:
        return self.width == 1 and (self.dataset, self.model) in PUBLISHED_PANELS

    def axis(self, name: str) -> list:
        """The values of one axis: those of figure 6 where the panel is in it, and those that were recorded."""
        whole = dict(zip(AXES, (PUBLISHED_PRUNERS, PUBLISHED_COMPRESSIONS, PUBLISHED_SEEDS), strict=True))
        values = {getattr(run, name) for run in self.runs} | set(whole[name] if self.published else ())
        if name == "pruner":  # one that this version does not know comes last
            return sorted(values, key=lambda pruner: (pruner not in SALIENCIES, [*SALIENCIES, pruner].index(pruner)))
        return sorted(values)

    def rows(self) -> dict[str, Run]:
        """Label to a run that stands for its row: the pruners first, then pruners with other options."""
        plain = [Run(self.dataset, self.model, p, 1.0, 0, self.recipe, self.width) for p in self.axis("pruner")]
        others = {replace(run, log10_compression=1.0, seed=0) for run in self.runs if options(run)}
        rows = {run.pruner: run for run in plain}
        return rows | {f"{run.pruner} {options(run)}": run for run in sorted(others, key=options)}


def options(run: Run) -> str:
    """What a run does otherwise than by default, e.g. "train_mode" or "cycles=2"; empty where it does nothing so."""
    return " ".join(name if value is True else f"{name}={value}" for name, value in run.changed.items())


def recorded() -> tuple[list[Run], dict[str, str]]:
    """The runs that were begun or recorded, and key to state (one of `MARKS`) of these.

    A key may be known without its run: of one that was begun by an earlier version, which left no note.
    """
    files = paths.files(paths.records() / "checkpoints", ".safetensors")
    known = {file.name.partition(".")[0]: "interrupted" for file in files}
    runs = []
    for record in records.everything():
        runs.append(records.run_of(record))
        known[record["key"]] = records.state(record)
    known |= dict.fromkeys(claims.running(), "running")
    unrecorded = known.keys() - {run.key for run in runs}
    return [*runs, *map(records.run_of, claims.begun(unrecorded))], known


def panels(
    runs: Iterable[Run],
    known: Mapping[str, str],
    chosen: Iterable[tuple[str, str]] | None = None,
    recipes: Sequence[str] | None = None,
) -> list[Panel]:
    """The panels of `runs`, and those of figure 6 of which a run is begun; `runs` and `known` as `recorded()` gives.

    With `chosen` (data set, model) pairs, those alone, begun or not. With `recipes`, only what was trained by them; a
    chosen panel of which nothing is begun is shown for these, or "fast".
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.model, run.width, run.recipe), []).append(run)
    if chosen is None:
        begun = known.keys() - {run.key for run in runs}
        pairs = [(dataset, model) for dataset, model in PUBLISHED_PANELS if begun and model not in SAME_NETWORK]
        wanted = {pair: recorded_recipes(pair, begun) for pair in pairs}
    else:
        wanted = {pair: recipes or recorded_recipes(pair, known) or ["fast"] for pair in chosen}
        groups = {key: part for key, part in groups.items() if key[:2] in wanted}
    for pair, names in wanted.items():
        for name in names:
            groups.setdefault((*pair, 1.0, spelled(name, *pair)), [])
    return [
        Panel(*key, tuple(part))
        for key, part in sorted(groups.items())
        if not recipes or key[3] in [spelled(name, *key[:2]) for name in recipes]
    ]


def recorded_recipes(panel: tuple[str, str], keys: Container[str]) -> list[str]:
    """The recipes for which a run of this panel of figure 6 is among `keys`, also under its network's other name."""
    return [name for name in RECIPES if any(run.key in keys for run in published_grid(name, [panel]))]


def grid(panel: Panel, known: dict[str, str]) -> str:
    """The panel as text: its name, its counts and its grid, which continues below where it is wider than 100."""
    compressions, seeds, rows = panel.axis("log10_compression"), panel.axis("seed"), panel.rows()
    cells = {
        (label, alpha): [replace(row, log10_compression=alpha, seed=seed).key for seed in seeds]
        for label, row in rows.items()
        for alpha in compressions
    }
    # Of pruners with other options only what is there is shown, for nobody asked for the rest.
    known = {key: "missing" for (label, _), keys in cells.items() if label in SALIENCIES for key in keys} | known
    label_width = min(max(map(len, rows), default=0), COLUMNS // 3)
    width = max([len(seeds), *(len(f"{alpha:g}") for alpha in compressions)]) + 1
    fitting = max(1, (COLUMNS - label_width - 2) // width)
    lines = [_heading(panel, {key for keys in cells.values() for key in keys}, known)]
    for start in range(0, len(compressions), fitting):
        part = compressions[start : start + fitting]
        lines.append("  " + " " * label_width + "".join(f"{alpha:g}".rjust(width) for alpha in part))
        for label in rows:
            marks = ["".join(MARKS.get(known.get(key), " ") for key in cells[label, alpha]) for alpha in part]
            lines.append(f"  {label[:label_width]:<{label_width}}" + "".join(mark.rjust(width) for mark in marks))
    return "\n".join(line.rstrip() for line in lines)


def legend() -> str:
    """What the characters mean."""
    return "one mark per seed: " + ", ".join(f"{mark} {state}" for state, mark in MARKS.items())


def report(chosen: Iterable[tuple[str, str]] | None = None, recipes: Sequence[str] | None = None) -> Iterator[str]:
    """The grids of the panels one after the other, and the legend; a sentence where there are none."""
    runs, known = recorded()
    shown = panels(runs, known, chosen, recipes)
    yield from (grid(panel, known) + "\n" for panel in shown)
    yield legend() if shown else "no runs are recorded"


def _heading(panel: Panel, keys: set[str], known: dict[str, str]) -> str:
    share = "" if panel.width == 1 else f", width {panel.width:g}"
    counts = Counter(known.get(key) for key in keys)  # a record that several cells share counts once
    told = ", ".join(f"{counts[state]} {state}" for state in MARKS if counts[state])
    return f"{panel.model} on {panel.dataset}{share}, recipe {panel.recipe}: {told}"
