import dataclasses
import hashlib
import io
import pickle
import stat
import tarfile
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from synflow_lib import data
from synflow_lib.data import sources, store
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# ---- digits


@pytest.fixture(scope="module")
def digits() -> sources.Tensors:
    return sources.digits(data.DATASETS["digits"], None)


def test_digits_are_the_same_bytes_everywhere(digits: sources.Tensors) -> None:
    assert store.fingerprint(digits) == data.DATASETS["digits"].fingerprint


def test_digits_hold_out_a_fifth_of_each_class(digits: sources.Tensors) -> None:
    assert (len(digits["train_labels"]), len(digits["test_labels"])) == (1437, 360)
    train, test = (torch.bincount(digits[f"{split}_labels"], minlength=10) for split in ("train", "test"))
    assert torch.equal(train + test, torch.from_numpy(np.bincount(load_digits().target)))
    assert ((test - (train + test) / 5).abs() < 1).all()


def test_digits_are_in_one_split_each(digits: sources.Tensors) -> None:
    """Together the splits hold what scikit-learn bundles, as a multiset."""
    images = torch.cat([digits["train_images"], digits["test_images"]])
    labels = torch.cat([digits["train_labels"], digits["test_labels"]])
    ours = sorted((int(label), image.numpy().tobytes()) for image, label in zip(images, labels, strict=True))
    bunch = load_digits()
    weights = upsampling()
    small = np.rint(weights @ bunch.images @ weights.T * (255 / 16)).astype(np.uint8)
    theirs = sorted(
        (int(label), np.stack([image] * 3).tobytes()) for image, label in zip(small, bunch.target, strict=True)
    )
    assert ours == theirs


def upsampling() -> np.ndarray:
    """The 32x8 matrix of bilinear interpolation between pixel centres, borders repeated, by its definition."""
    matrix = np.zeros((32, 8))
    for i in range(32):
        position = min(max(Fraction(2 * i + 1, 8) - Fraction(1, 2), Fraction(0)), Fraction(7))
        low = min(int(position), 6)
        matrix[i, low] = float(1 - (position - low))
        matrix[i, low + 1] = float(position - low)
    return matrix


def test_digits_take_no_address() -> None:
    with pytest.raises(InputError, match="bundled with scikit-learn"):
        sources.digits(data.DATASETS["digits"], None, "http://127.0.0.1/")


# ---- CIFAR


