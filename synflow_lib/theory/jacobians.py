"""Singular values of Jacobians: of every layer, and of the whole network from its input to its output.

A layer is an isometry where they are all 1; layerwise dynamical isometry (Lee et al. 2020) asks that of every layer,
dynamical isometry (Saxe et al. 2014) of the whole network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import eval_mode
from synflow_lib.pruning.state import forward, masked_state, prunable, scoring_mode
from synflow_lib.theory.spectrum import LinearMap, Spectrum, spectrum


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
    its first call; one that forward never calls as a module (attention's projections) is left out. Raises InputError
    where the model does not take `input_shape`, the shape of one example.
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
    state, weights = masked_state(model, masks), prunable(model)
    modules = {n.removesuffix(".weight"): model.get_submodule(n.rpartition(".")[0]) for n in weights}
    modules = {n: module for n, module in modules.items() if not isinstance(module, nn.MultiheadAttention)}
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes.setdefault(name, inputs[0].shape)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    like = next(iter(weights.values())).detach()
    try:
        with scoring_mode(model, False), torch.no_grad():
            forward(model, state, like.new_zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: LinearMap(_without_bias(modules[name], state[f"{name}.weight"]), like.new_zeros(shape))
        for name, shape in shapes.items()
    }


def _without_bias(module: nn.Module, weight: Tensor) -> Callable[[Tensor], Tensor]:
    parameters = {"weight": weight} | ({} if module.bias is None else {"bias": torch.zeros_like(module.bias)})
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
    (nested ones too), where alone that is the derivative of one value by one other.
    """
    state, rows = masked_state(model, masks), []
    images = images.to(next(iter(prunable(model).values())))
    with eval_mode(model):
        for name, stage, points in stages(model, state, images):
            operators = [LinearMap(stage, point[None]) for point in points]
            found = [spectrum(operator, method, **options) for operator in operators]
            together = Spectrum(
                torch.cat([s.values for s in found]), torch.cat([s.weights / len(found) for s in found])
            )
            outputs, inputs = operators[0].shape
            rows.append({"layer": name, "inputs": inputs, "outputs": outputs} | together.summary())
    return pd.DataFrame(rows)


def stages(
    model: nn.Module, state: Mapping[str, Tensor], images: Tensor
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Name, function and inputs of every prunable layer with what follows it."""
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    if not all(isinstance(module, nn.Sequential) for module in model.modules() if any(module.children())):
        raise InputError(
            f"{type(model).__name__} is no nn.Sequential, so its layers do not follow one another: "
            "`jacobians.layers` takes any module"
        )
    starts = [i for i, (name, _) in enumerate(leaves) if f"{name}.weight" in prunable(model)]
    ends = [*starts[1:], len(leaves)]

    def run(part: list[tuple[str, nn.Module]], x: Tensor) -> Tensor:
        for name, module in part:
            own = {key: state[f"{name}.{key}"] for key, _ in (*module.named_parameters(), *module.named_buffers())}
            x = functional_call(module, own, (x,))
        return x

    with torch.no_grad():
        x = run(leaves[: starts[0]], images)
    for start, end in zip(starts, ends, strict=True):
        part = leaves[start:end]
        yield leaves[start][0], lambda x, part=part: run(part, x), x
        with torch.no_grad():
            x = run(part, x)


def input_output(model: nn.Module, images: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
    """Singular values of d outputs / d input at each of the `images` [B, ...], descending: [B, min(classes, inputs)].

    Exact, by one backward pass for each output; any module that treats its examples apart in eval mode. Raises
    InputError where it cannot take the images or gives no [B, classes].
    """
    state = masked_state(model, masks)
    x = images.to(next(iter(prunable(model).values()))).detach().requires_grad_()
    with scoring_mode(model, False), torch.enable_grad():
        outputs = forward(model, state, x)
        if outputs.ndim != 2:
            raise InputError(
                f"the input-output Jacobian needs outputs of shape [B, classes], not {tuple(outputs.shape)}"
            )
        rows = [torch.autograd.grad(outputs[:, c].sum(), x, retain_graph=True)[0] for c in range(outputs.shape[1])]
    return torch.linalg.svdvals(torch.stack([row.flatten(1) for row in rows], 1))
