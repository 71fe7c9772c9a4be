"""Who does which run and where it stands: locks and checkpoints, in folders beside the records.

A lock file per run keeps two drivers on one records folder from doing the same run twice. A note beside it says which
run it is, for a key does not tell.

The operating system holds the lock and frees it when its process ends, however it ends, so nobody has to decide
whether a claim is stale. Computers that share the folder need a file system with locks (NFS version 4, Lustre with
flock, and the like).
"""

import contextlib
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from synflow_lib import paths
from synflow_lib.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


class Elsewhere(Exception):
    """Another process is doing this run."""


def path(key: str) -> Path:
    """The lock file of the run with this key."""
    return paths.records() / "claims" / f"{key}.lock"


def note(key: str) -> Path:
    """The file that says which run has this key, from its claim to its record."""
    return path(key).with_suffix(".json")


def checkpoint(key: str, cycle: int = 0) -> Path:
    """Where the run of this key keeps the checkpoint of its last training, or of that in a `cycle` (1, 2, ...)."""
    return paths.records() / "checkpoints" / f"{key}{f'.cycle{cycle}' if cycle else ''}.safetensors"


def checkpoints(key: str) -> list[Path]:
    """The checkpoints that there are of the run of this key: one that is not running was interrupted."""
    return sorted((paths.records() / "checkpoints").glob(f"{key}*.safetensors"))


@contextmanager
def claim(key: str, fields: Mapping[str, Any] | None = None) -> Iterator[bool]:
    """Give True, and keep the run of this key to this process for the block; give False where another has it.

    Look at the record again after claiming: the other process may have just finished. The `fields` of the run are noted
    for `begun`, and half-written files of the run are removed. Lock and note are removed when the block ends with a
    record in place, for nobody needs them any more. Raises InputError where locks cannot be made.
    """
    lock = _lock(key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise InputError(f"cannot lock {paths.shown(path(key))}: {error.strerror or error}") from error
    try:
        for half in _halves(key):
            half.unlink(missing_ok=True)
        if fields is not None:
            _note(key, fields)
        yield True
    finally:
        if (paths.records() / f"{key}.json").exists():
            note(key).unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
                path(key).unlink(missing_ok=True)
        lock.release()


def _halves(key: str) -> list[Path]:
    """What a process that was killed while it wrote a file of this run has left; whoever claims the run writes none."""
    folders = (paths.records(), paths.records() / "checkpoints", paths.records() / "claims")
    return [file for folder in folders for file in folder.glob(f".{key}*.partial")]


def _note(key: str, fields: Mapping[str, Any]) -> None:
    with contextlib.suppress(InputError), paths.replacing(note(key)) as partial:  # a run is worth more than its note
        partial.write_text(json.dumps(dict(fields)), encoding="utf-8")


def begun(keys: Container[str]) -> Iterator[dict[str, Any]]:
    """The fields of those runs of `keys` that were claimed and have no record yet; what cannot be read is left out."""
    for file in sorted((paths.records() / "claims").glob("*.json")):
        if file.stem in keys:
            with contextlib.suppress(OSError, ValueError):  # just finished, or damaged by a power cut
                yield json.loads(file.read_text(encoding="utf-8"))


def held(key: str) -> bool:
    """Whether some process is doing the run of this key now: also for who may only read, and no file is made by asking.

    What cannot be read is taken to be at work.
    """
    try:
        with path(key).open("rb") as file:
            return _locked(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _locked(file: BinaryIO) -> bool:
    if fcntl is None:  # Windows
        lock = FileLock(file.name, is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # it ends with the file
    except BlockingIOError:
        return True
    return False


def running() -> set[str]:
    """The keys of all runs that some process is doing now."""
    return {file.stem for file in (paths.records() / "claims").glob("*.lock") if held(file.stem)}


def _lock(key: str) -> FileLock:
    """A lock that no other one in this process shares, so that two threads exclude each other too."""
    try:
        path(key).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {paths.shown(path(key).parent)}: {error.strerror or error}") from error
    return FileLock(path(key), is_singleton=False)
