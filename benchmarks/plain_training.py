"""Training as most people would write it: the side that ours is measured against (`training.py`).

A DataLoader with 4 workers, torchvision's transforms on PIL images, float32, the mask multiplied into the weight in
every forward pass, and a look at the loss after each step.
"""

import time
import warnings
from collections.abc import Iterator

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, default_collate

from synflow_lib.data import Dataset
from synflow_lib.pruning import Masks
from synflow_lib.training import Recipe

WORKERS = 4  # of the DataLoader


class MaskedConv2d(nn.Conv2d):
    """A convolution that multiplies its mask into the weight each time it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer that does the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def masked(network: nn.Module, masks: Masks) -> nn.Module:
    """Put masked layers in the places of all prunable ones, in place."""
    for name, module in network.named_modules():
        if f"{name}.weight" in masks:
            module.__class__ = MaskedConv2d if isinstance(module, nn.Conv2d) else MaskedLinear
            module.register_buffer("mask", masks[f"{name}.weight"].to(module.weight))
    return network


class Images(torch.utils.data.Dataset):
    """One image at a time, from an array to PIL and through torchvision's transforms, as its CIFAR classes do."""

    def __init__(self, images: Tensor, labels: Tensor, spec, augment: bool):
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        random = [T.RandomCrop(spec.input_shape[1], padding=4), T.RandomHorizontalFlip()] if augment else []
        self.transform = T.Compose([*random, T.ToTensor(), T.Normalize(spec.mean, spec.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


class Collate:
    """Batches examples in a worker; each batch brings along the CPU seconds that the worker spent since the last."""

    def __init__(self):
        self.before = 0.0

    def start(self, worker: int) -> None:
        """Leave the start of the process out."""
        self.before = time.process_time()

    def __call__(self, examples: list) -> tuple[list[Tensor], float]:
        batch, before = default_collate(examples), self.before
        self.before = time.process_time()
        return batch, self.before - before


def loader(dataset: Dataset, batch_size: int, batches: int, device: torch.device) -> Iterator:
    """Batches for all turns, from workers that are started once."""
    # It advises fewer workers on a computer with fewer cores; 4 is what we compare with everywhere.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    images = Images(dataset.train_images, dataset.train_labels, dataset.spec, augment=True)
    collate = Collate()
    found = DataLoader(
        images,
        batch_size,
        sampler=RandomSampler(images, num_samples=batches * batch_size),
        num_workers=WORKERS,
        collate_fn=collate,
        worker_init_fn=collate.start,
        pin_memory=device.type == "cuda",
    )
    return iter(found)


def sgd(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """The SGD of the recipe as PyTorch makes it when nothing is asked."""
    options = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
    return torch.optim.SGD(network.parameters(), lr=recipe.lr, **options)


def step(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe) -> float:
    """One training step; returns its loss, for which it waits."""
    optimiser.zero_grad()
    loss = F.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
    loss.backward()
    optimiser.step()
    return loss.item()


@torch.no_grad()
def accuracy(network: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Accuracy in percent, with a look at the result after every batch."""
    network.eval()
    correct = 0
    for images, labels in loader:
        correct += (network(images.to(device)).argmax(1) == labels.to(device)).sum().item()
    network.train()
    return 100 * correct / max(1, len(loader.dataset))
