"""The networks of the paper, built as its authors' code builds them (Tanaka et al. 2020, appendix).

`build("vgg16", "cifar100")` gives a plain `nn.Module`; no custom layers, so everything here also works on yours.
"""

from collections.abc import Callable

import torch
from torch import nn

from synflow_lib import devices
from synflow_lib.data.specs import DATASETS
from synflow_lib.errors import InputError, lookup
from synflow_lib.models.initialisation import INITIALISATIONS, initialise
from synflow_lib.models.mlp import mlp
from synflow_lib.models.resnet import add_identity_scales, resnet18, wide_resnet18
from synflow_lib.models.vgg import vgg11, vgg16, vgg19

__all__ = ["INITIALISATIONS", "MODELS", "add_identity_scales", "build", "initialise", "mlp", "reinitialise"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet18": resnet18,
    "wide_resnet18": wide_resnet18,
    # The authors' "WideResNet-18": their basic block ignores its width argument, so it is ResNet-18 (ERRATA 1).
    "wide_resnet18_published": resnet18,
    "mlp": mlp,
}


def build(
    name: str, dataset: str | tuple[tuple[int, ...], int] = "cifar10", width: float = 1.0, seed: int = 0
) -> nn.Module:
    """Build the network `name` for `dataset`, initialised as the authors do, the same for the same `seed`.

    `dataset` names a data set of `DATASETS`, or is a pair (input_shape, classes) such as ((3, 32, 32), 10).
    `width` multiplies the number of channels or hidden units of every layer but the classifier's output.
    The input decides the variant: 32x32 the CIFAR one, 64x64 the Tiny ImageNet one, 224x224 the ImageNet one.
    The global random state is left as it was. Raises InputError for an unknown name or an impossible shape.
    """
    builder = lookup(MODELS, name, "model")
    if isinstance(dataset, str):
        spec = lookup(DATASETS, dataset, "data set")
        input_shape, classes = spec.input_shape, spec.classes
    else:
        input_shape, classes = dataset
    if not width > 0:
        raise InputError(f"width must be a positive factor such as 0.25 or 1.0, not {width}")
    if classes < 1 or any(size < 1 for size in input_shape):
        raise InputError(f"a model needs positive sizes, not input shape {tuple(input_shape)} and {classes} classes")
    with devices.seeded(seed, torch.device("cpu")):
        return builder(tuple(input_shape), classes, width)


def reinitialise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters of `model` anew, in place, and return it; masks must be applied again afterwards.

    The networks of this library know their own initialisation (`model.initialise`); any other module is reset by
    the `reset_parameters` of its parts, which is PyTorch's default and may differ from how the model was made.
    Raises InputError, before anything is drawn, where neither exists for some parameter. The global random state is
    left as it was.
    """
    own, resets = getattr(model, "initialise", None), []
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            resets.append(reset)
        elif own is None and any(True for _ in module.parameters(recurse=False)):
            raise InputError(f"cannot re-initialise {type(module).__name__}: it has no reset_parameters()")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with devices.seeded(seed, device):
        for reset in (*resets, own) if own is not None else resets:
            reset()
    return model
