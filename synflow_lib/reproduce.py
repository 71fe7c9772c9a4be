"""Every chapter executed on this computer, as pages to read: what `make reproduce` does.

A chapter whose sources, library, parameters, versions and device are those of its last good run is not run again.
What came out is written down after each chapter, so an interrupted call loses only the chapter it was in.
"""

import contextlib
import hashlib
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from synflow_lib import notebook, parameters, paths, provenance
from synflow_lib.errors import InputError, lookup
from synflow_lib.experiments import EXPERIMENTS, SCALES
from synflow_lib.panels import chosen

CELL_LIMIT = 1800.0  # seconds; a default chapter takes one or two minutes in all
PANEL_CHAPTER = "07"
ENTRY = {"key", "status", "reason", "seconds", "notebook", "parameters", "figures", "formulas left as TeX"}
# What the authors ran of each panel: 13 compressions from 1 to 1,000, three seeds.
PUBLISHED_AXES = {"log10_compressions": [quarter / 4 for quarter in range(13)], "seeds": [0, 1, 2]}


@dataclass(frozen=True)
class Job:
    """One notebook to run with some parameters, and the stem of everything it makes."""

    name: str
    notebook: Path
    parameters: dict[str, object] = field(default_factory=dict)
    timeout: float | None = CELL_LIMIT

    @property
    def number(self) -> str:
        return self.notebook.name[:2]

    def figures(self, out: Path) -> Path:
        """Where the chapter's figures go; a panel has a folder of its own, for all twelve use the same names."""
        return out / "figures" / (self.name if self.name != self.notebook.stem else "")

    def read(self, surroundings: str) -> str:
        """What the outputs depend on and the run leaves as it is: source, parameters, `_surroundings`, our results."""
        results = [path for path in paths.results().rglob("*.csv") if path.stem not in EXPERIMENTS]
        parts = [notebook.source_hash(self.notebook), json.dumps(self.parameters, sort_keys=True), surroundings]
        return "\n".join([*parts, _contents(results)])

    def key(self, read: str) -> str:
        """One hash of what was `read`, and of what the run may write before it shows it.

        That is the tables of the chapter's experiments, at the paper's scale, and for a chapter that draws whatever is
        recorded the runs on the paper's data sets. (Those on the digits are the chapters' own.)
        """
        tables = [name for name, experiment in EXPERIMENTS.items() if experiment.chapter == self.number]
        parts = [read, _contents([path for path in paths.results().rglob("*.csv") if path.stem in tables])]
        if "benchmark.results" in self.notebook.read_text(encoding="utf-8"):
            panel = self.name != self.notebook.stem  # it draws its own runs alone
            parts.append(_recorded(*((self.parameters["dataset"], self.parameters["model"]) if panel else ())))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def reproduce(
    only: Sequence[str] | None = None,
    out: Path | None = None,
    force: bool = False,
    panels: bool | str | Sequence[str] | None = None,
    recipe: str | None = None,
    scale: str | None = None,
) -> int:
    """Run the chapters and write their pages and an index to `out` (build/quick); return the exit status.

    `only` names chapters ("03", "3", "03_network_wise"). `panels` runs chapter 07 once for each panel of figure 6
    ("all"), or those of one data set, one model or one pair ("cifar10", "vgg16", "cifar10_vgg16"), with the published
    compressions and seeds; each executed panel is kept as OUT/07_DATASET_MODEL.ipynb and .html (with
    _RECIPE behind it, unless that is the chapter's own). They take the place
    of chapter 07 as it stands, and no other chapter is run unless `only` names it. `recipe` and `scale` ("small" or
    "paper") go to the chapters that have such a parameter; at the scale "paper" a chapter computes its full-size tables
    again and writes them to data/results. 0 means that all passed, 1 that one failed, 130 that Ctrl-C stopped it.
    Raises InputError before anything runs.
    """
    jobs = plan(only, panels, recipe, scale)
    out = Path(out) if out else paths.build() / "quick"
    paths.require_writable(out)
    surroundings = _surroundings()
    done: dict[str, str] = {}  # name to what happened in this call
    status = 0
    try:
        with _progress([job.name for job in jobs]) as begin:
            for job in jobs:
                begin(job.name)
                done[job.name] = _run_unless_current(job, out, surroundings, force)
                sentence = _outcome(job.name, done[job.name], _manifest(out)[job.name])
                begin(None, sentence, bad=done[job.name] == "failed")
    except KeyboardInterrupt:
        left = len(jobs) - len(done)
        print(f"\nstopped: {len(done)} done, {left} not; the same command goes on where this one stopped")
        status = 130
    index = write_index(out, surroundings)
    _report(done, _manifest(out))
    print(f"\n{paths.shown(index)}")
    return status or int("failed" in done.values())


