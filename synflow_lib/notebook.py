"""Run chapters strictly: papermill with its silent defaults made loud, and provenance on whatever comes out.

`start`, the first call in every chapter, sees what plain papermill, Jupyter, nbval or a script really put there;
`execute` refuses before a kernel starts; `refresh` renews the outputs that are committed. This is the only file
that knows papermill.
"""

import base64
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from synflow_lib import parameters as checker
from synflow_lib import paths, provenance
from synflow_lib.errors import InputError

if TYPE_CHECKING:
    from nbformat import NotebookNode

SIZE_LIMIT = 300_000  # bytes of a committed notebook; code hosts stop rendering much larger ones
ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill adds to what it runs
ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")  # where an object lies in memory
STYLED_TABLE = re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)")  # pandas' identifier of a styled table
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\[\d+:\d\d(:\d\d)?[<,].*\]")  # how tqdm draws, with and without a total


class NotebookFailed(RuntimeError):
    """A cell raised, ran out of time or lost its kernel; the partial notebook is kept and holds the traceback."""

    def __init__(self, notebook: str, cell: int, reason: str) -> None:
        super().__init__(f"{notebook} failed in cell {cell}: {reason}")
        self.cell = cell  # counted from 1, text cells included
        self.reason = reason  # the last line of the traceback


@dataclass(frozen=True)
class Chapter:
    """The chapter that runs: what it is called and what it was given."""

    number: str
    title: str
    parameters: dict[str, object]
    started: float = field(repr=False)  # seconds, time.monotonic

    @property
    def device(self) -> str:
        """The parameter `device`, or "auto" where the chapter has none."""
        return str(self.parameters.get("device", "auto"))

    def provenance(self) -> provenance.Table:
        """The table that ends the chapter: versions, git revision, device, threads and seconds since its start."""
        return provenance.table(self.device, time.monotonic() - self.started)


def start(chapter: str, namespace: dict[str, object]) -> Chapter:
    """Check what the parameters cell and papermill put into `namespace`, and return the chapter.

    Call it right after the parameters: `chapter = sf.notebook.start("07", globals())`. SYNFLOW_THREADS, where
    set, becomes the number of torch's threads. Raises InputError, shown as one sentence instead of a traceback,
    for a parameter that the chapter does not have (papermill injects it all the same) or of the wrong type.
    """
    number = f"{int(chapter):02d}"
    file = next(iter(sorted(paths.notebooks().glob(f"{number}_*.ipynb"))), None)
    where = file.name if file else f"chapter {number}"
    # What this kernel ran is truer than the file: a reader may have edited the open chapter, or opened a copy.
    # A script has run no cells, and nbval keeps no history of them.
    ran = [source for source in namespace.get("In", []) if isinstance(source, str)]
    declared = checker.among_cells_run(ran)
    if declared is None:
        if file is None:
            raise InputError(f"{where} is not in {paths.notebooks()}; set SYNFLOW_HOME to the project's folder")
        declared = parameters_of(file)
    injected = {name: namespace.get(name) for name in checker.injected_names(ran)}
    values = {name: namespace[name] for name in declared if name in namespace}
    checker.check(where, declared, injected | values)
    if missing := [name for name in declared if name not in values]:
        raise InputError(f"{where} starts before its parameter {missing[0]!r} has a value; run the cell above first")
    _set_threads()
    return Chapter(number, heading(file)[0] if file else where, values, time.monotonic())


def read(notebook: Path) -> "NotebookNode":
    """The notebook in the file, as nbformat 4; InputError where it is absent or not a notebook."""
    import nbformat

    try:
        return nbformat.read(notebook, as_version=4)
    except OSError as error:
        raise InputError(f"cannot read {paths.shown(notebook)}: {error.strerror}") from error
    except (nbformat.ValidationError, ValueError) as error:  # NotJSONError is a ValueError
        raise InputError(f"{paths.shown(notebook)} is not a notebook that Jupyter can read") from error