def batch(size: int, key: str, seed: int) -> bytes:
    """A file as the CIFAR archives hold it."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(256, size=(size, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, key: [i % 3 for i in range(size)]})


def cifar_archive(base: type, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{base.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def reader(request: pytest.FixtureRequest, site) -> type:
    """torchvision's reader of a small archive served on localhost."""
    base = request.param
    key, meta = ("labels", "label_names") if base is CIFAR10 else ("fine_labels", "fine_label_names")
    files = {name: batch(12 // len(base.train_list), key, seed) for seed, (name, _) in enumerate(base.train_list)}
    files |= {name: batch(6, key, 99) for name, _ in base.test_list}
    files[base.meta["filename"]] = pickle.dumps({meta: ["a", "b", "c"]})
    archive = cifar_archive(base, files)
    site.files["archive"] = archive
    attributes = {
        "url": site.url("archive"),
        "tgz_md5": md5(archive),
        "train_list": [[name, md5(files[name])] for name, _ in base.train_list],
        "test_list": [[name, md5(files[name])] for name, _ in base.test_list],
        "meta": base.meta | {"md5": md5(files[base.meta["filename"]])},
    }
    return type(base.__name__, (base,), attributes)


@pytest.fixture
def cifar_spec(toy_spec: DatasetSpec, reader: type) -> DatasetSpec:
    images = sum(12 // len(reader.train_list) for _ in reader.train_list)
    return dataclasses.replace(toy_spec, name=reader.__name__.lower(), input_shape=(3, 32, 32), train_size=images)


def test_cifar_is_what_torchvision_reads(cifar_spec, reader, site, tmp_path: Path) -> None:
    site.cuts = [3000]  # on the way, the connection breaks once
    tensors = sources.cifar(cifar_spec, tmp_path, reader=reader)
    assert [request.get("Range") for request in site.requests] == [None, "bytes=3000-"]
    for split in ("train", "test"):
        theirs = reader(tmp_path, train=split == "train")
        images = np.stack([np.asarray(image) for image, _ in theirs])
        assert np.array_equal(tensors[f"{split}_images"].permute(0, 2, 3, 1).numpy(), images)
        assert tensors[f"{split}_labels"].tolist() == [label for _, label in theirs]
    store.write(tmp_path / "written.safetensors", cifar_spec, tensors, "test", official=True)


def test_cifar_from_another_address(cifar_spec, reader, site, tmp_path: Path) -> None:
    site.files["mirror"] = site.files.pop("archive")
    tensors = sources.cifar(cifar_spec, tmp_path, site.url("mirror"), reader)
    assert len(tensors["train_labels"]) == cifar_spec.train_size


def test_corrupted_cifar_archive_is_refused(cifar_spec, reader, site, tmp_path: Path) -> None:
    site.files["archive"] = site.files["archive"][:-1] + b"?"
    with pytest.raises(InputError, match="altered or damaged on the way"):
        sources.cifar(cifar_spec, tmp_path, reader=reader)
    assert not list(tmp_path.iterdir())


def test_cifar_archive_with_other_contents_is_refused(cifar_spec, reader, tmp_path: Path) -> None:
    reader.test_list = [[name, "0" * 32] for name, _ in reader.test_list]
    with pytest.raises(InputError, match="does not hold the files torchvision expects"):
        sources.cifar(cifar_spec, tmp_path, reader=reader)


def test_official_cifar100_is_what_torchvision_reads(real_images: Path) -> None:
    tensors = store.read(real_images / "cifar100.safetensors", data.DATASETS["cifar100"])
    assert tensors.official
    for split in ("train", "test"):
        theirs = CIFAR100(real_images, train=split == "train")
        images = getattr(tensors, f"{split}_images").permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images, theirs.data)
        assert getattr(tensors, f"{split}_labels").tolist() == theirs.targets


def test_official_cifar100_files_give_the_official_fingerprint(real_images: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "fetch", lambda *_: None)  # the unpacked files are there, the archive is not
    tensors = sources.cifar(data.DATASETS["cifar100"], real_images)
    assert store.fingerprint(tensors) == data.DATASETS["cifar100"].fingerprint


# ---- Tiny ImageNet


CLASSES = ("n00000003", "n00000001", "n00000002")  # not sorted: the labels follow wnids.txt


@pytest.fixture
def tiny_spec(toy_spec: DatasetSpec) -> DatasetSpec:
    return dataclasses.replace(toy_spec, name="tiny-imagenet")


def jpeg(seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    noise = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_files() -> dict[str, bytes]:
    """Four training images of each class, two for validation; the first one is grayscale."""
    files = {"wnids.txt": "\n".join(CLASSES).encode()}
    for c, name in enumerate(CLASSES):
        for i in range(4):
            mode = "L" if c == i == 0 else "RGB"
            files[f"train/{name}/images/{name}_{i}.JPEG"] = jpeg(10 * c + i, mode)
    rows = [f"val_{i}.JPEG\t{CLASSES[i % 2]}\t0\t0\t7\t7" for i in range(6)]
    files["val/val_annotations.txt"] = ("\n".join(rows) + "\n").encode()
    return files | {f"val/images/val_{i}.JPEG": jpeg(100 + i) for i in range(6)}


def serve_tiny(site, files: dict[str, bytes], **more: bytes) -> str:
    """Serve the archive; `more` are members outside its folder. Return its md5."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(f"tiny-imagenet-200/{name}", content)
        for name, content in more.items():
            zipped.writestr(name, content)
    site.files["tiny.zip"] = buffer.getvalue()
    return md5(buffer.getvalue())


def read_tiny(site, spec: DatasetSpec, folder: Path, checksum: str) -> sources.Tensors:
    return sources.tiny_imagenet(spec, folder, site.url("tiny.zip"), checksum)


def test_tiny_imagenet_is_what_pillow_decodes(tiny_spec, site, tmp_path: Path) -> None:
    files = tiny_files()
    checksum = serve_tiny(site, files)
    site.cuts = [5000]
    tensors = read_tiny(site, tiny_spec, tmp_path, checksum)
    assert [request.get("Range") for request in site.requests] == [None, "bytes=5000-"]
    assert tensors["train_labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert tensors["test_labels"].tolist() == [0, 1, 0, 1, 0, 1]
    for i, label in enumerate(tensors["train_labels"].tolist()):
        content = files[f"train/{CLASSES[label]}/images/{CLASSES[label]}_{i % 4}.JPEG"]
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(tensors["train_images"][i].permute(1, 2, 0).numpy(), expected)
    gray = tensors["train_images"][0]
    assert torch.equal(gray[0], gray[1]) and not torch.equal(
        tensors["train_images"][1][0], tensors["train_images"][1][1]
    )
    expected = np.asarray(Image.open(io.BytesIO(files["val/images/val_5.JPEG"])))
    assert np.array_equal(tensors["test_images"][5].permute(1, 2, 0).numpy(), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny-imagenet-200.zip"]  # nothing is unpacked


def test_corrupted_tiny_imagenet_is_refused(tiny_spec, site, tmp_path: Path) -> None:
    checksum = serve_tiny(site, tiny_files())
    content = bytearray(site.files["tiny.zip"])
    content[1000] ^= 1
    site.files["tiny.zip"] = bytes(content)
    with pytest.raises(InputError, match="altered or damaged on the way"):
        read_tiny(site, tiny_spec, tmp_path, checksum)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../evil", "/evil", "tiny-imagenet-200/../../evil", r"..\evil", r"C:\evil"])
def test_unsafe_paths_are_refused(name: str, tiny_spec, site, tmp_path: Path) -> None:
    checksum = serve_tiny(site, tiny_files(), **{name: b"evil"})
    with pytest.raises(InputError, match="holds the unsafe path"):
        read_tiny(site, tiny_spec, tmp_path / "scratch", checksum)
    assert [file.name for file in tmp_path.rglob("*")] == ["scratch", "tiny-imagenet-200.zip"]


def test_links_are_refused(tiny_spec, site, tmp_path: Path) -> None:
    serve_tiny(site, tiny_files())
    buffer = io.BytesIO(site.files["tiny.zip"])
    with zipfile.ZipFile(buffer, "a") as zipped:
        link = zipfile.ZipInfo("tiny-imagenet-200/words.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    site.files["tiny.zip"] = buffer.getvalue()
    with pytest.raises(InputError, match=r"unsafe path 'tiny-imagenet-200/words\.txt'"):
        read_tiny(site, tiny_spec, tmp_path, md5(buffer.getvalue()))


FIRST = f"train/{CLASSES[0]}/images/{CLASSES[0]}_0.JPEG"


@pytest.mark.parametrize(
    ("member", "content", "sentence"),
    [
        (FIRST, None, f"no item named 'tiny-imagenet-200/{FIRST}'"),
        (FIRST, jpeg(0, size=(9, 8)), "is 8x9, not 8x8"),
        (FIRST, b"not a picture", "cannot identify image"),
        (FIRST, jpeg(0)[:200], "incomplete or damaged"),
        ("wnids.txt", b"n00000001 n00000002", "names 2 classes where 3 are expected"),
        ("wnids.txt", b"../../etc ../x ../y", "incomplete or damaged"),
        ("wnids.txt", bytes(sources.LARGEST_MEMBER + 1), "claims 10,000,001 bytes"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn00000009", "n00000009"),
        ("val/val_annotations.txt", b"val_0.JPEG", "incomplete or damaged"),
        ("val/val_annotations.txt", b"../../etc/passwd\tn00000001", "no item named"),
    ],
)
def test_malformed_tiny_imagenet_is_named(
    member: str, content: bytes | None, sentence: str, tiny_spec, site, tmp_path: Path
) -> None:
    files = tiny_files() | {member: content}
    checksum = serve_tiny(site, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(InputError, match=sentence):
        read_tiny(site, tiny_spec, tmp_path, checksum)
