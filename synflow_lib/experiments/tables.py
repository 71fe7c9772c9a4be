"""What an experiment gave: read from data/results, or computed now and written there, and the reader is told which."""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pandas as pd

from synflow_lib import paths, provenance
from synflow_lib.errors import InputError, lookup
from synflow_lib.experiments.pool import processes

SCALES = ("small", "paper")
DIGITS = "%.6g"  # of every number in the files: enough for any figure and any test, and readable in a diff


@dataclass(frozen=True)
class Experiment:
    """One table: the chapter that shows it and the function, "module:name" in this package, that computes it.

    A function may compute several tables, and then returns them by name: they are written together.
    """

    chapter: str
    function: str

    @property
    def compute(self) -> Callable[[], pd.DataFrame | dict[str, pd.DataFrame]]:
        """The function itself; its docstring says what is computed and what the columns are."""
        module, name = self.function.split(":")
        return getattr(import_module(f"synflow_lib.experiments.{module}"), name)

    @property
    def command(self) -> str:
        """What a person types to make the table again."""
        return f"synflow reproduce --only {self.chapter} --scale paper"


EXPERIMENTS: dict[str, Experiment] = {
    "vgg19_neurons": Experiment("02", "neurons:vgg19_neurons"),
    "vgg19_neurons_images": Experiment("02", "neurons:vgg19_neurons_images"),
    "vgg19_layer_scores": Experiment("03", "layers:vgg19_layer_scores"),
    "vgg19_layer_density": Experiment("04", "collapse:vgg19_layer_density"),
    "vgg16_critical_compression": Experiment("04", "collapse:vgg16_tables"),
    "vgg16_scoring_variants": Experiment("04", "collapse:vgg16_tables"),
    "vgg11_iterations": Experiment("06", "iterations:vgg11_iterations"),
    "vgg19_schedule": Experiment("06", "iterations:vgg19_schedule"),
    "vgg11_rounding": Experiment("06", "rounding:vgg11_rounding"),
    "flow_range": Experiment("06", "rounding:flow_range"),
    "synflow_near_rho_max": Experiment("06", "limit:synflow_near_rho_max"),
    "resnet18_shortcuts": Experiment("06", "iterations:resnet18_shortcuts"),
}

_waiting: set[Path] = set()  # tables that came with another one and have not been asked for yet


def table(name: str, scale: str = "small") -> pd.DataFrame:
    """Return the table of the experiment `name`, and print where it comes from.

    With scale "small" it is read from data/results; with "paper" it is computed, which takes minutes, written there in
    one piece, and read back: both scales return the same. A table that came with another that was asked for before is
    not computed again. Raises InputError for an unknown name or scale, a table that is not there, and, before anything
    is computed, a folder that cannot be written.
    """
    experiment = lookup(EXPERIMENTS, name, "experiment")
    lookup(dict.fromkeys(SCALES), scale, "scale")
    path = paths.results() / f"{name}.csv"
    if scale == "paper":
        paths.require_writable(path.parent)
        if path not in _waiting:
            _waiting.update(_compute(name, experiment))
        _waiting.discard(path)
    elif not path.is_file():
        raise InputError(f"{paths.shown(path)} is not there; make it with: {experiment.command}")
    made = provenances().get(name, {})
    others = [other for other in made.get("together", ()) if other != name]
    seconds = f"{made.get('seconds')} s" + (f", together with {' and '.join(others)}," if others else "")
    how = f"in {seconds} with torch {made['torch']} on {made['device']}" if made else "by hand"
    verb = "computed now and written to" if scale == "paper" else "read from"
    print(f"{verb} data/results/{path.name}: made {how}, by: {experiment.command}")
    return pd.read_csv(path)


def provenances() -> dict[str, dict]:
    """For each table that was computed: when, by which command and versions, in how many seconds and GB of memory."""
    try:
        return json.loads(_provenance_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _compute(name: str, experiment: Experiment) -> list[Path]:
    """Compute and write the table, and those that come with it, and what made them; return the files."""
    began = time.monotonic()
    found = experiment.compute()
    seconds, memory = time.monotonic() - began, _peak_memory()
    frames = found if isinstance(found, dict) else {name: found}
    files = {other: paths.results() / f"{other}.csv" for other in frames}
    for other, frame in frames.items():
        with paths.replacing(files[other]) as partial:
            frame.to_csv(partial, index=False, float_format=DIGITS, lineterminator="\n")
    environment = provenance.environment("cpu")
    made = {
        "command": experiment.command,
        "made": f"{datetime.now(UTC):%Y-%m-%d}",
        "seconds": round(seconds),
        "memory_gb": round(memory / 1e9, 1),
        "processes": processes(),
        **({"together": list(frames)} if len(frames) > 1 else {}),  # the seconds and the memory are those of all these
        **{key: environment[key] for key in ("library", "torch", "numpy", "revision", "device")},
    }
    with paths.replacing(_provenance_file()) as partial:
        whole = dict(sorted((provenances() | dict.fromkeys(frames, made)).items()))
        partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return list(files.values())


def _provenance_file() -> Path:
    return paths.results() / "experiments.json"


def _peak_memory() -> float:
    """An upper bound in bytes: this process at its largest, and as many of the largest worker as there may be."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * (own + (processes() * worker if processes() > 1 else 0))
