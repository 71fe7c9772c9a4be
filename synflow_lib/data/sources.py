"""Where each data set comes from: `SOURCES` maps its name to a function that makes its four tensors.

Each function takes the spec, a folder for what it downloads and unpacks, and an address to use instead of the
official one; whatever the address, the file's checksum must be the official one.
"""

import io
import re
import stat
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from synflow_lib import paths
from synflow_lib.data.download import fetch
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError

Tensors = dict[str, Tensor]

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
# Stanford publishes no checksum. This one stands, independently, in Avalanche
# (ContinualAI/avalanche, avalanche/benchmarks/datasets/tiny_imagenet/tiny_imagenet.py) and in at least eight other
# public readers of this archive; one of them measured it on a fresh download together with the 248,100,043 bytes.
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
LARGEST_MEMBER = 10_000_000  # bytes: far above any image or list of Tiny ImageNet, far below what exhausts memory


def digits(spec: DatasetSpec, scratch: Path, url: str | None = None) -> Tensors:
    """Return scikit-learn's 1,797 handwritten digits, every fifth of each class held out for testing.

    The 8x8 values 0 to 16 become 0 to 255, bilinearly upsampled to 32x32 and repeated on three channels. All
    intermediate values are dyadic fractions, exact in float64: the same bytes come out on every machine.
    """
    from sklearn.datasets import load_digits

    if url is not None:
        raise InputError("digits is bundled with scikit-learn and is not downloaded; leave the address out")
    bunch = load_digits()
    small = torch.from_numpy(bunch.images)[:, None] * (255 / 16)
    smooth = torch.nn.functional.interpolate(small, spec.input_shape[1:], mode="bilinear", align_corners=False)
    images = smooth.round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(bunch.target).long()
    test = torch.zeros_like(labels, dtype=torch.bool)
    test[labels.argsort(stable=True)[::5]] = True
    return _tensors(images[~test], labels[~test], images[test], labels[test])


def cifar(spec: DatasetSpec, scratch: Path, url: str | None = None, reader: type | None = None) -> Tensors:
    """Return CIFAR-10 or CIFAR-100 as torchvision's `reader` sees it: its address, its checksums, its order.

    The archive is fetched here, not by torchvision, because it would start an interrupted download over.
    """
    from torchvision import datasets

    reader = reader or {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[spec.name]
    fetch(url or reader.url, scratch / reader.filename, reader.tgz_md5)
    try:
        train, test = (reader(scratch, train=train, download=train) for train in (True, False))
    except RuntimeError as error:  # a batch without its checksum
        raise InputError(f"the archive of {spec.name} does not hold the files torchvision expects: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot unpack {spec.name} in {paths.shown(scratch)}: {reason}; free some space") from error
    return _tensors(*(part for split in (train, test) for part in (_images(split.data), torch.tensor(split.targets))))


def tiny_imagenet(spec: DatasetSpec, scratch: Path, url: str | None = None, md5: str = TINY_IMAGENET_MD5) -> Tensors:
    """Return Tiny ImageNet: labels in the order of its wnids.txt, its validation set as the test split.

    Nothing is unpacked to disk: the images are read out of the archive by the names they must have.
    """
    archive = fetch(url or TINY_IMAGENET_URL, scratch / "tiny-imagenet-200.zip", md5)
    try:
        with zipfile.ZipFile(archive) as zipped:
            _refuse_unsafe(zipped)
            return _read_tiny_imagenet(zipped, spec)
    except InputError:
        raise
    except (zipfile.BadZipFile, LookupError, ValueError, OSError) as error:
        raise InputError(f"the archive {paths.shown(archive)} is incomplete or damaged: {error}; delete it") from error


SOURCES: dict[str, Callable[..., Tensors]] = {
    "digits": digits,
    "cifar10": cifar,
    "cifar100": cifar,
    "tiny-imagenet": tiny_imagenet,
}


def _tensors(train_images: Tensor, train_labels: Tensor, test_images: Tensor, test_labels: Tensor) -> Tensors:
    return {
        "train_images": train_images.contiguous(),
        "train_labels": train_labels,
        "test_images": test_images.contiguous(),
        "test_labels": test_labels,
    }


def _images(pixels: np.ndarray) -> Tensor:
    """[N, H, W, 3], as image files have it, to [N, 3, H, W], as networks want it."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _refuse_unsafe(zipped: zipfile.ZipFile) -> None:
    """Refuse an archive with a member that would leave the folder it is unpacked in; no honest one has any."""
    for member in zipped.infolist():
        parts = re.split(r"[/\\]", member.filename)
        outside = parts[0] == "" or ".." in parts or ":" in parts[0]
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"the archive {zipped.filename} holds the unsafe path {member.filename!r}; discard it")


def _read_tiny_imagenet(zipped: zipfile.ZipFile, spec: DatasetSpec) -> Tensors:
    names = _member(zipped, "wnids.txt").decode().split()
    label = {name: index for index, name in enumerate(names)}
    if len(label) != spec.classes:
        raise InputError(f"wnids.txt of {spec.name} names {len(label)} classes where {spec.classes} are expected")
    per_class = spec.train_size // spec.classes
    train = [(f"train/{name}/images/{name}_{i}.JPEG", label[name]) for name in names for i in range(per_class)]
    rows = [line.split("\t") for line in _member(zipped, "val/val_annotations.txt").decode().splitlines()]
    test = [(f"val/images/{row[0]}", label[row[1]]) for row in rows]
    return _tensors(*_decode(zipped, train, spec), *_decode(zipped, test, spec))


def _decode(zipped: zipfile.ZipFile, files: Sequence[tuple[str, int]], spec: DatasetSpec) -> tuple[Tensor, Tensor]:
    """Decode JPEG files to uint8 [N, 3, H, W]; the few grayscale ones get three equal channels."""
    channels, height, width = spec.input_shape
    pixels = np.empty((len(files), channels, height, width), dtype=np.uint8)
    for index, (name, _) in enumerate(tqdm(files, desc=f"decoding {spec.name}", unit=" images", mininterval=1)):
        with Image.open(io.BytesIO(_member(zipped, name)), formats=["JPEG"]) as image:
            if image.size != (width, height):
                raise InputError(f"{name} of {spec.name} is {image.size[0]}x{image.size[1]}, not {width}x{height}")
            pixels[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(pixels), torch.tensor([label for _, label in files])


def _member(zipped: zipfile.ZipFile, name: str) -> bytes:
    info = zipped.getinfo(f"tiny-imagenet-200/{name}")
    if info.file_size > LARGEST_MEMBER:
        raise InputError(f"{name} in {zipped.filename} claims {info.file_size:,} bytes, which it cannot need")
    return zipped.read(info)
