"""VGG-19 at ImageNet size, scored by one pruner: what figures 3 and 4 are drawn from.

143.65 million weights are 0.57 GB in single and 1.15 GB in double precision, and scoring holds five copies or more:
score with one pruner, reduce its scores to sums, and let go of them before the next.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from synflow_lib import data, models, paths
from synflow_lib.pruning.saliency import NEEDS_DATA, SALIENCIES, Batches, Scores

SHAPE, CLASSES = (3, 224, 224), 1000
IMAGES = {"snip": 100, "grasp": 20}  # each takes one second of a core by SNIP, five by GraSP
AT_ONCE = {"snip": 10, "grasp": 4}  # 5 GB; GraSP keeps the graph of two passes for its third


@lru_cache(maxsize=1)
def whole(width: float = 1.0, input_shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES) -> nn.Module:
    """VGG-19 as initialised, one copy a process, not to be changed: drawing its weights takes longer than scoring."""
    return models.build("vgg19", (input_shape, classes), width)


def scored(
    pruner: str,
    dtype: torch.dtype = torch.float32,
    width: float = 1.0,
    input_shape: Sequence[int] = SHAPE,
    images: int | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Scores, str]:
    """Return VGG-19 as initialised, `pruner`'s scores of all its parameters, and what they were computed on.

    Biases are scored as well, for conservation counts them. SNIP and GraSP see `images` pictures (default: `IMAGES`);
    the third value is then such as "100 cifar100", else "". `width` and `input_shape` make it small for a test.
    """
    network = models.build("vgg19", (tuple(input_shape), CLASSES), width, seed).to(dtype)
    batches, seen = None, ""
    if pruner in NEEDS_DATA:
        batches, seen = pictures(images or IMAGES[pruner], input_shape, AT_ONCE[pruner], seed)
    names = [name for name, _ in network.named_parameters()]
    with plain_sums(pruner == "synflow"):
        scores = SALIENCIES[pruner](network, parameters=names, batches=batches, input_shape=input_shape, seed=seed)
    return network, scores, seen


def pictures(number: int, input_shape: Sequence[int], at_once: int, seed: int = 0) -> tuple[Batches, str]:
    """Return `number` training images in batches of `at_once`, enlarged to `input_shape`, and what they are.

    That is such as "100 cifar100": of CIFAR-100 where it is at hand, for its classes are many, else of the bundled
    digits. Downloads nothing.
    """
    name = "cifar100" if (paths.data() / "cifar100.safetensors").is_file() else "digits"
    dataset = data.load(name)
    drawn = data.scoring_batches(dataset, math.ceil(number / dataset.classes), number, seed)[0]
    x, labels = (part[:number] for part in drawn)
    x = F.interpolate(x, size=tuple(input_shape[1:]), mode="bilinear")
    return list(zip(x.split(at_once), labels.split(at_once), strict=True)), f"{len(labels)} {name}"


@contextmanager
def plain_sums(wanted: bool = True) -> Iterator[None]:
    """Convolve without oneDNN where `wanted`: its gradient adds the 50,176 positions of a map one after the other.

    That is twice as fast, and in single precision costs a digit: SynFlow's flows then miss each other by 6e-6 of the
    largest, and by 4e-7, as the authors' do, when PyTorch's own kernels add them in blocks.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not wanted
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
