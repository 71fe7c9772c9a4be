import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synflow_lib.data import store
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def path(tmp_path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> Path:
    store.write(tmp_path / "toy.safetensors", toy_spec, toy_tensors, "made for a test", official=True)
    return tmp_path / "toy.safetensors"


def rewrite(path: Path, tensors: Tensors, **metadata: str) -> None:
    """Write a file that is well formed, with the fingerprint of what it holds."""
    right = {"source": "test", "official": "false"}
    if set(store.KEYS) <= set(tensors):
        right["sha256"] = store.fingerprint(tensors)
    save_file(tensors, path, right | metadata)


def test_what_is_written_is_read(path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    dataset = store.read(path, toy_spec)
    for key in store.KEYS:
        assert torch.equal(getattr(dataset, key), toy_tensors[key])
    assert dataset.official and dataset.remark == ""
    assert dataset.fingerprint == store.fingerprint(toy_tensors)
    assert (dataset.input_shape, dataset.classes) == ((3, 8, 8), 3)
    assert [file.name for file in path.parent.iterdir()] == ["toy.safetensors"]


def test_others_may_read_the_file_as_the_umask_allows(path: Path) -> None:
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_fingerprint_is_that_of_the_bytes_in_order_of_the_names() -> None:
    tensors = {key: torch.tensor([i], dtype=torch.uint8) for i, key in enumerate(sorted(store.KEYS), start=97)}
    assert store.fingerprint(tensors) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"  # "abcd"


def damage_bytes(start: int, end: int | None) -> Callable[[Path, Tensors], None]:
    return lambda path, _: path.write_bytes(path.read_bytes()[start:end]) and None


def flip_a_bit(path: Path, _: Tensors) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def without(key: str) -> Callable[[Path, Tensors], None]:
    return lambda path, tensors: rewrite(path, {k: v for k, v in tensors.items() if k != key})


def having(**changed: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Tensors], None]:
    return lambda path, tensors: rewrite(
        path, {key: changed.get(key, torch.clone)(tensor).contiguous() for key, tensor in tensors.items()}
    )


DAMAGES = {
    "truncated": (damage_bytes(0, -100), "is truncated"),
    "header only": (damage_bytes(0, 300), "is truncated"),
    "empty": (damage_bytes(0, 0), "is truncated"),
    "beginning lost": (damage_bytes(64, None), "not a safetensors file"),
    "one bit altered": (flip_a_bit, "was altered"),
    "one split only": (without("test_images"), "holds no test_images"),
    "half the images": (having(train_images=lambda x: x[:6]), r"train_images uint8 \[6, 3, 8, 8\] where"),
    "half of all": (
        having(train_images=lambda x: x[:6], train_labels=lambda x: x[:6]),
        "holds 6 training and 6 test labels where 12 and 6 are expected",
    ),
    "channels last": (having(test_images=lambda x: x.permute(0, 2, 3, 1)), r"test_images uint8 \[6, 8, 8, 3\]"),
    "float images": (having(train_images=lambda x: x.float()), "train_images float32"),
    "narrow labels": (having(train_labels=lambda x: x.int()), "train_labels int32"),
    "scalar labels": (having(train_labels=lambda x: x[0]), "holds 1 training"),
    "labels from 1": (having(train_labels=lambda x: x + 1), "train_labels outside 0 to 2"),
    "negative labels": (having(test_labels=lambda x: x - 1), "test_labels outside 0 to 2"),
    "unknown tensor": (lambda path, tensors: rewrite(path, tensors | {"more": torch.ones(1)}), "unknown tensor 'more'"),
    "no sha256": (lambda path, tensors: save_file(tensors, path), "was altered"),
    "metadata": (lambda path, tensors: rewrite(path, tensors, inexact_images="{"), "unreadable metadata"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    inflict, sentence = DAMAGES[damage]
    inflict(path, toy_tensors)
    with pytest.raises(InputError, match=sentence) as caught:
        store.read(path, toy_spec)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith("; delete it and run `synflow data toy`")
    assert "\n" not in message


def test_official_is_checked_where_the_fingerprint_is_known(
    path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors
) -> None:
    known = dataclasses.replace(toy_spec, fingerprint=store.fingerprint(toy_tensors))
    rewrite(path, toy_tensors, official="false")
    assert store.read(path, known).official
    other = dataclasses.replace(toy_spec, fingerprint="0" * 64)
    rewrite(path, toy_tensors, official="true")
    with pytest.raises(InputError, match="says that it equals the official files, but it does not"):
        store.read(path, other)
    store.write(path, other, toy_tensors, "test", official=True)
    assert not store.read(path, other).official


def test_a_subset_is_accepted_and_says_so(path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    larger = dataclasses.replace(toy_spec, train_size=1200, test_size=60, subset=(12, 6))
    with pytest.raises(InputError, match="says that it equals the official files"):
        store.read(path, larger)
    rewrite(path, toy_tensors)
    dataset = store.read(path, larger)
    assert not dataset.official
    assert dataset.remark == "a subset: 12 of 1,200 training and 6 of 60 test images"


def test_approximated_images_are_counted(path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    rewrite(path, toy_tensors, inexact_images="[3, 5]")
    assert store.read(path, toy_spec).remark == "2 images are approximations of the originals"


def test_unreadable_file_is_an_input_error(tmp_path: Path, toy_spec: DatasetSpec) -> None:
    with pytest.raises(InputError, match=r"cannot read .*; check its permissions"):
        store.read(tmp_path, toy_spec)  # a folder


def test_wrong_tensors_are_not_written(tmp_path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    toy_tensors["train_labels"] += 1
    with pytest.raises(InputError, match="train_labels outside 0 to 2; nothing was written"):
        store.write(tmp_path / "toy.safetensors", toy_spec, toy_tensors, "test", official=True)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_old_file(path: Path, toy_spec: DatasetSpec, toy_tensors: Tensors) -> None:
    before = load_file(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*toy\.safetensors.*free some space"):
            store.write(path, toy_spec, toy_tensors, "test", official=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in path.parent.iterdir()] == ["toy.safetensors"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(path).items())


def test_moving_keeps_everything_but_the_device(path: Path, toy_spec: DatasetSpec) -> None:
    dataset = store.read(path, toy_spec)
    moved = dataset.to("cpu")
    assert moved.spec is dataset.spec and moved.fingerprint == dataset.fingerprint
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        dataset.to("gpu")
