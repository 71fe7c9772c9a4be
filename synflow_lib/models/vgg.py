"""VGG-11 and VGG-16 with BatchNorm for CIFAR and Tiny ImageNet, and VGG-19 without it for ImageNet.

Simonyan and Zisserman (2015), in the variants that Tanaka et al. (2020) prune. The convolutions keep their bias
in front of BatchNorm: it is useless, but it was there.
"""

from torch import nn

from synflow_lib.errors import InputError

LAYERS = {  # channels of each 3x3 convolution; "M" is a 2x2 max-pool
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4),
}


class VGG(nn.Module):
    """Convolutions (`features`), then one or three linear layers (`classifier`)."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, mode: str, linear_std: float | None):
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.mode = mode  # of kaiming_normal_ for the convolutions
        self.linear_std = linear_std  # None: kaiming_normal_ for the linear layers too
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights as the authors' code does; BatchNorm starts as the identity, biases at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and self.linear_std is None):
                nn.init.kaiming_normal_(module.weight, mode=self.mode, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.linear_std)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def convolutions(depth: int, channels: int, width: float, batch_norm: bool) -> tuple[list[nn.Module], int]:
    """Return the feature layers of VGG-`depth` on `channels` input channels, and how many channels come out."""
    layers: list[nn.Module] = []
    for size in LAYERS[depth]:
        if size == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        out = max(1, round(size * width))
        layers.append(nn.Conv2d(channels, out, 3, padding=1))
        layers += [nn.BatchNorm2d(out), nn.ReLU()] if batch_norm else [nn.ReLU()]
        channels = out
    return layers, channels


def three_linear(fan_in: int, hidden: int, classes: int) -> nn.Sequential:
    """The classifier of the original VGG: two hidden layers with dropout."""
    return nn.Sequential(
        *(nn.Linear(fan_in, hidden), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(hidden, classes),
    )


def small_vgg(depth: int, input_shape: tuple[int, ...], classes: int, width: float) -> VGG:
    """VGG with BatchNorm, CIFAR variant for 32x32 images and Tiny ImageNet variant for 64x64."""
    if len(input_shape) != 3 or input_shape[1:] not in {(32, 32), (64, 64)}:
        raise InputError(f"vgg{depth} takes images of 32x32 or 64x64, not input shape {tuple(input_shape)}")
    layers, channels = convolutions(depth, input_shape[0], width, batch_norm=True)
    if input_shape[1] == 32:
        layers.append(nn.AvgPool2d(2))
        return VGG(nn.Sequential(*layers), nn.Sequential(nn.Linear(channels, classes)), "fan_in", None)
    layers.append(nn.MaxPool2d(2))
    classifier = three_linear(channels * 2 * 2, max(1, round(1024 * width)), classes)
    return VGG(nn.Sequential(*layers), classifier, "fan_out", 0.01)


def vgg11(input_shape: tuple[int, ...], classes: int, width: float = 1.0) -> VGG:
    """VGG-11 with BatchNorm: 9,222,848 prunable weights on CIFAR-10."""
    return small_vgg(11, input_shape, classes, width)


def vgg16(input_shape: tuple[int, ...], classes: int, width: float = 1.0) -> VGG:
    """VGG-16 with BatchNorm: 14,715,584 prunable weights on CIFAR-10."""
    return small_vgg(16, input_shape, classes, width)


def vgg19(input_shape: tuple[int, ...], classes: int, width: float = 1.0) -> VGG:
    """VGG-19 without BatchNorm at ImageNet size: 143.65 million prunable weights for 1,000 classes.

    The structure of torchvision's `vgg19`; any image of at least 32x32 passes, its size decides the first linear
    layer (7x7 positions at 224x224).
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 32:
        raise InputError(f"vgg19 takes images of at least 32x32, not input shape {tuple(input_shape)}")
    layers, channels = convolutions(19, input_shape[0], width, batch_norm=False)
    layers.append(nn.MaxPool2d(2))
    positions = (input_shape[1] // 32) * (input_shape[2] // 32)
    classifier = three_linear(channels * positions, max(1, round(4096 * width)), classes)
    return VGG(nn.Sequential(*layers), classifier, "fan_out", 0.01)
