"""The training that cycles of pruning begin with: of the whole network, so the same whatever is pruned afterwards.

A process that does several such runs does it once. Kept is the checkpoint after its last epoch, which the next run
finds in the place of its own: it goes on from there to the same bits, and so does whoever takes it over later.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synflow_lib import paths
from synflow_lib.benchmark.grid import Run
from synflow_lib.errors import InputError
from synflow_lib.training import Checkpoint

DECIDES = ("dataset", "model", "width", "seed", "recipe")  # the fields of Run that this training hangs on

_kept: dict[str, bytes] = {}  # what was trained, as JSON, to the file: of the last such training alone


def fields(spec: Run) -> dict[str, Any]:
    """What of `spec` says which training it is."""
    return {name: getattr(spec, name) for name in DECIDES}


def offer(file: Path, about: Mapping[str, Any]) -> None:
    """Put the checkpoint of the training that `about` describes at `file`, where it is kept and nothing is there."""
    contents = _kept.get(_name(about))
    if contents is not None and not file.exists():
        with contextlib.suppress(InputError), paths.replacing(file) as partial:  # a full disk: it is trained again
            partial.write_bytes(contents)


def keep(save: Checkpoint) -> None:
    """Keep the training that `save` is the checkpoint of, in place of any other; it has ended."""
    if _name(save.about) in _kept:
        return
    forget()
    with contextlib.suppress(OSError):  # it could not be written, and said so
        _kept[_name(save.about)] = save.path.read_bytes()


def forget() -> None:
    """Keep nothing."""
    _kept.clear()


def _name(about: Mapping[str, Any]) -> str:
    return json.dumps(dict(about), sort_keys=True)