def refresh(only: Sequence[str] | None = None) -> int:
    """Renew the outputs and figures of the committed chapters in place; return 1 if one could not be."""
    jobs = plan(only)
    failures = []
    with _progress([job.name for job in jobs]) as begin:
        for job in jobs:
            begin(job.name)
            began = time.monotonic()
            try:
                notebook.refresh(job.notebook)
                begin(None, f"{job.name} refreshed in {_duration(time.monotonic() - began)}")
            except (InputError, notebook.NotebookFailed) as error:
                failures.append(str(error))
                begin(None, f"{job.name} left as it was: {error}", bad=True)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} chapters refreshed")
    return int(bool(failures))


def plan(
    only: Sequence[str] | None = None,
    panels: bool | str | Sequence[str] | None = None,
    recipe: str | None = None,
    scale: str | None = None,
) -> list[Job]:
    """The jobs that a call of `reproduce` runs, in order, with their parameters checked; InputError as there."""
    chapters = {path.stem: path for path in sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))}
    if not chapters:
        raise InputError(f"no chapters in {paths.notebooks()}; set SYNFLOW_HOME to the project's folder")
    jobs = [] if panels and not only else [Job(name, chapters[name]) for name in _chosen(only, chapters)]
    if scale:
        lookup(dict.fromkeys(SCALES), scale, "scale")
    asked = {name: value for name, value in (("recipe", recipe), ("scale", scale)) if value}
    jobs = [_asked(job, asked) for job in jobs]
    if panels:
        jobs = [job for job in jobs if job.number != PANEL_CHAPTER] + _panel_jobs(panels, recipe, chapters)
    for name, chapter in {"recipe": "07", "scale": "03"}.items():
        if name in asked and not any(name in job.parameters for job in jobs):
            raise InputError(
                f"none of these chapters has a parameter {name!r}; name chapter {chapter}, or leave it out"
            )
    for job in jobs:
        parameters.check(job.notebook.name, notebook.parameters_of(job.notebook), job.parameters)
        _check_recipe(job)
    return jobs


def write_index(out: Path, surroundings: str) -> Path:
    """Write `out`/index.html from what the manifest says of every chapter, those of earlier calls included."""
    from synflow_lib import pages

    manifest = _manifest(out)
    known = {path.stem: Job(path.stem, path) for path in sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))}
    for name, entry in manifest.items():
        if (file := paths.notebooks() / entry["notebook"]).exists():
            known[name] = Job(name, file, entry["parameters"])
    cards = [_card(known[name], manifest.get(name), out, surroundings) for name in sorted(known)]
    now = datetime.now().astimezone()
    return pages.write_index(cards, provenance.environment(), f"{now.day} {now:%B %Y, %H:%M}", out / "index.html")


def _chosen(only: Sequence[str] | None, chapters: dict[str, Path]) -> list[str]:
    if not only:
        return list(chapters)
    names = {}
    for name in chapters:
        for alias in (name, name[:2], str(int(name[:2])), name[3:]):
            names.setdefault(alias, name)
    shown = {name[:2]: name for name in chapters}  # a person wants to read these, not the aliases
    wanted = {names[str(one)] if str(one) in names else lookup(shown, str(one), "chapter") for one in only}
    return [name for name in chapters if name in wanted]


def _asked(job: Job, asked: dict[str, object]) -> Job:
    """The job with those of the values for which its chapter has a parameter."""
    declared = notebook.parameters_of(job.notebook)
    values = {name: value for name, value in asked.items() if name in declared}
    timeout = None if values.get("scale") == "paper" else job.timeout
    return Job(job.name, job.notebook, job.parameters | values, timeout)


