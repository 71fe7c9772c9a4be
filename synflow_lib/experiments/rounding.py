"""What the precision of numbers does to SynFlow at full size: masks that part, and flows that no float32 can hold."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
import torchvision
from torch import nn

from synflow_lib import models
from synflow_lib.experiments import pool
from synflow_lib.models.resnet import cifar_resnet
from synflow_lib.pruning import SCHEDULES, Masks
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.flow_steps import Ranges, Scaled
from synflow_lib.pruning.passes import forward
from synflow_lib.pruning.prune import best
from synflow_lib.pruning.state import absolute_state, scoring_mode

CIFAR, TINY, IMAGENET = (3, 32, 32), (3, 64, 64), (3, 224, 224)
NOISE = 1e-12  # relative, in every weight
COMPARED = (("vgg11", "float32"), ("vgg11", "noise"), ("resnet20", "float32"))
DEPTHS = (10, 20, 30, 40, 50, 60, 80, 100)  # of fully connected networks


def vgg11_rounding(
    log10_compressions: Sequence[float] = (2.0, 3.0), iterations: int = 100, width: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """How two runs of Algorithm 1 on the same weights part: one in float64, the other a little less exact.

    Columns: network ("vgg11", and "resnet20" for a narrow one), other ("float32": scored in single precision; "noise":
    in float64, with a relative noise of 1e-12 in the weights), log10_compression, iteration, kept (weights in each
    mask), differing (weights in the other's mask only, of each), overlap (intersection over union).
    """
    parts = [
        {"network": network, "other": other, "log10_compression": a, "iterations": iterations, "width": width}
        for network, other in COMPARED
        for a in log10_compressions
    ]
    return pd.concat(pool.each(_parting, [part | {"seed": seed} for part in parts], "pairs"), ignore_index=True)


def _parting(
    network: str, other: str, log10_compression: float, iterations: int, width: float, seed: int
) -> pd.DataFrame:
    single = models.build("vgg11", (CIFAR, 10), width, seed) if network == "vgg11" else cifar_resnet(20, seed)
    double = copy.deepcopy(single).double()
    pair = [FlowNetwork(model, CIFAR) for model in (double, single if other == "float32" else noisy(double))]
    rows = []
    for k in range(1, iterations + 1):
        for each in pair:
            each.keep(best(each, SCHEDULES["exponential"](k, iterations, 10**log10_compression)))
        one, two = (Masks(each.masks()) for each in pair)
        differing = sum(int((one[name] & ~two[name]).sum()) for name in one)
        rows.append((network, other, log10_compression, k, one.kept, differing, one.overlap(two)))
    return pd.DataFrame(
        rows, columns=["network", "other", "log10_compression", "iteration", "kept", "differing", "overlap"]
    )


def noisy(model: nn.Module, size: float = NOISE, seed: int = 0) -> nn.Module:
    """A copy of `model` with every parameter multiplied by 1 + `size` times a normal random number."""
    generator, noisy = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter *= 1 + size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return noisy


def flow_range(depths: Sequence[int] = DEPTHS, families: Sequence[str] = ("MLP", "VGG", "ResNet")) -> pd.DataFrame:
    """log10 of the flow R of networks of growing depth, in float32, in float64, and in float32 kept within range.

    Columns: family, network, layers (on the longest path), float32 and float64 (log10 R of the network run as it is,
    inf where that overflows), scaled (log10 R in float32 with a power of two beside every value).
    """
    parts = [{"name": name, "depths": depths} for name, (family, *_) in networks(depths).items() if family in families]
    return pd.DataFrame(pool.each(_flow, parts, "networks"))


def networks(depths: Sequence[int] = DEPTHS) -> dict[str, tuple[str, int, tuple[int, ...], Callable[[], nn.Module]]]:
    """Of each network by its name: the family, the depth, the shape of its input and what builds it."""
    found = {f"MLP of {n} layers": ("MLP", n, CIFAR, partial(plain, n)) for n in depths}
    found["VGG-11, CIFAR-10"] = ("VGG", 9, CIFAR, partial(models.build, "vgg11"))
    found["VGG-16, CIFAR-10"] = ("VGG", 14, CIFAR, partial(models.build, "vgg16"))
    found["VGG-19, ImageNet"] = ("VGG", 19, IMAGENET, partial(models.build, "vgg19", (IMAGENET, 1000)))
    found |= {f"ResNet-{n}, CIFAR-10": ("ResNet", n, CIFAR, partial(cifar_resnet, n)) for n in (20, 56, 110, 1202)}
    found["ResNet-18, Tiny ImageNet"] = ("ResNet", 18, TINY, partial(models.build, "resnet18", "tiny-imagenet"))
    for n in (50, 101, 152):
        found[f"ResNet-{n}, ImageNet"] = ("ResNet", n, IMAGENET, partial(_torchvision, f"resnet{n}"))
    return found


def plain(layers: int) -> nn.Module:
    """A fully connected network of `layers` layers with 100 hidden units each and no biases."""
    torch.manual_seed(0)
    return models.mlp(CIFAR, 10, hidden=(100,) * (layers - 1), bias=False)


def _torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)()


def _flow(name: str, depths: Sequence[int]) -> dict[str, object]:
    family, layers, input_shape, build = networks(depths)[name]
    with torch.random.fork_rng(devices=[]):
        model = build()
    as_run = {kind: log10_flow(model, input_shape, getattr(torch, kind)) for kind in ("float32", "float64")}
    return {"family": family, "network": name, "layers": layers, **as_run, "scaled": log10_scaled(model, input_shape)}


def log10_flow(model: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> float:
    """log10 of R = 1' (prod_l |theta_l|) 1 with every number in `dtype`; infinite where one is, -inf where R is 0."""
    with scoring_mode(model, absolute_state(model, None, dtype)), torch.no_grad():
        flow = float(forward(model, torch.ones(1, *input_shape, dtype=dtype)).sum())
    return (math.log10(flow) if flow else -math.inf) if math.isfinite(flow) else math.inf


def log10_scaled(model: nn.Module, input_shape: Sequence[int]) -> float:
    """log10 of R as `prune` computes it: the numbers of each layer in the model's precision, times a power of two."""
    network = FlowNetwork(model, input_shape)
    program = network.program
    values = [Scaled(program.counts.new_ones(1, program.channels), 0, Ranges())]
    for step in program.steps:
        values.append(step.forward([values[index] for index in step.inputs], network.state)[0])
    total = (values[-1].values * program.counts[:, None]).sum()
    return math.log10(float(total)) + values[-1].exponent * math.log10(2)
