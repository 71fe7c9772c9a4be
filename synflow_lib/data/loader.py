"""Batches from a data set that lies whole on the device: indexing, cropping, mirroring and normalising happen there.

A batch of 128 CIFAR images takes 1 ms on one CPU core, crop, mirror and normalisation included (118,000 images a
second; torchvision's transforms, one image at a time, take 12 ms).
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from synflow_lib.data.specs import DatasetSpec
from synflow_lib.data.store import Dataset
from synflow_lib.errors import InputError

Batch = tuple[Tensor, Tensor]
AT_ONCE = {"cuda": 2**21}  # pixels that are augmented together on a device, where launching kernels takes the time


def normalise(images: Tensor, spec: DatasetSpec) -> Tensor:
    """Return float32 images with the training set's mean 0 and deviation 1 per channel, from uint8 [B, C, H, W].

    The same operations in the same order as torchvision's ToTensor and Normalize, hence the same bits.
    """
    _require_uint8(images)
    mean, std = (_per_channel(tuple(values), images.device) for values in (spec.mean, spec.std))
    return images.float().div_(255).sub_(mean).div_(std)


def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4, flip: bool | Tensor = True) -> Tensor:
    """Shift each image by its own offset of up to `padding` pixels, and mirror each with probability 1/2.

    Equal in distribution to torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, image by image:
    uint8 [B, C, H, W] to the same, zeros coming in from the border. The draws are made where `generator` lives, so
    that one on the CPU gives the same images on every device. `flip` as bool [B] says which are mirrored.
    """
    _require_uint8(images)
    shifts, mirrored = _draws(len(images), generator, padding, flip, images.device)
    return _moved(images, shifts, mirrored, padding)


def _draws(
    count: int, generator: torch.Generator, padding: int, flip: bool | Tensor, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Offsets [2, count], from the top and the left of the padded image, and which images are mirrored (None: none)."""
    if padding < 0:
        raise InputError(f"padding must be 0 or more pixels, not {padding}")
    shifts = _draw(2 * padding + 1, (2, count), generator, device)
    if not isinstance(flip, Tensor):
        flip = _draw(2, (count,), generator, device).bool() if flip else None
    return shifts, flip


def _moved(images: Tensor, shifts: Tensor, mirrored: Tensor | None, padding: int) -> Tensor:
    """The images, shifted and mirrored."""
    count, channels, height, width = images.shape
    device, (top, left) = images.device, shifts
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H], in the padded image
    columns = left[:, None] + torch.arange(width, device=device)  # [B, W]
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    # One gather from flat images: twice as fast on a CPU as indexing rows and columns with two index tensors.
    pixels = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)  # [B, H * W]
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view(count, channels, height, width)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    generator: torch.Generator,
    augment: bool = True,
    padding: int = 4,
    mirrored: Tensor | None = None,
) -> Iterator[Batch]:
    """Yield one epoch of (images float32 [B, C, H, W], labels int64 [B]), shuffled, the last smaller batch kept.

    With `augment`, images are shifted by up to `padding` pixels, and mirrored where the data set allows it: at random,
    or those that `mirrored` (bool, one for each training image) says.
    """
    _require_positive("batch_size", batch_size)
    order = torch.randperm(len(dataset.train_labels), generator=generator, device=generator.device)
    return _gather(dataset, order, batch_size, generator if augment else None, padding, mirrored)


def coins(dataset: Dataset, generator: torch.Generator) -> Tensor:
    """Return one fair coin (bool, on the data set's device) for each training image."""
    return _draw(2, (len(dataset.train_labels),), generator, dataset.train_images.device).bool()


def test_batches(dataset: Dataset, batch_size: int = 256) -> Iterator[Batch]:
    """Yield the test images in their order, normalised, as (images float32 [B, C, H, W], labels int64 [B])."""
    _require_positive("batch_size", batch_size)
    return (
        (normalise(images, dataset.spec), labels)
        for images, labels in zip(
            dataset.test_images.split(batch_size), dataset.test_labels.split(batch_size), strict=True
        )
    )


def scoring_batches(dataset: Dataset, per_class: int = 10, batch_size: int = 256, seed: int = 0) -> list[Batch]:
    """Return `per_class` x classes random training examples, augmented, in batches for SNIP and GraSP to score on.

    Like the authors', they are drawn without regard to class, so that classes occur about `per_class` times.
    """
    _require_positive("batch_size", batch_size)
    _require_positive("per_class", per_class)
    count, available = per_class * dataset.classes, len(dataset.train_labels)
    if count > available:
        raise InputError(f"per_class={per_class} asks for {count:,} of {available:,} training images; lower it")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(available, generator=generator)[:count]
    return list(_gather(dataset, order, batch_size, generator))


def _gather(
    dataset: Dataset,
    order: Tensor,
    batch_size: int,
    generator: torch.Generator | None,
    padding: int = 4,
    mirrored: Tensor | None = None,
) -> Iterator[Batch]:
    images = dataset.train_images
    batches = order.to(images.device).split(batch_size)
    together = max(1, AT_ONCE.get(images.device.type, 0) // (batch_size * images.shape[2:].numel()))
    for first in range(0, len(batches), together):
        several = batches[first : first + together]
        chosen = torch.cat(several)
        shown = images[chosen]
        if generator is not None:  # drawn batch by batch, so that an epoch is the same however many are done together
            flips = [dataset.spec.flip and (True if mirrored is None else mirrored[batch]) for batch in several]
            drawn = [
                _draws(len(batch), generator, padding, flip, images.device)
                for batch, flip in zip(several, flips, strict=True)
            ]
            shifts, turned = zip(*drawn, strict=True)
            shown = _moved(shown, torch.cat(shifts, 1), None if turned[0] is None else torch.cat(turned), padding)
        labels = dataset.train_labels[chosen]
        yield from zip(normalise(shown, dataset.spec).split(batch_size), labels.split(batch_size), strict=True)


def _draw(below: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(below, shape, generator=generator, device=generator.device).to(device)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as [C, 1, 1] on the device, kept there: bringing them over anew would wait for it at every batch."""
    return torch.tensor(values, device=device)[:, None, None]


def _require_uint8(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise InputError(
            f"images must be uint8 [batch, channels, height, width], not {images.dtype} {list(images.shape)}"
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be 1 or more, not {value}")