def _panel_jobs(panels: bool | str | Sequence[str], recipe: str | None, chapters: dict[str, Path]) -> list[Job]:
    file = next((path for name, path in chapters.items() if name.startswith(PANEL_CHAPTER)), None)
    if file is None:
        raise InputError(f"chapter {PANEL_CHAPTER}, which draws the panels, is not in {paths.notebooks()}")
    extra = PUBLISHED_AXES | ({"recipe": recipe} if recipe else {})
    usual = not recipe or recipe == notebook.parameters_of(file)["recipe"].default
    end = "" if usual else "_" + re.sub(r"[^\w.+=-]+", "_", str(recipe))  # those of another recipe are kept beside
    return [
        Job(
            f"{PANEL_CHAPTER}_{dataset}_{model}{end}", file, {"dataset": dataset, "model": model, **extra}, timeout=None
        )
        for dataset, model in chosen(panels)
    ]


def _check_recipe(job: Job) -> None:
    """Raise InputError where a job's recipe is none for the network that it trains."""
    values = {name: parameter.default for name, parameter in notebook.parameters_of(job.notebook).items()}
    values |= job.parameters
    from synflow_lib import training

    if {"recipe", "dataset", "model"} <= set(values):
        training.recipe(values["recipe"], values["dataset"], values["model"])


def _surroundings() -> str:
    """The library, the published numbers that chapters read, the versions and the device, as one string."""
    package = Path(__file__).parent
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".html", ".css")]
    made_by = {name: value for name, value in provenance.environment().items() if name != "revision"}
    return _contents([*files, *paths.reference().glob("*.csv")]) + json.dumps(made_by, sort_keys=True)


def _recorded(dataset: str | None = None, model: str | None = None) -> str:
    """Which runs on the paper's data sets (on this one, of this network) have a record, and how they ended."""
    from synflow_lib.benchmark import records
    from synflow_lib.benchmark.grid import PUBLISHED_DATASETS, SAME_NETWORK

    known = [record for record in records.everything() if record["dataset"] in PUBLISHED_DATASETS]
    if dataset is not None:
        names = [{name, SAME_NETWORK.get(name, name)} for name in (model, *(r["model"] for r in known))]
        known = [r for r, own in zip(known, names[1:], strict=True) if r["dataset"] == dataset and own & names[0]]
    return " ".join(f"{record['key']} {records.state(record)}" for record in known)


def _contents(files: Sequence[Path]) -> str:
    contents = hashlib.sha256()
    for path in sorted(files):
        contents.update(path.name.encode() + path.read_bytes())
    return contents.hexdigest()


def _run_unless_current(job: Job, out: Path, surroundings: str, force: bool) -> str:
    """Return "up to date", "passed" or "failed"; the last two have a new entry in the manifest.

    Of two processes that want the same one does it, and the other waits and finds it done.
    """
    with FileLock(out / f".{job.name}.lock"):
        read = job.read(surroundings)
        entry = _manifest(out).get(job.name)
        known = entry and entry["status"] == "passed" and entry["key"] == job.key(read)
        return "up to date" if known and not force and _complete(job, entry, out) else _run(job, out, read)


def _run(job: Job, out: Path, read: str) -> str:
    executed, began, reason = out / f"{job.name}.ipynb", time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix=f".{job.name}.", dir=out) as drawn:  # the old figures stay until then
        environment = {"SYNFLOW_FIGURES": str(Path(drawn).absolute())}
        try:
            notebook.execute(job.notebook, executed, job.parameters, timeout=job.timeout, environment=environment)
        except notebook.NotebookFailed as error:
            reason = f"cell {error.cell}: {error.reason}"
        seconds = time.monotonic() - began
        figures = _put(Path(drawn), job, out)
    from synflow_lib import pages

    unshown = pages.write_chapter(executed, out / f"{job.name}.html", _title(job), reason)
    entry = {
        "key": job.key(read),
        "status": "failed" if reason else "passed",
        "reason": reason,
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "notebook": job.notebook.name,
        "parameters": job.parameters,
        "figures": sorted({path.stem for path in figures if path.suffix in (".png", ".svg")}),
        "formulas left as TeX": unshown,
    }
    _remember(job.name, entry, out)
    return entry["status"]


def _put(drawn: Path, job: Job, out: Path) -> list[Path]:
    """Put the files that were drawn in place of those of the last run; folders there are those of panels."""
    figures = job.figures(out)
    figures.mkdir(parents=True, exist_ok=True)
    for stale in figures.glob(f"{job.number}_*"):
        if stale.is_file():
            stale.unlink(missing_ok=True)
    return [file.replace(figures / file.name) for file in sorted(drawn.iterdir()) if file.is_file()]


