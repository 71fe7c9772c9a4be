import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from scipy.stats import chisquare
from torchvision import transforms

from synflow_lib import data
from synflow_lib.data import loader
from synflow_lib.data.specs import DatasetSpec
from synflow_lib.errors import InputError


@pytest.fixture
def dataset(toy_spec: DatasetSpec, toy_tensors) -> data.Dataset:
    return data.Dataset(toy_spec, **toy_tensors, fingerprint="0" * 64, official=False)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(count: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    shape = (count, channels, side, side)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def torchvision_crops(image: torch.Tensor, padding: int = 4) -> dict[bytes, tuple[int, int, bool]]:
    """Every image that RandomCrop(32, padding) and RandomHorizontalFlip can make of one, to (top, left, mirrored)."""
    side = image.shape[-1]
    crops = {}
    for top, left, mirrored in itertools.product(range(2 * padding + 1), range(2 * padding + 1), (False, True)):
        crop = TF.crop(TF.pad(image, padding), top, left, side, side)
        crops[(TF.hflip(crop) if mirrored else crop).numpy().tobytes()] = (top, left, mirrored)
    return crops


def test_each_image_is_one_of_torchvisions_crops_of_itself(generator: torch.Generator) -> None:
    images = noise(40)
    drawn = set()
    for image, cropped in zip(images, data.crop_flip(images, generator), strict=True):
        drawn.add(torchvision_crops(image)[cropped.numpy().tobytes()])
    assert len(drawn) > 20  # each image has its own offset


def test_offsets_and_mirroring_are_uniform_and_independent(generator: torch.Generator) -> None:
    """All 81 x 2 outcomes occur equally often: as in torchvision, top, left and mirroring are drawn separately."""
    image = noise(1)
    crops = torchvision_crops(image[0])
    assert len(crops) == 162
    counts = dict.fromkeys(crops.values(), 0)
    for cropped in data.crop_flip(image.expand(162 * 40, -1, -1, -1), generator):
        counts[crops[cropped.numpy().tobytes()]] += 1
    assert min(counts.values()) > 0
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_torchvision_draws_from_the_same_crops() -> None:
    """The other direction: what torchvision's own transforms make is among the outcomes we compare with."""
    image = noise(1)[0]
    crops = torchvision_crops(image)
    transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = {crops[transform(image).numpy().tobytes()] for _ in range(1000)}
    assert len(drawn) == 162


def test_neighbours_in_a_batch_are_independent(generator: torch.Generator) -> None:
    image = noise(1, channels=1, side=8)
    crops = torchvision_crops(image[0])
    cropped = data.crop_flip(image.expand(4000, -1, -1, -1), generator)
    tops, _, mirrored = np.array([crops[one.numpy().tobytes()] for one in cropped]).T
    for values in (tops, mirrored):
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05  # three standard deviations


@pytest.mark.parametrize(("padding", "flip", "outcomes"), [(0, False, 1), (0, True, 2), (2, False, 25), (1, True, 18)])
def test_padding_and_flip(padding: int, flip: bool, outcomes: int, generator: torch.Generator) -> None:
    image = noise(1, side=8)
    crops = torchvision_crops(image[0], padding)
    cropped = data.crop_flip(image.expand(1000, -1, -1, -1), generator, padding, flip)
    drawn = {crops[one.numpy().tobytes()] for one in cropped}
    assert len(drawn) == outcomes and (flip or not any(mirrored for *_, mirrored in drawn))


def test_the_images_to_mirror_can_be_told(generator: torch.Generator) -> None:
    images, chosen = noise(6, side=8), torch.tensor([True, False, False, True, True, False])
    expected = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    assert torch.equal(data.crop_flip(images, generator, 0, chosen), expected)
    shifted = data.crop_flip(images, torch.Generator().manual_seed(7), 2, ~chosen & chosen)
    assert torch.equal(shifted, data.crop_flip(images, torch.Generator().manual_seed(7), 2, flip=False))


@pytest.mark.parametrize("how", ["plain", "random", "told"])
def test_batches_that_are_augmented_together_are_the_same(how: str, dataset: data.Dataset, monkeypatch) -> None:
    """12 images of 64 pixels in batches of 5: two together, then one with the last two."""
    coins = torch.arange(12) % 3 == 0
    found, sizes, normalise = [], [], loader.normalise
    monkeypatch.setattr(loader, "normalise", lambda images, spec: sizes.append(len(images)) or normalise(images, spec))
    for together in (0, 2 * 5 * 64 + 63):
        monkeypatch.setitem(loader.AT_ONCE, "cpu", together)
        told = coins if how == "told" else None
        batches = data.train_batches(dataset, 5, torch.Generator().manual_seed(2), how != "plain", 2, told)
        found.append(list(batches))
    assert [len(labels) for _, labels in found[1]] == [5, 5, 2]
    assert sizes == [5, 5, 2, 10, 2]
    for (images, labels), (others, same) in zip(*found, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, same)


def test_images_need_not_be_square(generator: torch.Generator) -> None:
    images = torch.arange(2 * 3 * 5 * 7, dtype=torch.uint8).view(2, 3, 5, 7)
    assert data.crop_flip(images, generator).shape == (2, 3, 5, 7)
    assert torch.equal(data.crop_flip(images, generator, padding=0, flip=False), images)


def test_the_memory_order_of_the_images_does_not_matter() -> None:
    images = noise(5)
    other = images.contiguous(memory_format=torch.channels_last)
    first, second = (data.crop_flip(x, torch.Generator().manual_seed(3)) for x in (images, other))
    assert torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_on_the_cpu_gives_the_same_images_on_the_gpu() -> None:
    images = noise(50)
    here = data.crop_flip(images, torch.Generator().manual_seed(0))
    there = data.crop_flip(images.cuda(), torch.Generator().manual_seed(0))
    assert there.is_cuda and torch.equal(here, there.cpu())
    assert data.crop_flip(images.cuda(), torch.Generator("cuda").manual_seed(0)).shape == images.shape


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_normalising_equals_torchvision_to_the_bit(name: str) -> None:
    spec = data.DATASETS[name]
    images = noise(4)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    expected = torch.stack([transform(image.permute(1, 2, 0).numpy()) for image in images])
    assert torch.equal(data.normalise(images, spec), expected)


def test_normalising_twice_is_refused(toy_spec: DatasetSpec) -> None:
    with pytest.raises(InputError, match=r"images must be uint8 .* not torch.float32 \[4, 3, 8, 8\]"):
        data.normalise(data.normalise(noise(4, side=8), toy_spec), toy_spec)
    with pytest.raises(InputError, match="images must be uint8"):
        data.normalise(noise(1)[0], toy_spec)


def test_an_epoch_visits_every_image_once(dataset: data.Dataset, generator: torch.Generator) -> None:
    batches = list(data.train_batches(dataset, 5, generator, augment=False))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]  # the last one is kept
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = data.normalise(dataset.train_images, dataset.spec)
    place = [next(i for i, other in enumerate(expected) if torch.equal(image, other)) for image in images]
    assert sorted(place) == list(range(12)) and place != list(range(12))
    assert torch.equal(labels, dataset.train_labels[place])


