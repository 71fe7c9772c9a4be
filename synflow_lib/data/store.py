"""A data set on disk is one safetensors file of four tensors, checked against its sha256 each time it is read.

    train_images  uint8 [N, 3, H, W]      train_labels  int64 [N]
    test_images   uint8 [M, 3, H, W]      test_labels   int64 [M]

The metadata holds `source`, `official` ("true" where the tensors equal the official files) and `sha256`.
Checking CIFAR-10 takes 0.12 s on a core with SHA instructions and under a second without, so no verdict is cached:
a cached one would be the only way in which an altered file could be used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synflow_lib import devices, paths
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError
from synflow_lib.tensors import write as write_tensors

KEYS = ("test_images", "test_labels", "train_images", "train_labels")  # sorted: the order of the fingerprint


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set on one device, as bytes: images uint8 [N, 3, H, W], labels int64 [N]."""

    spec: DatasetSpec
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    fingerprint: str  # sha256 of the four tensors, hexadecimal
    official: bool  # equal to the official files
    remark: str = ""  # how it differs from them, for a person to read

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.spec.input_shape

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 to classes - 1."""
        return self.spec.classes

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the data set with all four tensors on `device`: "cpu", "cuda", "cuda:1", "mps" or "auto"."""
        device = devices.resolve(device)
        return replace(self, **{key: getattr(self, key).to(device) for key in KEYS})


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256, in hexadecimal, of the bytes of the four tensors in the order of their names."""
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(tensors[key].contiguous().numpy().data)
    return digest.hexdigest()


def write(path: Path, spec: DatasetSpec, tensors: Mapping[str, Tensor], source: str, official: bool) -> None:
    """Write `tensors` to `path` in one step; `official` is overruled where the official fingerprint is known.

    Raises InputError when the tensors are not what `spec` says, or the file cannot be written.
    """
    if problem := _mismatch(spec, tensors):
        raise InputError(f"what was read for {spec.name} {problem}; nothing was written")
    digest = fingerprint(tensors)
    official = official and spec.fingerprint in (None, digest)
    metadata = {"source": source, "official": str(official).lower(), "sha256": digest}
    write_tensors(path, {key: tensors[key] for key in KEYS}, metadata)


def read(path: Path, spec: DatasetSpec) -> Dataset:
    """Return the data set in `path`, on the CPU, having checked names, types, shapes, labels and sha256.

    The tensors are the file itself, mapped into memory: processes that read the same file share it.
    Raises InputError that names the file, what is wrong with it and what to do.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise _damaged(path, spec, f"is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise InputError(
            f"cannot read {paths.shown(path)}: {error.strerror or error}; check its permissions"
        ) from error
    if problem := _mismatch(spec, tensors):
        raise _damaged(path, spec, problem)
    digest = fingerprint(tensors)
    if digest != metadata.get("sha256"):
        raise _damaged(path, spec, "was altered: its sha256 is not the one it was written with")
    try:
        remark = _remark(spec, tensors, metadata)
    except (ValueError, TypeError) as error:
        raise _damaged(path, spec, f"has unreadable metadata ({error})") from error
    official = metadata.get("official") == "true"
    complete = tensors["train_labels"].numel() == spec.train_size
    if official and not (complete and spec.fingerprint in (None, digest)):
        raise _damaged(path, spec, "says that it equals the official files, but it does not")
    official = official or digest == spec.fingerprint
    return Dataset(spec, **tensors, fingerprint=digest, official=official, remark=remark)


def _damaged(path: Path, spec: DatasetSpec, problem: str) -> InputError:
    return InputError(f"{paths.shown(path)} {problem}; delete it and run `synflow data {spec.name}`")


def _mismatch(spec: DatasetSpec, tensors: Mapping[str, Tensor]) -> str | None:
    """Say how `tensors` differ from what `spec` promises, or return None."""
    if missing := [key for key in KEYS if key not in tensors]:
        return f"holds no {missing[0]}"
    if extra := sorted(set(tensors) - set(KEYS)):
        return f"holds an unknown tensor {extra[0]!r}"
    sizes = (tensors["train_labels"].numel(), tensors["test_labels"].numel())
    if sizes not in ((spec.train_size, spec.test_size), spec.subset):
        return (
            f"holds {sizes[0]:,} training and {sizes[1]:,} test labels where {spec.train_size:,} "
            f"and {spec.test_size:,} are expected"
        )
    for split, size in zip(("train", "test"), sizes, strict=True):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        for tensor, kind, shape, dtype in (
            (images, "images", (size, *spec.input_shape), torch.uint8),
            (labels, "labels", (size,), torch.int64),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                return f"has {split}_{kind} {_form(tensor.shape, tensor.dtype)} where {_form(shape, dtype)} is expected"
        if labels.min() < 0 or labels.max() >= spec.classes:
            return f"has {split}_labels outside 0 to {spec.classes - 1}"
    return None


def _form(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _remark(spec: DatasetSpec, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    if (train := tensors["train_labels"].numel()) < spec.train_size:
        test = tensors["test_labels"].numel()
        return f"a subset: {train:,} of {spec.train_size:,} training and {test:,} of {spec.test_size:,} test images"
    if "inexact_images" in metadata:
        return f"{len(json.loads(metadata['inexact_images']))} images are approximations of the originals"
    return ""
