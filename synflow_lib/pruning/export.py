"""A network as one file that runs without the Python code that defines it: torch.export's .pt2, or ONNX.

The file holds the network in eval mode and in the dtype of its weights, on the CPU, so that it loads anywhere, and
takes a batch of any size. Both formats are made from the same traced program, without the traces that would tell in
which folder it was made. ONNX merges each BatchNorm into the convolution before it, so its outputs differ in rounding:
by less than 1e-4 of the largest output in float32 (`tests/pruning/test_export.py`).
"""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from synflow_lib.errors import InputError
from synflow_lib.models.tracing import copied
from synflow_lib.paths import replacing, shown
from synflow_lib.pruning.passes import example_input, forward

FORMATS = (".pt2", ".onnx")
ONNX_LIMIT = 2**31  # bytes of one ONNX file, which is a protocol buffer


def check_export_path(path: str | Path) -> Path:
    """Return `path` if a network can be exported to it as far as its name tells.

    Raises InputError for a suffix that is no format, for a folder, and where ONNX is asked for but not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError(
            f"cannot export to {shown(path)}: its name must end in .pt2 (torch.export) or .onnx, which is the format"
        )
    if path.is_dir():
        raise InputError(f"cannot export to {shown(path)}: it is a folder; name a file")
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and absent:
        raise InputError(f"{shown(path)} needs {' and '.join(absent)}: pip install onnx onnxscript, or write a .pt2")
    return path


def export(model: nn.Module, path: str | Path, input_shape: Sequence[int]) -> Path:
    """Write `model` in eval mode to `path`, for inputs [B, *input_shape] with any B, and return the path.

    `input_shape` is that of one example; the suffix decides the format. A .pt2 file is read with
    `torch.export.load(path).module()`, an .onnx file with any ONNX runtime (its tensors are "input" and "output";
    onnxruntime convolves on a CPU in float32 only, so export a float64 model as .pt2).
    The model is not changed, nor is its mode. The file is replaced in one step. Raises InputError for a path that
    `check_export_path` refuses, for a shape that the model cannot take, for a model that torch.export cannot follow or
    that fixes the size of its batch, and where the file cannot be written.
    """
    path = check_export_path(path)
    program = _traced(model, input_shape)
    with replacing(path) as partial:
        if path.suffix == ".pt2":
            buffer = io.BytesIO()  # given a path, torch.export.save wants its suffix, which a temporary name has not
            torch.export.save(program, buffer)
            partial.write_bytes(buffer.getbuffer())
        else:
            _write_onnx(program, partial)
    return path


def _traced(model: nn.Module, input_shape: Sequence[int]) -> torch.export.ExportedProgram:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced model cannot be exported: export it before torch.jit")
    try:
        model = copied(model).cpu().eval()
        example = example_input(model, 2, input_shape)  # of one, torch.export concludes that it is always one
        forward(model, example)
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0].partition(" For more information")[0]
        raise InputError(f"{name} cannot be exported with a batch of any size: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= ONNX_LIMIT:
        raise InputError(f"an ONNX file holds less than 2 GiB, and these weights are {size / 2**30:.1f}: write a .pt2")
    try:
        torch.onnx.export(
            *(program, (), path),
            dynamo=True,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        last = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"the network has no ONNX form ({last}): write a .pt2 instead") from error
