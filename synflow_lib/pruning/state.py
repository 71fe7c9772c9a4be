"""The network that is scored: a model's code run on copies of its parameters, so that the model never changes.

The copies stand in for the model's own tensors, and the training flags are set, for the time of scoring; both are put
back whatever happens, so the model is as before where scoring fails or is interrupted. (`torch.func.functional_call`
would put them back after the forward pass, but a checkpointed activation is computed again in the backward pass.)
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from synflow_lib import devices
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import BATCH_NORM, CONVOLUTION
from synflow_lib.models.tracing import attributes_kept, eval_mode

NORMALISATION = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of attention, those it has


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that are pruned: those of every convolution and linear map, in the model's order.

    Biases, normalisation and embeddings are not; shortcut convolutions, attention and the classifier are. A weight
    that is shared counts once, under the name that `named_parameters` gives it. Raises InputError where there is none,
    where one has no shape yet, and for a model that is wrapped to run on several devices, compiled or scripted.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"{type(model).__name__} only wraps a model: prune what is in it, its .module")
    if "_orig_mod" in model._modules:
        raise InputError(
            "a compiled model only wraps a model: prune what is in it, its ._orig_mod, and compile that after"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a scripted or traced model has no layers of its own: prune it before torch.jit")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise InputError(f"{name!r} has no shape yet: run the model once before it is pruned")
    found: dict[str, nn.Parameter] = {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in model.modules():
        linear = isinstance(module, nn.Linear | CONVOLUTION | nn.MultiheadAttention)
        for attribute in PROJECTIONS if isinstance(module, nn.MultiheadAttention) else ("weight",):
            weight = module._parameters.get(attribute) if linear else None
            if weight is not None:
                found[names[weight]] = weight
    if not found:
        hint = (
            " (undo torch.nn.utils.prune first?)"
            if any("weight_orig" in n for n, _ in model.named_parameters())
            else ""
        )
        raise InputError(f"{type(model).__name__} has no convolution or linear layer with a weight to prune{hint}")
    return found


@contextmanager
def scoring_mode(model: nn.Module, state: Mapping[str, Tensor], train_mode: bool = False) -> Iterator[None]:
    """Run the model's code on the tensors of `state`, which stand in for its parameters and buffers in the block.

    Without dropout; BatchNorm uses its running statistics, or the batch's own where `train_mode`. What the code notes
    of its passes as attributes is taken back. Gradients are to be taken within the block: where activations are
    checkpointed, code runs again for them.
    """
    with eval_mode(model), attributes_kept(model), _standing_in(model, state):
        for module in model.modules():
            if train_mode and isinstance(module, BATCH_NORM):
                module.train()
        yield


@contextmanager
def _standing_in(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    own = dict((*model.named_parameters(), *model.named_buffers()))
    others = {own[name]: tensor for name, tensor in state.items()}
    modules = list(model.modules())
    places = [(m, *item) for m in modules for part in (m._parameters, m._buffers) for item in part.items()]
    before = [place for place in places if place[-1] in others]  # all of them where a tensor is shared
    try:
        for module, name, tensor in before:
            _set(module, name, others[tensor])
        yield
    finally:
        for module, name, tensor in before:
            _set(module, name, tensor)


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where a parameter or buffer was, which assignment as an attribute refuses of a plain tensor."""
    part = module._parameters if name in module._parameters else module._buffers
    if isinstance(part, dict):
        part[name] = tensor
    else:  # a scripted part, which takes it
        setattr(module, name, tensor)


def gradients(value: Tensor, leaves: Sequence[Tensor], model: nn.Module, **options: object) -> tuple[Tensor, ...]:
    """d `value` / d `leaves`, zero for what it does not hang on.

    Raises InputError where the code of `model` leaves no gradients, or computes them in a way of its own.
    """
    if not value.requires_grad:
        raise InputError(
            f"{type(model).__name__} runs without gradients, which scores are made of: leave out torch.no_grad and "
            "torch.inference_mode, in its code and around the call"
        )
    try:
        return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True, **options)
    except RuntimeError as error:
        if "heckpoint" not in str(error):
            raise
        raise InputError(
            f"{type(model).__name__} checkpoints its activations in a way that scores cannot be computed with: use "
            "torch.utils.checkpoint with use_reentrant=False, or switch it off"
        ) from error


