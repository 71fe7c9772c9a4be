import dataclasses
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from synflow_lib import data
from synflow_lib.data import catalogue, store
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError


@pytest.fixture
def toy(folder: Path, toy_spec: DatasetSpec, toy_tensors, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A data set "toy" in the table; the list grows by one each time it is made."""
    made: list[Path] = []

    def source(spec: DatasetSpec, scratch: Path, url: str | None) -> dict[str, torch.Tensor]:
        made.append(scratch)
        (scratch / "archive").write_bytes(b"downloaded")
        return toy_tensors

    monkeypatch.setitem(data.DATASETS, "toy", dataclasses.replace(toy_spec, download_bytes=1_000_000))
    monkeypatch.setitem(catalogue.SOURCES, "toy", source)
    return made


def test_digits_are_made_when_they_are_first_asked_for(folder: Path) -> None:
    assert data.describe("digits") == "digits: absent; make it with `synflow data digits` (no download)"
    dataset = data.load("digits", download=False)
    assert dataset.official and dataset.train_images.shape == (1437, 3, 32, 32)
    assert data.prepare("digits") == folder / "digits.safetensors"
    assert data.describe("digits") == (
        "digits: ready, 1,437 training and 360 test images of 3x32x32 in 10 classes, 6 MB, "
        "sha256 cee2f72e86ceb814, equal to the official files"
    )


def test_a_set_is_made_once_and_leaves_only_its_file(folder: Path, toy: list[Path], toy_tensors) -> None:
    assert data.describe("toy") == "toy: absent; make it with `synflow data toy` (downloads 1 MB)"
    first, second = data.load("toy"), data.load("toy")
    data.prepare("toy")
    assert len(toy) == 1 and first.fingerprint == second.fingerprint
    assert torch.equal(first.test_images, toy_tensors["test_images"])
    assert not list(folder.rglob("archive"))
    assert [file.name for file in folder.glob("*.*")] == ["toy.safetensors"]


def test_a_process_keeps_a_set_by_name_device_and_folder(folder: Path, toy: list[Path], tmp_path, monkeypatch) -> None:
    first = data.load_once("toy")
    assert data.load_once("toy", torch.device("cpu")) is first is not data.load("toy")
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "elsewhere"))
    assert data.load_once("toy") is not first and len(toy) == 2


def test_what_a_killed_process_left_is_removed(folder: Path, toy: list[Path]) -> None:
    left = folder / "downloads" / "toy" / ".toy.safetensors.1.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a file")
    data.load("toy")
    assert len(toy) == 1 and not left.parent.exists()


def test_of_several_who_want_it_one_makes_it(folder: Path, toy: list[Path]) -> None:
    threads = [threading.Thread(target=data.prepare, args=("toy",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(toy) == 1 and (folder / "toy.safetensors").exists()


def test_damaged_file_is_named_and_never_used_nor_overwritten(folder: Path, toy: list[Path]) -> None:
    path = data.prepare("toy")
    path.write_bytes(path.read_bytes()[:-1])
    damaged = path.read_bytes()
    for use in (data.load, data.prepare):
        with pytest.raises(InputError, match=r"toy\.safetensors is truncated .*; delete it and run `synflow data toy`"):
            use("toy")
    assert data.describe("toy").startswith(f"toy: damaged: {path} is truncated")
    assert path.read_bytes() == damaged
    path.unlink()
    data.load("toy")
    assert len(toy) == 2


def test_unknown_name_is_named(folder: Path) -> None:
    for use in (data.load, data.prepare, data.describe):
        with pytest.raises(InputError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
            use("cifar-10")
    assert not folder.exists()


def test_unknown_device_is_named_before_anything_is_made(folder: Path) -> None:
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        data.load("digits", device="gpu")
    assert not folder.exists()


def test_absent_set_without_download(folder: Path) -> None:
    with pytest.raises(InputError, match=r"cifar10\.safetensors is absent .* run `synflow data cifar10`"):
        data.load("cifar10", download=False)
    assert not folder.exists()


def test_no_network_is_named_and_leaves_no_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match=r"cannot download http://127\.0\.0\.1:1/archive: .*refused"):
        data.prepare("cifar10", url="http://127.0.0.1:1/archive")
    assert not (folder / "cifar10.safetensors").exists()


def test_what_has_arrived_survives_the_failure(folder: Path, site, toy_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "tiny-imagenet", dataclasses.replace(toy_spec, name="tiny-imagenet"))
    site.files["tiny.zip"] = bytes(100_000)
    site.cuts = [60_000, 0]
    with pytest.raises(InputError, match=r"the 0\.1 MB that have arrived are kept"):
        data.prepare("tiny-imagenet", url=site.url("tiny.zip"))
    part = folder / "downloads" / "tiny-imagenet" / "tiny-imagenet-200.zip.part"
    assert part.stat().st_size == 60_000


def test_a_file_with_another_checksum_is_never_believed(folder: Path, site) -> None:
    site.files["tiny.zip"] = b"not Tiny ImageNet"
    with pytest.raises(InputError, match="where 90528d7ca1a48142e341f4ef8d21d0de is expected"):
        data.prepare("tiny-imagenet", url=site.url("tiny.zip"))
    assert not (folder / "tiny-imagenet.safetensors").exists()


def test_no_space_is_named_before_anything_is_downloaded(folder: Path, toy: list[Path], monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5, 5))
    with pytest.raises(InputError, match=r"toy needs 0\.00 GB in .*SYNFLOW_DATA"):
        data.load("toy")
    assert toy == []


def test_no_permission_is_named_before_anything_is_downloaded(
    tmp_path: Path, toy: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(InputError, match="cannot write"):
        data.load("toy")
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "downloads").touch()
    with pytest.raises(InputError, match=r"cannot write .*downloads"):
        data.load("toy")
    assert toy == []


def test_a_source_that_fails_leaves_nothing(folder: Path, toy: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {key: tensor[:3] for key, tensor in catalogue.SOURCES["toy"](None, folder.parent, None).items()}
    monkeypatch.setitem(catalogue.SOURCES, "toy", lambda *_: wrong)
    with pytest.raises(InputError, match=r"holds 3 training and 3 test labels .*; nothing was written"):
        data.load("toy")
    assert not list(folder.glob("*.*"))


def test_real_sets_are_recognised(real_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNFLOW_DATA", str(real_images))
    official = {name: data.load(name, download=False).official for name in ("cifar10", "cifar100", "tiny-imagenet")}
    assert official == {"cifar10": False, "cifar100": True, "tiny-imagenet": False}
    assert "(93 images are approximations of the originals)" in data.describe("cifar10")
    assert "100 classes, 185 MB, sha256 0ea44af0c9cb7f8e, equal to the official files" in data.describe("cifar100")
    assert "(a subset: 2,000 of 100,000 training and 1,000 of 10,000 test images)" in data.describe("tiny-imagenet")


def test_a_real_set_with_one_altered_pixel_is_refused(real_images: Path, folder: Path) -> None:
    folder.mkdir()
    path = folder / "tiny-imagenet.safetensors"
    shutil.copy(real_images / path.name, path)
    with path.open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)[0]
        file.seek(10_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match="was altered"):
        store.read(path, data.DATASETS["tiny-imagenet"])
