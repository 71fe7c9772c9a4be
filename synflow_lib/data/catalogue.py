"""Find a data set by its name: read and verify its file, and make that file first where there is none."""

import shutil
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock

from synflow_lib import devices, paths
from synflow_lib.data import store
from synflow_lib.data.sources import SOURCES
from synflow_lib.data.specs import DATASETS, DatasetSpec
from synflow_lib.data.store import Dataset
from synflow_lib.errors import InputError, lookup


def load(name: str, device: torch.device | str = "cpu", download: bool = True) -> Dataset:
    """Return the data set `name`, whole, on `device`.

    It is read from data/<name>.safetensors and verified; where that file is absent it is made first, which
    downloads it unless `download` is false (the digits need no download). Raises InputError for an unknown name, a
    damaged file, and everything that can go wrong with a download.
    """
    spec, path = _find(name)
    device = devices.resolve(device)
    if not path.exists():
        if not download and spec.download_bytes:
            raise InputError(f"{paths.shown(path)} is absent and downloading is off; run `synflow data {name}`")
        _make(spec, path)
    return store.read(path, spec).to(device)


def load_once(name: str, device: torch.device | str = "cpu") -> Dataset:
    """`load`, but this process keeps the last two data sets and gives them out again; nobody may change them."""
    return _kept(name, devices.resolve(device), paths.data())


def prepare(name: str, url: str | None = None) -> Path:
    """Make the file of data set `name` where it is absent, verify it, and return its path.

    `url` is used instead of the official address; the file there must have the official checksum all the same.
    """
    spec, path = _find(name)
    if not path.exists():
        _make(spec, path, url)
    store.read(path, spec)
    return path


def describe(name: str) -> str:
    """Return one line on the state of data set `name`: absent, ready (sizes, fingerprint, officialness) or damaged."""
    spec, path = _find(name)
    if not path.exists():
        effort = f"downloads {spec.download_bytes / 1e6:.0f} MB" if spec.download_bytes else "no download"
        return f"{name}: absent; make it with `synflow data {name}` ({effort})"
    try:
        dataset = store.read(path, spec)
    except InputError as error:
        return f"{name}: damaged: {error}"
    shape = "x".join(str(side) for side in spec.input_shape)
    verdict = "equal to the official files" if dataset.official else "not the official files"
    return (
        f"{name}: ready, {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images of "
        f"{shape} in {spec.classes} classes, {path.stat().st_size / 1e6:.0f} MB, sha256 {dataset.fingerprint[:16]}, "
        f"{verdict}{f' ({dataset.remark})' if dataset.remark else ''}"
    )


@lru_cache(maxsize=2)
def _kept(name: str, device: torch.device, folder: Path) -> Dataset:
    """By its folder too, for that can be set anew."""
    return load(name, device)


def _find(name: str) -> tuple[DatasetSpec, Path]:
    return lookup(DATASETS, name, "data set"), paths.data() / f"{name}.safetensors"


def _make(spec: DatasetSpec, path: Path, url: str | None = None) -> None:
    """Build the file; of several processes that want it, one does and the others wait for it."""
    paths.require_writable(path.parent)
    scratch = path.parent / "downloads" / spec.name
    paths.require_writable(scratch)
    paths.require_writable(scratch.parent)  # for the lock
    with FileLock(scratch.with_suffix(".lock")):
        if path.exists():
            return
        _require_space(spec, path.parent)
        finished = scratch / path.name  # written there, so that what a killed process leaves is removed as well
        store.write(finished, spec, SOURCES[spec.name](spec, scratch, url), spec.source, official=True)
        finished.replace(path)
        shutil.rmtree(scratch)


def _require_space(spec: DatasetSpec, folder: Path) -> None:
    needed, free = spec.download_bytes + spec.size_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{spec.name} needs {needed / 1e9:.2f} GB in {paths.shown(folder)}, where {free / 1e9:.2f} GB are free; "
            "make room, or name a folder on another disk with SYNFLOW_DATA"
        )
