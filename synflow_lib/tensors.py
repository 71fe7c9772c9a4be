"""Tensors go to disk as safetensors: no pickle, nothing to execute, and never half a file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from synflow_lib.errors import InputError
from synflow_lib.paths import replacing, shown


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata` to the file `path` in one step; raises InputError where that is impossible.

    Tensors that share memory, as tied weights do, are written as often as they have names.
    """
    with replacing(path) as partial:
        partial.touch()
        mode, apart = partial.stat().st_mode, _apart(tensors)
        try:
            save_file(apart, partial, dict(metadata))
        except SafetensorError as error:  # it hides the operating system's error in its text
            raise OSError(str(error)) from error
        except (KeyError, RuntimeError, ValueError) as error:  # of a kind of tensor that the format has no word for
            raise InputError(f"cannot write {shown(path)}: safetensors cannot hold such a tensor ({error})") from error
        partial.chmod(mode)  # safetensors makes files that only their owner may read


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares its memory with another."""
    apart: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.cpu().contiguous()
        if plain.untyped_storage().data_ptr() in known:
            plain = plain.clone()
        known.add(plain.untyped_storage().data_ptr())
        apart[name] = plain
    return apart
