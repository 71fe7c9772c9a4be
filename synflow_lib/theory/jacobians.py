"""Singular values of Jacobians: of every layer, and of the whole network from its input to its output.

A layer is an isometry where they are all 1; layerwise dynamical isometry (Lee et al. 2020) asks that of every layer,
dynamical isometry (Saxe et al. 2014) of the whole network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_lib import devices
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import CONVOLUTION
from synflow_lib.models.tracing import eval_mode
from synflow_lib.pruning.passes import forward
from synflow_lib.pruning.state import masked_state, prunable, scoring_mode
from synflow_lib.theory.spectrum import LinearMap, Spectrum, singular_values, spectrum


def layers(
    model: nn.Module,
    input_shape: Sequence[int],
    masks: Mapping[str, Tensor] | None = None,
    method: str = "auto",
    **options: int,
) -> pd.DataFrame:
    """Singular values of every prunable layer's own linear map on inputs of the size that reaches it; for any module.

    The map of the weights alone: without bias, normalisation and activation (`chain` has those), so it needs no data.
    Columns: `layer`, `inputs`, `outputs`, `mean`, `std`, `min`, `max`. A layer that is called several times counts by
    its first call; one that forward never calls as a module (attention's projections) is left out. Half precision is
    computed in float32. Raises InputError where the model does not take `input_shape`, the shape of one example, for
    masks of another model and for weights that are not finite.
    """
    rows = []
    for name, operator in layer_maps(model, input_shape, masks).items():
        outputs, inputs = operator.shape
        rows.append(
            {"layer": name, "inputs": inputs, "outputs": outputs} | spectrum(operator, method, **options).summary()
        )
    return pd.DataFrame(rows)


def layer_maps(
    model: nn.Module, input_shape: Sequence[int], masks: Mapping[str, Tensor] | None = None
) -> dict[str, LinearMap]:
    """The linear map of every prunable layer that is called as a module, by its name: what `layers` decomposes."""
    state, like = _state(model, masks)
    names = {weight: name for name, weight in prunable(model).items()}
    modules: dict[str, nn.Module] = {}
    for module in filter(_is_layer, model.modules()):
        modules.setdefault(names[module.weight], module)
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes.setdefault(name, inputs[0].shape)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    try:
        with scoring_mode(model, state), torch.no_grad():
            forward(model, like.new_zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    for name in shapes:
        if not bool(state[name].isfinite().all()):
            raise InputError(f"{name} holds weights that are not finite: they have no singular values")
    return {
        name.removesuffix(".weight"): LinearMap(_without_bias(modules[name], state[name]), like.new_zeros(shape))
        for name, shape in shapes.items()
    }


def _state(model: nn.Module, masks: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], Tensor]:
    """The masked state, of half precision in float32 (it cannot be decomposed), and an empty tensor of its kind.

    Of a model on MPS on the CPU, for many decompositions are not to be had there.
    """
    weight = next(iter(prunable(model).values())).detach()
    device, dtype = devices.with_float64(weight.device), torch.float32 if torch.finfo(weight.dtype).bits < 32 else None
    return masked_state(model, masks, dtype, device=device), weight.new_empty(0, dtype=dtype, device=device)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | CONVOLUTION) and module._parameters.get("weight") is not None


def _without_bias(module: nn.Module, weight: Tensor) -> Callable[[Tensor], Tensor]:
    parameters = {"weight": weight} | ({} if module.bias is None else {"bias": weight.new_zeros(module.bias.shape)})
    return lambda x: functional_call(module, parameters, (x,))


def chain(
    model: nn.Module,
    images: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    method: str = "auto",
    **options: int,
) -> pd.DataFrame:
    """Singular values of J_l = dx_l / dx_{l-1} at the `images`: from each layer's input to the next layer's.

    So a layer is here its weights with whatever follows: normalisation, activation, pooling. All examples' values
    together make the row of a layer; columns as in `layers`. Raises InputError unless the model is an nn.Sequential
    (nested ones too) or a single layer, where alone that is the derivative of one value by one other, and where a
    layer occurs twice.
    """
    (state, like), rows = _state(model, masks), []
    with eval_mode(model):
        for name, stage, points in stages(model, state, images.to(like)):
            operators = [LinearMap(stage, point[None]) for point in points]
            found = [spectrum(operator, method, **options) for operator in operators]
            together = Spectrum(
                torch.cat([s.values for s in found]), torch.cat([s.weights / len(found) for s in found])
            )
            outputs, inputs = operators[0].shape
            rows.append({"layer": name or "weight", "inputs": inputs, "outputs": outputs} | together.summary())
    return pd.DataFrame(rows)


def stages(
    model: nn.Module, state: Mapping[str, Tensor], images: Tensor
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Name, function and inputs of every prunable layer with what follows it."""
    if not is_chain(model):
        raise InputError(
            f"{type(model).__name__} is no nn.Sequential, so its layers do not follow one another: "
            "`jacobians.layers` takes any module"
        )
    parts, names = chain_parts(model), first_names(model)
    starts = [index for index, (_, module) in enumerate(parts) if _is_layer(module)]
    ends = [*starts[1:], len(parts)]

    def run(part: list[tuple[str, nn.Module]], x: Tensor) -> Tensor:
        for _, module in part:
            own = {key: state[names[t]] for key, t in (*module.named_parameters(), *module.named_buffers())}
            x = functional_call(module, own, (x,))
        return x

    with torch.no_grad():
        x = run(parts[: starts[0]], images)
    for start, end in zip(starts, ends, strict=True):
        part = parts[start:end]
        yield parts[start][0], lambda x, part=part: run(part, x), x
        with torch.no_grad():
            x = run(part, x)


def is_chain(model: nn.Module) -> bool:
    """Whether nothing but nn.Sequential holds the modules together, so that each takes what the one before gives."""
    return all(isinstance(module, nn.Sequential) for module in model.modules() if any(module.children()))


def chain_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a chain with their names, in the order in which they run; one that is run twice is there twice.

    Raises InputError for a prunable layer that is: its Jacobian is not one.
    """
    parts = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if not any(m.children())]
    first: dict[nn.Parameter, str] = {}
    for name, module in parts:
        if _is_layer(module) and first.setdefault(module.weight, name) != name:
            raise InputError(
                f"layer {name!r} is layer {first[module.weight]!r} again: a weight that is used twice has no Jacobian "
                "of its own, so give the second a copy"
            )
    return parts


def first_names(model: nn.Module) -> dict[Tensor, str]:
    """The name by which a state knows each parameter and buffer, however many modules share it."""
    return {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def input_output(model: nn.Module, images: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
    """Singular values of d outputs / d input at each of the `images` [B, ...], descending: [B, min(classes, inputs)].

    Exact, by one backward pass for each output, in float32 at least; any module that treats its examples apart in
    eval mode. Raises InputError where it cannot take the images, gives no [B, classes] or nothing finite.
    """
    state, like = _state(model, masks)
    x = images.to(like).detach().requires_grad_()
    with scoring_mode(model, state), torch.enable_grad():
        outputs = forward(model, x)
        if outputs.ndim != 2:
            raise InputError(
                f"the input-output Jacobian needs outputs of shape [B, classes], not {tuple(outputs.shape)}"
            )
        rows = [torch.autograd.grad(outputs[:, c].sum(), x, retain_graph=True)[0] for c in range(outputs.shape[1])]
    return singular_values(torch.stack([row.flatten(1) for row in rows], 1))
