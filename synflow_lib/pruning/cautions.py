"""What one is warned of before and while weights are scored: what is not pruned, and what cannot be ranked."""

import warnings
from collections.abc import Collection

from torch import nn

from synflow_lib.errors import few
from synflow_lib.models.flow_graph import CONVOLUTION
from synflow_lib.pruning.state import NORMALISATION, batch_norms, prunable

OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def zero_scales(model: nn.Module) -> list[str]:
    """Return the names of the normalisation layers whose scale is zero in every channel: nothing passes them."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMALISATION)}
    norms |= {prefix.rstrip("."): module for prefix, module in batch_norms(model)}
    scales = {name: getattr(norm, "weight", None) for name, norm in norms.items()}
    return [name for name, scale in scales.items() if scale is not None and not bool(scale.any())]


def warn_zero_scales(model: nn.Module, stacklevel: int = 3) -> bool:
    """Warn of `zero_scales` and of layers whose weights are all zero, and return whether there are any.

    Residual blocks begin like that in timm, and in torchvision with zero_init_residual=True, so that a block is the
    identity when training starts; the heads of torchvision's vision transformers begin at zero too. `synflow` without
    masks warns, and `prune` does once, however many times it scores. `stacklevel` is that of `warnings.warn`.
    """
    scales = zero_scales(model)
    if scales:
        warnings.warn(
            f"the scale of {few(scales)} is zero in every channel (timm and torchvision's zero_init_residual=True "
            "begin like this), so synflow scores every weight in front of one 0 and removes it first: score with "
            "BatchNorm as the identity by bypass_norm=True, or set the scales to 1",
            stacklevel=stacklevel,
        )
    weights = [name for name, weight in prunable(model).items() if not bool(weight.any())]
    if weights:
        warnings.warn(
            f"all weights are zero in {few(weights)}, so nothing flows through, and synflow scores 0 whatever leads "
            "only there: initialise them, or load trained weights, before scoring",
            stacklevel=stacklevel,
        )
    return bool(scales or weights)


def warn_left_alone(model: nn.Module) -> None:
    """Warn of weights that one may expect to be pruned and that are not.

    Those of convolutions and linear layers that are no parameters, and those of recurrent and bilinear layers.
    """
    modules = {name or type(module).__name__: module for name, module in model.named_modules()}
    others = [name for name, module in modules.items() if isinstance(module, OTHERS)]
    if others:
        warnings.warn(
            f"the weights of {few(others)} are not pruned: convolutions, linear layers and attention are",
            stacklevel=3,
        )
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | CONVOLUTION)}
    computed = [name for name, layer in layers.items() if "weight" not in layer._parameters]
    if computed:
        warnings.warn(
            f"the weights of {few(computed)} are no parameters, but made of others (by weight norm, another "
            "parametrization, torch.nn.utils.prune), so they are not pruned: make them parameters first",
            stacklevel=3,
        )


def warn_unscored(model: nn.Module, unscored: Collection[str], bypass_norm: bool = False) -> None:
    """Warn of layers that SynFlow cannot rank, though nothing is pruned yet.

    Of the `unscored` all weights score 0. Beside zero scales the cause is an activation that is saturated where
    SynFlow's values are large: ReLU6 (of the 53 layers of torchvision's mobilenet_v2 all but the last), or the gates
    of squeeze-and-excitation. Instance normalisation makes 0 of an input that is the same everywhere, up to rounding.
    """
    flattened = [name or type(module).__name__ for name, module in model.named_modules() if _by_channel(module)]
    if flattened:
        warnings.warn(
            f"{few(flattened)} {'subtract' if len(flattened) > 1 else 'subtracts'} the mean of each channel, so of "
            "synflow's input of ones only what padding makes of its borders passes, and without padding rounding "
            "errors alone: use another method, or another normalisation",
            stacklevel=3,
        )
    if unscored and (bypass_norm or not warn_zero_scales(model, stacklevel=4)):
        warnings.warn(
            f"synflow scores all weights of {few(list(unscored))} 0 and removes them first: nothing that they "
            "compute reaches the output, or a saturated activation such as ReLU6 lets no gradient through; score a "
            "copy of the model with ReLU in its place, its masks fit the model itself",
            stacklevel=3,
        )


def _by_channel(module: nn.Module) -> bool:
    """Whether each channel is normalised by its own mean over the positions, in eval mode."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.running_mean is None
    return isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