def parameters_of(notebook: Path) -> dict[str, checker.Parameter]:
    """Name to parameter of the one cell tagged `parameters`; InputError where it is missing or not simple."""
    tagged = [cell for cell in read(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise InputError(
            f"{Path(notebook).name} has {len(tagged) or 'no'} cell{'s' * (len(tagged) > 1)} tagged 'parameters' where "
            "it needs one; tag the cell that holds one annotated value a line"
        )
    return checker.read(tagged[0].source, Path(notebook).name)


def heading(notebook: Path) -> tuple[str, str]:
    """The title of a chapter without its number, and the question that its first cells ask ("" without one)."""
    text = "\n".join(cell.source for cell in read(notebook).cells[:2] if cell.cell_type == "markdown")
    lines = [line.strip(" *_>") for line in text.splitlines()]
    title = next((line.lstrip("# ") for line in lines if line.startswith("# ")), Path(notebook).stem)
    title = re.sub(r"^(chapter\s+)?\d+\s*[.:·–—-]*\s*", "", title, flags=re.IGNORECASE)
    body = " ".join(line for line in lines if line and not line.startswith("#"))
    asked = re.search(r"(?:^|(?<=[.!?:]\s))[^.!?:]*\?", body)
    return title, asked.group().strip(" *_") if asked and not title.endswith("?") else ""


def source_hash(notebook: Path) -> str:
    """sha256 over the sources of all cells; outputs, injected parameters and papermill's error notes do not count."""
    sources = [[cell.cell_type, cell.source] for cell in _own_cells(read(notebook))]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def execute(
    notebook: Path,
    out: Path,
    parameters: dict[str, object] | None = None,
    *,
    timeout: float | None = None,
    environment: dict[str, str] | None = None,
) -> Path:
    """Run `notebook` with `parameters` in a kernel of this very Python and write it, with its outputs, to `out`.

    `timeout` is the limit of one cell in seconds; `environment` is added to the kernel's. The kernel starts in
    the notebook's folder. `out` appears in one piece, with versions, device, parameters and source hash in
    metadata.synflow. Raises InputError before a kernel starts for a parameter that is not declared or of another
    type, and NotebookFailed, with the partial notebook in `out`, when a cell fails.
    """
    notebook, out, given = Path(notebook).absolute(), Path(out).absolute(), dict(parameters or {})
    declared = parameters_of(notebook)
    checker.check(notebook.name, declared, given)
    paths.require_writable(out.parent)
    values = {name: given.get(name, parameter.default) for name, parameter in declared.items()}
    stamp = {"source_sha256": source_hash(notebook), "parameters": values}
    stamp |= provenance.environment(str(values.get("device", "auto")))
    ran, failure = _run(notebook, given, timeout, environment or {})
    for key in ("input_path", "output_path"):  # a person's folders are nobody's business
        ran.metadata.papermill.pop(key, None)
    ran.metadata.synflow = stamp
    cell = _note_failure(ran, *failure) if failure else None
    _write(ran, out)
    if failure:
        raise NotebookFailed(notebook.name, cell, _last_line(*failure))
    return out


def refresh(notebook: Path) -> Path:
    """Run `notebook` at its defaults and renew its stored outputs in place, without anything that differs by chance.

    Timings and papermill's metadata go, counts begin at 1, text and PNG stay, and metadata.synflow.source_sha256
    ties them to the source. Raises NotebookFailed or InputError (text on stderr, more than 300 KB) and then changes
    nothing.
    """
    notebook = Path(notebook)
    with tempfile.TemporaryDirectory(prefix="synflow-") as scratch:
        ran = read(execute(notebook, Path(scratch) / notebook.name, environment={"SYNFLOW_TIMELESS": "1"}))
    drop_progress_bars(ran)
    ran.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "synflow": {"source_sha256": source_hash(notebook)},
    }
    counts = itertools.count(1)
    for position, cell in enumerate(ran.cells, start=1):
        _normalise(cell, counts, f"{notebook.name}, cell {position}")
    sizes = {position: len(json.dumps(cell)) for position, cell in enumerate(ran.cells, start=1)}
    if sum(sizes.values()) > SIZE_LIMIT:
        largest = max(sizes, key=sizes.get)
        raise InputError(
            f"{notebook.name} would be {sum(sizes.values()) // 1000} KB with its outputs, over the limit of "
            f"{SIZE_LIMIT // 1000} KB; make the output of cell {largest} ({sizes[largest] // 1000} KB) smaller"
        )
    _write(ran, notebook)
    return notebook


def drop_progress_bars(notebook: "NotebookNode") -> None:
    """Remove tqdm's bars from the outputs; other text on stderr stays, to be seen."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"(?<=[\n\r])", output.text)
                output.text = "".join(line for line in lines if line.strip() and not PROGRESS_BAR.search(line))
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream" or output.text]


def _run(
    notebook: Path, given: dict[str, object], timeout: float | None, environment: dict[str, str]
) -> tuple["NotebookNode", tuple[str, str] | None]:
    """Return the notebook with its outputs, and the name and message of the exception that stopped it, if any."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    failure = None
    with tempfile.TemporaryDirectory(prefix="synflow-", ignore_cleanup_errors=True) as scratch, _papermill_silent():
        partial = Path(scratch) / "partial.ipynb"
        source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, partial))
        options = {
            "kernel_name": "python3",
            "language": "python",
            "progress_bar": False,
            "cwd": notebook.parent,
            "start_timeout": 300,
        }
        client = {"kernel_manager_class": _kernel_manager(scratch, environment), "coalesce_streams": True}
        try:
            papermill.execute_notebook(source, target, given, execution_timeout=timeout, **options, **client)
        except papermill.PapermillExecutionError as error:
            failure = error.ename, error.evalue
        except CellTimeoutError:
            failure = "TimeoutError", f"the cell took more than {timeout:.0f} s"
        except DeadKernelError:
            failure = "DeadKernelError", "the kernel died, as it does when memory runs out"
        except RuntimeError as error:  # jupyter_client's, for a kernel that does not answer
            failure = "RuntimeError", str(error)
        return read(partial), failure