def masked_state(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    dtype: torch.dtype | None = None,
    without: Collection[str] = (),
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers but those in `without`, the masked weights times their masks.

    Floating-point numbers are converted to `dtype`, by default they stay as they are. All are put on `device`, by
    default the model's own, or where that has no float64 and this is asked for, the CPU. Raises InputError for a mask
    of no parameter, or of another shape.
    """
    state = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in without:
            continue
        into = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        place = device or (devices.with_float64(tensor.device) if dtype == torch.float64 else tensor.device)
        state[name] = tensor.detach().to(place, copy=True).to(into)
    for name, mask in (masks or {}).items():
        if name not in state or mask.shape != state[name].shape:
            has = f"the shape {tuple(state[name].shape)}" if name in state else "no such parameter"
            raise InputError(f"the mask of {name!r} is {tuple(mask.shape)}, but {type(model).__name__} has {has}")
        # Not a product: inf * 0 would leave a NaN where the weight should be gone.
        state[name].masked_fill_((mask == 0).to(state[name].device), 0)
    return state


def absolute_state(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
    bypass_norm: bool = False,
    without: Collection[str] = (),
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return SynFlow's network: all parameters masked and absolute, and the buffers, with running means of zero.

    So of a trained network |weight|, |bias|, |gamma|, |beta| and the running variances are used. Its running means
    are not: they are data, and subtracting them R would no longer be a sum of positive paths. With `bypass_norm`
    every BatchNorm is the identity, exactly: gamma 1, beta 0, and the variance that makes its divisor 1. Raises
    InputError where that takes more than a state, in a BatchNorm without running statistics.
    """
    signed = {name for name, _ in model.named_parameters()}
    for prefix, _ in batch_norms(model):
        signed |= {f"{prefix}weight", f"{prefix}bias"}  # buffers where BatchNorm is frozen
    state = masked_state(model, masks, dtype, without, device)
    for name, tensor in state.items():
        if name in signed:
            state[name] = tensor.abs().to(tensor.dtype)  # of complex numbers too
        elif name.rpartition(".")[2] == "running_mean":
            tensor.zero_()
    if bypass_norm:
        _bypass(model, state)
    return state


def check_positive(model: nn.Module) -> None:
    """Raise InputError where a layer of the absolute network computes its weight, and what comes out is not positive.

    So it is with spectral norm and orthogonal weights; weight norm keeps |g| |v| / norm(v) positive. To be asked after
    a forward pass, while the network's state stands in for the model's own.
    """
    for name, module in model.named_modules():
        computed = isinstance(module, nn.Linear | CONVOLUTION) and "weight" not in module._parameters
        if computed and bool((module.weight < 0).any()):
            raise InputError(
                f"synflow needs |weight|, but the weight of {name or type(module).__name__} is computed from others "
                "and comes out negative: remove its parametrization (of a copy of the model) first"
            )


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All BatchNorms, frozen ones of any library too, each with what its tensors' names begin with."""
    for name, module in model.named_modules():
        alike = dict(module.named_buffers(recurse=False)).get("running_var") is not None and hasattr(module, "eps")
        if isinstance(module, BATCH_NORM) or alike:
            yield f"{name}." if name else "", module


def _bypass(model: nn.Module, state: dict[str, Tensor]) -> None:
    for prefix, module in batch_norms(model):
        if module.running_var is None:
            raise InputError(
                f"{prefix.rstrip('.') or type(model).__name__} is a BatchNorm without running statistics, which "
                "bypass_norm cannot make the identity: put torch.nn.Identity in its place"
            )
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_var", 1.0 - module.eps)):
            if f"{prefix}{part}" in state:  # what two BatchNorms share is there once, under its first name
                state[f"{prefix}{part}"].fill_(value)
