"""Tensors go to disk as safetensors: no pickle, nothing to execute, and never half a file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from synflow_lib.paths import replacing


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata` to the file `path` in one step; raises InputError where that is impossible."""
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, dict(metadata))
        except SafetensorError as error:  # it hides the operating system's error in its text
            raise OSError(str(error)) from error
        partial.chmod(mode)  # safetensors makes files that only their owner may read
