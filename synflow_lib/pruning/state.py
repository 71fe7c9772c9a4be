"""The network that is scored: a model's code run on copies of its parameters, so that the model never changes.

Nothing is written into the model, which therefore is as before when scoring fails or is interrupted; only the training
flags are set for the time of scoring, and put back whatever happens.
"""

import operator
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import BATCH_NORM, CONVOLUTION
from synflow_lib.models.nodes import PROBABILITIES, kind
from synflow_lib.models.tracing import attributes_kept, buffers_kept, eval_mode

NORMALISATION = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of attention, those it has
TOKENS = (torch.int32, torch.int64)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
OTHERS = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
NAMED = 3  # of many layers, so many are named in a sentence


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
    places = [(m, name, tensor) for m in modules for part in (m._parameters, m._buffers) for name, tensor in part.items()]
    before = [place for place in places if place[-1] in others]  # all places of a tensor that is shared
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
) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers but those in `without`, the masked weights times their masks.

    Floating-point numbers are converted to `dtype`, by default they stay as they are. Raises InputError for a mask
    of no parameter, or of another shape.
    """
    state = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in without:
            continue
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to(kind, copy=True)
    for name, mask in (masks or {}).items():
        if name not in state or mask.shape != state[name].shape:
            has = f"the shape {tuple(state[name].shape)}" if name in state else "no such parameter"
            raise InputError(f"the mask of {name!r} is {tuple(mask.shape)}, but {type(model).__name__} has {has}")
        # Not a product: inf * 0 would leave a NaN where the weight should be gone.
        state[name].masked_fill_((mask == 0).to(state[name].device), 0)
    return state


def example_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """`input_shape` as a tuple; raises InputError unless it is the shape of one input without the batch."""
    try:
        sizes = tuple(operator.index(size) for size in input_shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"input_shape is that of one input without the batch, as (3, 32, 32) is, not {input_shape!r}")
    return sizes


def embeddings(model: nn.Module) -> list[str]:
    """The parameters whose rows are looked up, by whole numbers, as `named_parameters` calls them."""
    tables = {m._parameters.get("weight") for m in model.modules() if isinstance(m, EMBEDDING)}
    return [name for name, parameter in model.named_parameters() if parameter in tables]


def looks_up(model: nn.Module) -> bool:
    """Whether `model` has an embedding, which takes whole numbers."""
    return any(isinstance(module, EMBEDDING) for module in model.modules())


def as_input(model: nn.Module, x: Tensor, like: Tensor) -> Tensor:
    """`x` on the device and in the dtype of `like`; tokens (int32, int64) stay such for a model that looks them up,
    and truth values (a padding mask) for all.
    """
    if x.dtype == torch.bool:
        return x.to(like.device)
    return x.to(like.device) if x.dtype in TOKENS and looks_up(model) else x.to(like)


def example_input(model: nn.Module, number: int, input_shape: Sequence[int]) -> Tensor:
    """Zeros [number, *input_shape] such as `model` takes: in its dtype, or tokens where an embedding refuses those."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = torch.zeros(number, *example_shape(input_shape), dtype=weight.dtype, device=weight.device)
    if looks_up(model):  # only then is it worth a run
        try:
            with eval_mode(model), attributes_kept(model), buffers_kept(model):
                called(model, zeros)
        except InputError:
            return zeros.long()
    return zeros


def called(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> object:
    """What `model` gives for `x`, or several inputs; raises InputError where it cannot take that."""
    inputs = x if isinstance(x, tuple) else (x,)
    try:
        return model(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        if "out of memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if inputs[0].is_floating_point() and looks_up(model) and "indices" in reason:
            reason = (
                "its embedding looks up whole numbers (int64); what needs an input of ones, as synflow does, can be "
                "asked of the part behind it"
            )
        shapes = " and ".join(str(tuple(one.shape)) for one in inputs)
        raise InputError(f"{type(model).__name__} cannot take an input of shape {shapes}: {reason}") from error


def forward(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`called`, but raises InputError where the model gives something else than one tensor, too."""
    output = called(model, x)
    if not isinstance(output, Tensor):
        raise InputError(f"{type(model).__name__} must return one tensor to be scored, not {type(output).__name__}")
    return output


def logits(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`forward`, but for a softmax, log-softmax or sigmoid that the network ends with: what comes in front of it.

    Cross entropies are of that, and the sum of probabilities, a constant or saturated, says nothing of paths.
    """
    with _Probabilities() as made:
        output = forward(model, x)
    return next((before for result, before in made.of if result is output), output)


class _Probabilities(TorchFunctionMode):
    """Notes what probabilities are made of while it lasts."""

    def __init__(self):
        super().__init__()
        self.of: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if kind(func) in PROBABILITIES:
            self.of.append((result, args[0] if args else kwargs["input"]))
        return result


def absolute_state(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
    bypass_norm: bool = False,
    without: Collection[str] = (),
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
    state = masked_state(model, masks, dtype, without)
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
            f"the scale of {_some(scales)} is zero in every channel (timm and torchvision's zero_init_residual=True "
            "begin like this), so synflow scores every weight in front of one 0 and removes it first: score with "
            "BatchNorm as the identity by bypass_norm=True, or set the scales to 1",
            stacklevel=stacklevel,
        )
    weights = [name for name, weight in prunable(model).items() if not bool(weight.any())]
    if weights:
        warnings.warn(
            f"all weights are zero in {_some(weights)}, so nothing flows through, and synflow scores 0 whatever leads "
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
            f"the weights of {_some(others)} are not pruned: convolutions, linear layers and attention are",
            stacklevel=3,
        )
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | CONVOLUTION)}
    computed = [name for name, layer in layers.items() if "weight" not in layer._parameters]
    if computed:
        warnings.warn(
            f"the weights of {_some(computed)} are no parameters, but made of others (by weight norm, another "
            "parametrization, torch.nn.utils.prune), so they are not pruned: make them parameters first",
            stacklevel=3,
        )


def warn_unscored(model: nn.Module, unscored: Collection[str], bypass_norm: bool = False) -> None:
    """Warn of layers all of whose weights SynFlow scores 0 though nothing is pruned yet: it cannot rank them.

    Beside zero scales the cause is an activation that is saturated where SynFlow's values are large: ReLU6 (of the 53
    layers of torchvision's mobilenet_v2 all but the last), or the gates of squeeze-and-excitation.
    """
    if unscored and (bypass_norm or not warn_zero_scales(model, stacklevel=4)):
        warnings.warn(
            f"synflow scores all weights of {_some(list(unscored))} 0 and removes them first: nothing that they "
            "compute reaches the output, or a saturated activation such as ReLU6 lets no gradient through; score a "
            "copy of the model with ReLU in its place, its masks fit the model itself",
            stacklevel=3,
        )


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more ({len(names)} in all)" if more > 0 else "")
