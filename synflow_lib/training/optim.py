"""The optimisers: plain SGD, the repeated updates that made the published numbers, and masked gradients."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import BATCH_NORM, CONVOLUTION
from synflow_lib.models.tracing import hooked, operations
from synflow_lib.pruning.masks import check_masks
from synflow_lib.training.recipes import Recipe


def sgd(model: nn.Module, recipe: Recipe, speed: Speed) -> torch.optim.Optimizer:
    """SGD over every parameter, each listed once; weight decay on all of them, biases and BatchNorm too (as
    the authors do). The learning rate is set before each step by the loop. A recipe with `updates` gets `RepeatedSGD`.
    """
    options = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    if recipe.updates:
        groups: dict[int, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            groups.setdefault(recipe.updates_of(name), []).append(parameter)
        return RepeatedSGD([{"params": part, "updates": k} for k, part in groups.items()], **options)
    return torch.optim.SGD(
        model.parameters(),
        nesterov=recipe.nesterov,
        **options,
        **({"fused": True} if speed.fused else {"foreach": True}),
    )


class RepeatedSGD(torch.optim.Optimizer):
    """SGD with Nesterov momentum that updates each tensor `updates` times per step, all with the same gradient.

    It does what an optimiser does that lists a tensor k times, under PyTorch 1.4, where weight decay was added into the
    gradient in place: k times in a row, g <- g + wd p; b <- m b + g; p <- p - lr (g + m b), with gradient and momentum
    buffer b shared. Each of these is linear in (p, b, g), so k of them are one 3x3 matrix, its k-th power, and a step
    costs the same for every k. Rounding apart the results are equal (a test holds them to 1e-12 of each other).
    """

    def __init__(
        self,
        groups: Iterable[dict],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        updates: int = 1,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "updates": updates}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient; gradients are left as they are."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self._buffer(parameter) for parameter in parameters]
            to_p, to_b = repeated_update(group["lr"], group["momentum"], group["weight_decay"], group["updates"])
            # p' first; then b' from p', since p = (p' - C b - B g) / A: no third copy of the weights is needed.
            ratio = to_b[0] / to_p[0]
            torch._foreach_mul_(parameters, to_p[0])
            torch._foreach_add_(parameters, buffers, alpha=to_p[1])
            torch._foreach_add_(parameters, gradients, alpha=to_p[2])
            torch._foreach_mul_(buffers, to_b[1] - ratio * to_p[1])
            torch._foreach_add_(buffers, parameters, alpha=ratio)
            torch._foreach_add_(buffers, gradients, alpha=to_b[2] - ratio * to_p[2])

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


@lru_cache(maxsize=64)
def repeated_update(lr: float, momentum: float, weight_decay: float, updates: int) -> tuple[list[float], list[float]]:
    """The coefficients of p, b and g in the new p, and in the new b, after `updates` updates with one gradient."""
    decayed = torch.tensor([[1, 0, 0], [0, 1, 0], [weight_decay, 0, 1]], dtype=torch.float64)  # g <- g + wd p
    remembered = torch.tensor([[1, 0, 0], [0, momentum, 1], [0, 0, 1]], dtype=torch.float64)  # b <- m b + g
    moved = torch.tensor([[1, -lr * momentum, -lr], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)  # p <- p - lr (g + m b)
    new_p, new_b, _ = torch.linalg.matrix_power(moved @ remembered @ decayed, updates).tolist()
    return new_p, new_b


def mask_gradients(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Callable[[], None]:
    """Return a function to call between backward and step: it zeroes the gradients of pruned weights, in one
    call.

    A weight that starts at zero then stays exactly zero under momentum and weight decay, because its
    gradient, its momentum and its decay all are. The path equals that of masks multiplied in during the
    forward pass, and the network that trains is a plain one. Layers that lost nothing are left out, and so are those
    without a gradient, frozen or not used by forward. Raises InputError for masks of another model.
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
        pairs = [(w.grad, factor) for w, factor in zip(weights, factors, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_(*zip(*pairs, strict=True))

    return zero_pruned


def idle_biases(model: nn.Module) -> list[nn.Parameter]:
    """The biases that training does not move: those of convolutions whose output a BatchNorm reads, and nothing else.

    In train mode it takes the mean over the batch away again, so the loss does not depend on them and their gradients
    are zero (rounding apart), at the price of a sum over all positions each. `model` must be in train mode. None where
    torch.fx cannot follow the model's code, or where forward hooks may do more than it.
    """
    if hooked(model):
        return []
    try:
        nodes = operations(model).nodes
    except InputError:
        return []
    modules = dict(model.named_modules())
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    cancelled: dict[nn.Parameter, bool] = {}
    for node in nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, CONVOLUTION) and module.bias is not None and owners[module.bias] == 1:
            readers = [modules.get(user.target) if user.op == "call_module" else None for user in node.users]
            normed = len(readers) == 1 and isinstance(readers[0], BATCH_NORM) and readers[0].training
            cancelled[module.bias] = normed and cancelled.get(module.bias, True)
    read = {node.target for node in nodes if node.op == "get_attr"}
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [bias for bias, yes in cancelled.items() if yes and names[bias] not in read]


@contextmanager
def left_alone(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the block make no gradients of `parameters`; those that had some will have again afterwards."""
    asked = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