def _complete(job: Job, entry: dict, out: Path) -> bool:
    outputs = [out / f"{job.name}.ipynb", out / f"{job.name}.html"]
    drawn = [
        any((job.figures(out) / f"{name}{kind}").exists() for kind in (".png", ".svg")) for name in entry["figures"]
    ]
    return all(path.exists() for path in outputs) and all(drawn)


def _manifest(out: Path) -> dict[str, dict]:
    """Name to what came out of its last run; without what is no whole entry, and empty where there is no file.

    Raises InputError for a file that may not be read.
    """
    file = out / "manifest.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise InputError(f"cannot read {paths.shown(file)}: {error.strerror or error}") from error
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict) and set(entry) >= ENTRY}


def _remember(name: str, entry: dict, out: Path) -> None:
    with FileLock(out / ".manifest.lock"), paths.replacing(out / "manifest.json") as partial:
        partial.write_text(json.dumps(_manifest(out) | {name: entry}, indent=1), encoding="utf-8")


def _title(job: Job) -> str:
    shown = (
        {**job.parameters, "scale": "at the paper's size"} if job.parameters.get("scale") == "paper" else job.parameters
    )
    given = ", ".join(value for value in shown.values() if isinstance(value, str))
    return notebook.heading(job.notebook)[0] + (f" ({given})" if given else "")


def _card(job: Job, entry: dict | None, out: Path, surroundings: str):
    from synflow_lib import pages

    question = notebook.heading(job.notebook)[1]
    if entry is None or not (out / f"{job.name}.html").exists():
        return pages.Card(job.number, _title(job), question, "not run", "", None, [])
    status, time_taken = entry["status"], _duration(entry["seconds"])
    remark = f" in {time_taken}" if status == "passed" else f" after {time_taken}"
    if entry["key"] != job.key(job.read(surroundings)):
        status, remark = "outdated", ": made by an older version of its source, the library or the environment"
    folder = job.figures(out).relative_to(out).as_posix()
    figures = [[f"{folder}/{name}{kind}" for kind in (".png", ".svg")] for name in entry["figures"]]
    figures = [[file for file in files if (out / file).exists()] for files in figures]
    return pages.Card(
        job.number,
        _title(job),
        question,
        status,
        remark,
        f"{job.name}.html",
        [(files[0], files[-1]) for files in figures if files],
        entry["reason"],
    )


@contextlib.contextmanager
def _progress(names: list[str]) -> Iterator[Callable[..., None]]:
    """Give a function to call with the name that begins, and with None and a sentence when it ends.

    On a terminal it moves one bar over all chapters, with the running one and its time beside it, and prints only
    the bad sentences; elsewhere each sentence is a line.
    """
    running: list[tuple[str, float]] = []
    over = threading.Event()
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=len(names), disable=not terminal, bar_format="{l_bar}{bar:24}| {n_fmt}/{total_fmt}, {elapsed}{postfix}"
    )

    def tick() -> None:  # tqdm draws only when a chapter ends; a reader wants to see that it is alive
        while not over.wait(1.0):
            for name, began in list(running):
                bar.set_postfix_str(f"{name} {_duration(time.monotonic() - began)}")

    def begin(name: str | None, sentence: str = "", bad: bool = False) -> None:
        running.clear()
        if name is not None:
            running.append((name, time.monotonic()))
            bar.set_postfix_str(name)
            return
        if not terminal:
            print(sentence, flush=True)
        elif bad:
            bar.write(sentence)
        bar.update()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield begin
    finally:
        over.set()
        clock.join()
        bar.close()


def _outcome(name: str, happened: str, entry: dict) -> str:
    if happened == "failed":
        return f"{name} failed in {entry['reason']}"
    return f"{name} {happened}" + (f" in {_duration(entry['seconds'])}" if happened == "passed" else "")


def _report(done: dict[str, str], manifest: dict[str, dict]) -> None:
    """Print chapter, time, status and number of figures, then what failed and what could not be shown."""
    width = max(map(len, ["chapter", *done]))
    print(f"\n{'chapter':<{width}}  {'time':>11}  {'status':<10}  figures")
    for name, happened in done.items():
        entry = manifest[name]
        print(f"{name:<{width}}  {_duration(entry['seconds']):>11}  {happened:<10}  {len(entry['figures'])}")
    for name, happened in done.items():
        if happened == "failed":
            print(f"{name} failed in {manifest[name]['reason']}")
        for sentence in manifest[name]["formulas left as TeX"]:
            print(f"{name}: {sentence}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