def test_an_image_is_shifted_by_no_more_than_it_is_asked_to(generator: torch.Generator) -> None:
    images = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    for padding in (0, 1, 3):
        moved = data.crop_flip(images, generator, padding, flip=False)
        borders = (moved[:, 0] == 0).all(2).sum(1), (moved[:, 0] == 0).all(1).sum(1)  # rows and columns of zeros
        assert [int(border.max()) for border in borders] == [padding, padding]


def test_the_seed_decides_the_epoch_and_epochs_differ(dataset: data.Dataset) -> None:
    def epoch(generator: torch.Generator) -> torch.Tensor:
        return torch.cat([images for images, _ in data.train_batches(dataset, 5, generator)])

    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    first = epoch(one)
    assert torch.equal(first, epoch(other))
    assert not torch.equal(first, epoch(one))


@pytest.mark.parametrize("flip", [True, False])
def test_only_sets_that_allow_it_are_mirrored(flip: bool, dataset: data.Dataset, generator: torch.Generator) -> None:
    ramp = torch.arange(8, dtype=torch.uint8).add(1).expand(12, 3, 8, 8)  # brighter to the right
    dataset = dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, flip=flip), train_images=ramp)
    images = torch.cat([images for images, _ in data.train_batches(dataset, 12, generator)])
    black = data.normalise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), dataset.spec)[0, 0, 0, 0]
    profiles = [row[row > black] for row in images[:, 0].amax(dim=1)]  # without the border that came in
    assert any(bool(profile[0] > profile[-1]) for profile in profiles) is flip


