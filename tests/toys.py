"""The toy networks and batches that the tests share: small enough to compute by hand or by brute force."""

import itertools

import torch
from torch import Tensor, nn

SHAPE = (3, 8, 8)
CLASSES = 5


def mlp(activation=nn.ReLU, bias: bool = True, sizes: tuple[int, ...] = (192, 12, 9, 7)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES, bias=bias)).double()


def conv_chain(batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).double()


class Residual(nn.Module):
    """A stem, a block with an identity shortcut, a block with a convolution as its shortcut, a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2, bias=False)
        self.classifier = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.outer(torch.relu(self.inner(x)))) + x)
        x = torch.relu(self.last(x) + self.shortcut(x))
        return self.classifier(x.flatten(1))


def residual() -> Residual:
    return Residual().double()


NETWORKS = {"mlp": mlp, "conv_chain": conv_chain, "residual": residual}


def batches(sizes: tuple[int, ...] = (7, 5), classes: int = CLASSES, shape: tuple[int, ...] = SHAPE):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, *shape, generator=generator, dtype=torch.float64),
            torch.randint(classes, (size,), generator=generator),
        )
        for size in sizes
    ]


def everything(model: nn.Module) -> list[str]:
    """The names of all parameters, biases and BatchNorm too."""
    return [name for name, _ in model.named_parameters()]


class Reader(nn.Module):
    """Classifies texts of any length: tokens [B, T] looked up, their mean. No part of NETWORKS, which read images."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


class Written(nn.Module):
    """Two layers and code that is given."""

    def __init__(self, code):
        super().__init__()
        self.first, self.other, self.code = nn.Linear(3, 3), nn.ConvTranspose1d(3, 3, 2), code

    def forward(self, x):
        return self.code(self, x)
