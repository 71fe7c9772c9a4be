"""Who does which run and where it stands: locks and checkpoints, in folders beside the records.

A lock file per run keeps two drivers on one records folder from doing the same run twice. A note beside it says which
run it is, for a key does not tell.

The operating system holds the lock and frees it when its process ends, however it ends, so nobody has to decide
whether a claim is stale. Computers that share the folder need a file system with locks (NFS version 4, Lustre with
flock, and the like).
"""

import contextlib
import errno
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from synflow_lib import paths
from synflow_lib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
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
    record in place, for nobody needs them any more. Raises InputError where locks cannot be made, or what is there
    belongs to somebody else who lets nobody write.
    """
    lock = _lock(key)
    if not _acquired(lock):
        yield False
        return
    try:
        _remove_halves(key)
        if fields is not None:
            _note(key, fields)
        yield True
    finally:
        if (paths.records() / f"{key}.json").exists():
            note(key).unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
                path(key).unlink(missing_ok=True)
        lock.release()


def _remove_halves(key: str) -> None:
    """Remove what a process that was killed while writing for this run has left; whoever claims it writes nothing."""
    for folder in (paths.records(), paths.records() / "checkpoints", paths.records() / "claims"):
        for half in folder.glob(f".{key}*.partial"):
            try:
                half.unlink(missing_ok=True)
            except OSError as error:
                raise _cannot("remove", half, error) from error


def _note(key: str, fields: Mapping[str, Any]) -> None:
    with contextlib.suppress(InputError), paths.replacing(note(key)) as partial:  # a run is worth more than its note
        partial.write_text(json.dumps(dict(fields)), encoding="utf-8")


def begun(keys: Container[str]) -> Iterator[dict[str, Any]]:
    """The fields of those runs of `keys` that were claimed and have no record yet; what cannot be read is left out."""
    for file in paths.files(paths.records() / "claims", ".json"):
        if file.stem in keys:
            with contextlib.suppress(OSError, ValueError):  # just finished, or damaged by a power cut
                yield json.loads(file.read_text(encoding="utf-8"))


def held(key: str) -> bool:
    """Whether some process is doing the run of this key now.

    Whoever may read the lock file can ask, for it is neither made nor changed. Raises InputError for everybody else:
    either answer could be untrue.
    """
    if fcntl is None:
        return path(key).exists() and not _free(key)
    try:
        file = path(key).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot("look at", path(key), error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some file systems say the latter
            return True
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise _cannot("lock", path(key), error) from error
            return not _free(key)  # without flock filelock has a way of its own
    return False


def _free(key: str) -> bool:
    """Whether the lock can be had; it is given back."""
    lock = _lock(key)
    if free := _acquired(lock):
        lock.release()
    return free


def _acquired(lock: FileLock) -> bool:
    """Whether the lock is ours now; InputError where none can be made."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        raise _cannot("lock", Path(lock.lock_file), error) from error
    return True


def running() -> set[str]:
    """The keys of all runs that some process is doing now."""
    return {file.stem for file in paths.files(paths.records() / "claims", ".lock") if held(file.stem)}


def _lock(key: str) -> FileLock:
    """A lock that no other one in this process shares, so that two threads exclude each other too."""
    try:
        path(key).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("make", path(key).parent, error) from error
    return FileLock(path(key), is_singleton=False)


def _cannot(do: str, file: Path, error: OSError) -> InputError:
    return InputError(f"cannot {do} {paths.shown(file)}: {error.strerror or error}")
