"""ResNet-18 for small images (He et al. 2016, the CIFAR stem), the same twice as wide, and the narrow CIFAR ones."""

import torch
from torch import nn

from synflow_lib import devices
from synflow_lib.errors import InputError


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); a 1x1 convolution is the shortcut where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ChannelScale(nn.Module):
    """x * scale with one trained number per channel, 1 at first: the authors' identity shortcut (ERRATA 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def reset_parameters(self) -> None:
        """Make the scales 1 again."""
        nn.init.ones_(self.scale)

    def forward(self, x):
        return x * self.scale


def add_identity_scales(model: nn.Module) -> nn.Module:
    """Give the identity shortcuts of `model`'s basic blocks a trained scale, in place; nothing where it has none.

    The function stays the same until the scales are trained.
    """
    for block in model.modules():
        if isinstance(block, BasicBlock) and isinstance(block.shortcut, nn.Identity):
            block.shortcut = ChannelScale(block.conv2.out_channels).to(block.conv2.weight)
    return model


class ResNet(nn.Module):
    """3x3 stem, four stages of two basic blocks with strides 1 2 2 2, global average pool, linear classifier."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks, before = [], widths[0]
        for out, stride in zip(widths, (1, 2, 2, 2), strict=True):
            blocks += [BasicBlock(before, out, stride), BasicBlock(out, out, 1)]
            before = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before, classes)
        self.initialise()

    def initialise(self) -> None:
        """Convolutions kaiming_normal_ over fan_out; the classifier keeps PyTorch's default, BatchNorm is identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.classifier(self.pool(self.blocks(x)).flatten(1))


def resnet18(input_shape: tuple[int, ...], classes: int, width: float = 1.0) -> ResNet:
    """ResNet-18: 11,164,352 prunable weights in 21 tensors on CIFAR-10."""
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        raise InputError(f"resnet18 takes images of at least 8x8, not input shape {tuple(input_shape)}")
    widths = tuple(max(1, round(size * width)) for size in (64, 128, 256, 512))
    return ResNet(input_shape[0], classes, widths)


def wide_resnet18(input_shape: tuple[int, ...], classes: int, width: float = 1.0) -> ResNet:
    """ResNet-18 with twice the channels in every layer (a widening factor of 2), about four times the weights.

    Not what was published under this name: see `wide_resnet18_published` in `MODELS`.
    """
    return resnet18(input_shape, classes, 2 * width)


def cifar_resnet(depth: int, seed: int = 0) -> nn.Sequential:
    """The ResNet of `depth` = 6n + 2 layers for CIFAR-10 (He et al. 2016): three stages of n blocks, 16 32 64 channels.

    Shortcuts are 1x1 convolutions where the shape changes; initialised as the authors of SynFlow do.
    """
    with devices.seeded(seed, torch.device("cpu")):
        blocks, before = [], 16
        for out in (16, 32, 64):
            for block in range((depth - 2) // 6):
                blocks.append(BasicBlock(before, out, 2 if out != before and block == 0 else 1))
                before = out
        stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