def test_test_images_come_in_order_and_untouched(dataset: data.Dataset) -> None:
    batches = list(data.test_batches(dataset, 4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(images, data.normalise(dataset.test_images, dataset.spec))
    assert torch.equal(labels, dataset.test_labels)


def test_scoring_examples_are_distinct_augmented_and_reproducible(dataset: data.Dataset) -> None:
    identity = torch.arange(12, dtype=torch.uint8).add(1)[:, None, None, None].expand(12, 3, 8, 8)
    dataset = dataclasses.replace(dataset, train_images=identity)
    batches = data.scoring_batches(dataset, per_class=3, batch_size=4, seed=7)
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 8, 8), (4, 3, 8, 8), (1, 3, 8, 8)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    pixels = (images[:, 0] * dataset.spec.std[0] + dataset.spec.mean[0]) * 255
    index = pixels.amax(dim=(1, 2)).round().long() - 1
    assert len(index.unique()) == 9 and torch.equal(labels, dataset.train_labels[index])
    assert pixels.amin() < 0.5  # borders came in: they are augmented
    again = data.scoring_batches(dataset, per_class=3, batch_size=4, seed=7)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    other = data.scoring_batches(dataset, per_class=3, batch_size=4, seed=8)
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(batches, other, strict=True))


def test_scoring_may_take_every_image_one_by_one_and_shifts_by_four_pixels_at_most(dataset: data.Dataset) -> None:
    identity = torch.arange(12, dtype=torch.uint8).add(1)[:, None, None, None].expand(12, 3, 8, 8)
    dataset, margins = dataclasses.replace(dataset, train_images=identity), set()
    for seed in range(20):
        batches = data.scoring_batches(dataset, per_class=4, batch_size=1, seed=seed)
        assert len(batches) == len(dataset.train_labels) == 12
        for images, _ in batches:
            pixels = (images[0, 0] * dataset.spec.std[0] + dataset.spec.mean[0]) * 255
            margins |= {int((pixels.amax(side) < 0.5).sum()) for side in (0, 1)}
    assert margins == {0, 1, 2, 3, 4}


def test_bad_numbers_are_named_before_the_first_batch(dataset: data.Dataset, generator: torch.Generator) -> None:
    with pytest.raises(InputError, match="batch_size must be 1 or more, not 0"):
        data.train_batches(dataset, 0, generator)
    with pytest.raises(InputError, match="batch_size must be 1 or more, not -1"):
        data.test_batches(dataset, -1)
    with pytest.raises(InputError, match="per_class must be 1 or more, not 0"):
        data.scoring_batches(dataset, per_class=0)
    with pytest.raises(InputError, match="per_class=5 asks for 15 of 12 training images"):
        data.scoring_batches(dataset, per_class=5)
    with pytest.raises(InputError, match="padding must be 0 or more pixels, not -1"):
        data.crop_flip(noise(1), generator, padding=-1)