def _kernel_manager(scratch: str, environment: dict[str, str]) -> type:
    """A manager whose kernel is sys.executable, whatever kernels the notebook or this computer name "python3".

    Its sockets are files in `scratch`: of two runs at once over TCP, one now and then takes the other's port. The
    user's own start-up files and matplotlib backend are left out, for a chapter must draw the same everywhere.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    surroundings = {
        "IPYTHONDIR": str(Path(scratch) / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a kernel prints advice about its debugger
        **{
            f"SYNFLOW_{name}": str(getattr(paths, name.lower())().absolute())
            for name in ("HOME", "DATA", "RECORDS", "FIGURES")
        },
        **environment,
    }

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3 (ipykernel)",
            language="python",
            env=surroundings,
        )

        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            socket = Path(scratch) / "socket"
            if sys.platform != "win32" and len(str(socket)) < 90:  # a socket's path ends at 104 bytes on macOS
                self.transport, self.ip = "ipc", str(socket)

        async def start_kernel(self, **options: object) -> None:
            with open(
                Path(scratch) / "kernel.log", "wb"
            ) as log:  # else an interrupted kernel complains on the terminal
                await super().start_kernel(stdout=log, stderr=log, **options)

    return ThisPython


@contextlib.contextmanager
def _papermill_silent():
    """papermill logs what `execute` raises as one sentence, and every cell it runs."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _note_failure(ran: "NotebookNode", name: str, message: str) -> int:
    """Return the position of the cell that failed, counted from 1, and leave an error in it where there is none.

    A time-out and a dead kernel leave no traceback. The cell is the last one that papermill marked as begun, the
    first one where the kernel did not even start.
    """
    import nbformat

    code = [place for place in enumerate(_own_cells(ran), start=1) if place[1].cell_type == "code"]
    begun = [place for place in code if place[1].metadata.papermill.get("exception") is not None]
    position, cell = begun[-1] if begun else code[0]
    if not any(output.get("ename") == name for output in cell.outputs):
        error = nbformat.v4.new_output("error", ename=name, evalue=message, traceback=[_last_line(name, message)])
        cell.outputs.append(error)
    return position


def _last_line(name: str, message: str) -> str:
    return f"{name}: {message.strip().splitlines()[-1]}" if message.strip() else name


def _own_cells(notebook: "NotebookNode") -> list["NotebookNode"]:
    return [cell for cell in notebook.cells if ADDED_TAGS.isdisjoint(cell.metadata.get("tags", []))]


def _normalise(cell: "NotebookNode", counts: Iterator[int], where: str) -> None:
    cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
    if cell.cell_type != "code":
        return
    cell.execution_count = next(counts)  # as if run once from top to bottom; nbval takes a cell without one for unrun
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            lines = output.text.strip().splitlines()
            line = next((line for line in lines if "Warning: " in line), lines[-1])
            line = re.sub(r"^\S+:\d+: ", "", line)  # the warning without the kernel's temporary file
            raise InputError(f"{where} writes to stderr, which readers would see under it: {line!r}; remove its cause")
        if output.output_type == "execute_result":
            output.execution_count = cell.execution_count
        if "data" in output:
            output.metadata = {}
            output.data = {kind: value for kind, value in output.data.items() if "widget" not in kind}
            if "text/html" in output.data:  # pandas draws an identifier for every styled table
                output.data["text/html"] = STYLED_TABLE.sub("T_table", output.data["text/html"])
            if "image/png" in output.data:
                output.data["image/png"] = _with_palette(output.data["image/png"])
            if "text/plain" in output.data:
                output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])


def _with_palette(image: str) -> str:
    """The PNG (in base64) with a palette of 256 colours: drawings look the same and weigh a third."""
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as drawing:
        flat = Image.new("RGB", drawing.size, "white")
        flat.paste(drawing, mask=drawing.getchannel("A") if drawing.mode == "RGBA" else None)
    flat.quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def _set_threads() -> None:
    threads = os.environ.get("SYNFLOW_THREADS")
    if threads is None:
        return
    if not threads.isdecimal() or int(threads) == 0:
        raise InputError(f"SYNFLOW_THREADS must be a whole number of at least 1, not {threads!r}")
    import torch

    torch.set_num_threads(int(threads))


def _write(node: "NotebookNode", target: Path) -> None:
    import nbformat

    with paths.replacing(target) as partial:
        nbformat.write(node, partial)
