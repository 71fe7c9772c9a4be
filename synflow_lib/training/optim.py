"""Plain SGD, and the one call that keeps a pruned weight at zero."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from synflow_lib.devices import Speed
from synflow_lib.pruning.masks import check_masks
from synflow_lib.training.recipes import Recipe


def sgd(model: nn.Module, recipe: Recipe, speed: Speed) -> torch.optim.SGD:
    """SGD over every parameter, each listed once; weight decay on all of them, biases and BatchNorm too (as
    the authors do). The learning rate is set before each step by the loop.
    """
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        **({"fused": True} if speed.fused else {"foreach": True}),
    )


def mask_gradients(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Callable[[], None]:
    """Return a function to call between backward and step: it zeroes the gradients of pruned weights, in one
    call.

    A weight that starts at zero then stays exactly zero under momentum and weight decay, because its
    gradient, its momentum and its decay all are. The path equals that of masks multiplied in during the
    forward pass, and the network that trains is a plain one. Layers that lost nothing are left out. Raises
    InputError for masks of another model.
    """
    if masks is None:
        return lambda: None
    check_masks(model, masks)
    parameters = dict(model.named_parameters())
    pruned = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    weights = [parameters[name] for name in pruned]
    # In the dtype and memory order of the weights: only then is the product one kernel for all layers.
    factors = [
        torch.empty_like(weight).copy_(pruned[name]).detach() for name, weight in zip(pruned, weights, strict=True)
    ]

    def zero_pruned() -> None:
        if factors:
            torch._foreach_mul_([weight.grad for weight in weights], factors)

    return zero_pruned
