"""The only file that knows where things lie.

Every folder can be moved with an environment variable: SYNFLOW_HOME (all of them), or one of SYNFLOW_DATA,
SYNFLOW_RECORDS, SYNFLOW_FIGURES and SYNFLOW_BUILD; an empty one counts as none. They are read at each call, so a test
can move them.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synflow_lib.errors import InputError


def home() -> Path:
    """The project's folder: the checkout this package was installed from, else the current folder."""
    if given := os.environ.get("SYNFLOW_HOME"):
        return Path(given)
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def _folder(variable: str, *default: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else home().joinpath(*default)


def data() -> Path:
    """Data sets, one safetensors file each (not in git)."""
    return _folder("SYNFLOW_DATA", "data")


def records() -> Path:
    """One JSON file per run of the benchmark (not in git)."""
    return _folder("SYNFLOW_RECORDS", "data", "records")


def figures() -> Path:
    """What the notebooks draw, as SVG and PNG."""
    return _folder("SYNFLOW_FIGURES", "figures")


def build() -> Path:
    """Executed chapters and their index (not in git)."""
    return _folder("SYNFLOW_BUILD", "build")


def reference() -> Path:
    """The numbers that the paper's authors published, as CSV."""
    return home() / "data" / "reference"


def results() -> Path:
    """Our own results: small CSV files, reviewed and committed."""
    return home() / "data" / "results"


def notebooks() -> Path:
    """The chapters."""
    return home() / "notebooks"


def shown(path: Path) -> str:
    """`path` as a person would write it: relative to the current folder where it lies below it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def files(folder: Path, ending: str) -> list[Path]:
    """The files of `folder` whose names end so, in order; none where there is no folder.

    Raises InputError for a folder that may not be looked into, of which `glob` would say that it is empty.
    """
    try:
        names = os.listdir(os.path.join(folder, os.curdir))  # asks for the right to open what is in it too
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot look into {shown(folder)}: {error.strerror or error}") from error
    return [Path(folder, name) for name in sorted(names) if name.endswith(ending)]


def _cannot_write(target: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"cannot write {shown(target)}: {reason}; free some space or choose another folder")


@contextmanager
def replacing(target: Path, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target`; when the block succeeds it is renamed to `target`, else removed.

    A reader never sees half a file, and two writers never share a temporary name. What is `durable` has reached the
    disk when the block is over, and outlives a power cut. Raises InputError, naming the file and the reason, when the
    disk is full or the folder cannot be written.
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            _reach_the_disk(partial, os.O_RDWR)
        partial.replace(target)
        if durable and os.name == "posix":
            _reach_the_disk(target.parent, os.O_RDONLY)  # its new name
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        if partial.exists():
            partial.unlink()


def _reach_the_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`; called before work whose result will go there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
    except OSError as error:
        raise _cannot_write(Path(folder), error) from error
