"""The scores: what every weight is worth, as pure functions of a model that never change it.

Synaptic saliency (Tanaka et al. 2020, eq. 1) is S(theta) = dR/dtheta * theta, elementwise, for a scalar R of the
network's output. Every function takes any `nn.Module` and returns one tensor per prunable weight, the more worth
keeping the higher. `SALIENCIES` is the table of them; add your own function with the same signature, or hand it to
`prune` as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from synflow_lib import devices
from synflow_lib.errors import InputError
from synflow_lib.pruning import losses
from synflow_lib.pruning.cautions import warn_unscored
from synflow_lib.pruning.flow_network import FlowNetwork, holds
from synflow_lib.pruning.passes import as_input, called, example_shape, forward, logits
from synflow_lib.pruning.state import absolute_state, check_positive, gradients, masked_state, prunable, scoring_mode

Inputs = Tensor | tuple[Tensor, ...]
Batches = Sequence[tuple[Inputs, Tensor | None]]
Scores = dict[str, Tensor]


def _leaves(model: nn.Module, state: dict[str, Tensor], parameters: Iterable[str] | None) -> dict[str, Tensor]:
    names = list(parameters) if parameters is not None else list(prunable(model))
    return {name: state[name].requires_grad_() for name in names}


def _like(model: nn.Module) -> Tensor:
    """A tensor that has the device and the floating-point type of the model's weights."""
    return next(iter(prunable(model).values())).detach()


def _checked(
    model: nn.Module, batches: Batches | None, method: str, loss: losses.Loss = losses.supervised
) -> list[tuple[Inputs, Tensor | None]]:
    """The batches as the model and the loss take them; raises InputError for anything that is no such batch."""
    if not batches:
        raise InputError(f"{method} scores weights on data: pass batches=[(images, labels), ...]")
    like, checked = _like(model), []
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        images, labels = batch if pair else (None, None)
        inputs = tuple(images) if isinstance(images, tuple | list) else (images,)
        unlabelled = pair and labels is None and loss is not losses.supervised
        if not inputs or not all(isinstance(t, Tensor) for t in (*inputs, *(() if unlabelled else (labels,)))):
            raise InputError(f"batches must be a sequence of (images, labels) tensors, not of {type(batch).__name__}")
        ready = tuple(as_input(model, one, like) for one in inputs)
        labels = None if unlabelled else _labels(labels, inputs[0], loss, like)
        checked.append((ready if isinstance(images, tuple | list) else ready[0], labels))
    if not checked:
        raise InputError(f"{method} got no batches: of a generator that was used before none is left, so pass a list")
    return checked


def _labels(labels: Tensor, images: Tensor, loss: losses.Loss, like: Tensor) -> Tensor:
    """Labels for one of `LOSSES` are classes [B]; a loss of the user's own reads what it likes, [B, ...]."""
    classes = labels.ndim == 1 and not labels.is_floating_point()
    if labels.ndim == 0 or len(labels) != len(images) or len(labels) == 0 or (losses.known(loss) and not classes):
        kind = "integers of shape [B]" if losses.known(loss) else "of shape [B, ...]"
        raise InputError(
            f"labels must be {kind} for images [B, ...], not {labels.dtype} {tuple(labels.shape)} "
            f"for images {tuple(images.shape)}"
        )
    return labels.to(like) if labels.is_floating_point() else labels.to(like.device).long()


def _loss(
    model: nn.Module,
    images: Inputs,
    labels: Tensor | None,
    weight: float,
    temperature: float = 1.0,
    loss: losses.Loss = losses.supervised,
) -> Tensor:
    outputs = (logits if losses.known(loss) else called)(model, images)
    return weight * losses.evaluate(loss, outputs if temperature == 1 else outputs / temperature, labels)


def _weighted(batches: list[tuple[Inputs, Tensor | None]]) -> Iterator[tuple[Inputs, Tensor | None, float]]:
    sizes = [len(images[0] if isinstance(images, tuple) else images) for images, _ in batches]
    return ((*batch, size / sum(sizes)) for batch, size in zip(batches, sizes, strict=True))


def loss_saliency(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, batches: Batches | None = None,
    train_mode: bool = False, parameters: Iterable[str] | None = None, loss: str | losses.Loss = "supervised",
    **_: object,
) -> Scores:  # fmt: skip
    """Signed synaptic saliency of the mean loss over `batches`: dL/dtheta * theta.

    With the cross entropy ("supervised") the negative of Skeletonization's score (Mozer and Smolensky 1989); its
    absolute value is SNIP's. `loss` is a name in `LOSSES`, for outputs [B, classes] and labels [B] (of a network that
    ends with a softmax, log-softmax or sigmoid, what comes in front of it, as cross entropies take it), or a function
    (outputs, labels) -> scalar of your own, a mean over the batch, for outputs and labels [B, ...] of any kind; for one
    that reads no labels they may be None: batches=[(images, None), ...]. Images are given in the model's dtype, but
    tokens (int32, int64) as they are to a model with an embedding. For a model of several inputs a batch is ((x, y),
    labels), and a function of your own gets whatever the model returns. `parameters` names what is scored (default: the
    prunable weights). Raises InputError for missing or misshapen batches and an unknown loss.
    """
    loss = losses.resolve(loss)
    checked = _checked(model, batches, "this saliency", loss)
    state = masked_state(model, masks)
    leaves = _leaves(model, state, parameters)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    with scoring_mode(model, state, train_mode), torch.enable_grad():
        for images, labels, weight in _weighted(checked):
            objective = _loss(model, images, labels, weight, loss=loss)
            parts = gradients(objective, list(leaves.values()), model)
            for sum_, part in zip(total.values(), parts, strict=True):
                sum_ += part
    return {name: (total[name] * leaf).detach() for name, leaf in leaves.items()}


def snip(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    batches: Batches | None = None,
    **options: object,
) -> Scores:
    """SNIP's connection sensitivity |dL/dtheta * theta| (Lee et al. 2019), the gradient averaged over `batches`.

    As in the SynFlow benchmark it is not divided by its sum, which changes no ranking. `loss` is that of
    `loss_saliency`: `functools.partial(snip, loss="uniform")` is a pruner that needs no labels (Lee et al. 2020).
    Raises InputError for missing or misshapen batches.
    """
    return {name: score.abs() for name, score in loss_saliency(model, masks, batches=batches, **options).items()}


def grasp(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, batches: Batches | None = None,
    train_mode: bool = False, parameters: Iterable[str] | None = None, temperature: float = 1.0,
    loss: str | losses.Loss = "supervised", **_: object,
) -> Scores:  # fmt: skip
    """GraSP (Wang et al. 2020): theta * Hg, where g is the gradient of the loss and H its Hessian.

    The paper's score is -theta * Hg and its highest are removed, so here the highest theta * Hg are kept: their
    removal would reduce the gradient's norm most. The published SynFlow curves kept the lowest (ERRATA 4); that is
    `prune(..., invert=True)`. `temperature` divides the outputs (200 in the GraSP authors' code, 1 here as in the
    benchmark). H g is g differentiated once more along a frozen g; g and H are over `parameters`, by default the
    prunable weights. `loss` is that of `loss_saliency`. Raises InputError for missing or misshapen batches and an
    unknown loss.
    """
    loss = losses.resolve(loss)
    checked = _checked(model, batches, "grasp", loss)
    state = masked_state(model, masks)
    leaves = _leaves(model, state, parameters)
    values = list(leaves.values())
    gradient = [torch.zeros_like(leaf) for leaf in values] if len(checked) > 1 else None
    product = [torch.zeros_like(leaf) for leaf in values]

    def objective(images: Inputs, labels: Tensor | None, weight: float) -> Tensor:
        return _loss(model, images, labels, weight, temperature, loss)

    # Of attention's implementations only the plain one can be differentiated twice.
    with scoring_mode(model, state, train_mode), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for images, labels, weight in _weighted(checked) if gradient else ():
            parts = gradients(objective(images, labels, weight), values, model)
            for sum_, part in zip(gradient, parts, strict=True):
                sum_ += part
        for images, labels, weight in _weighted(checked):
            parts = gradients(objective(images, labels, weight), values, model, create_graph=True)
            # Of a single batch g is at hand already.
            frozen = gradient or [part.detach() for part in parts]
            along = sum((part * g).sum() for part, g in zip(parts, frozen, strict=True))
            for sum_, part in zip(product, _second(along, values, model), strict=True):
                sum_ += part
    return {name: (leaf * part).detach() for (name, leaf), part in zip(leaves.items(), product, strict=True)}


def _second(along: Tensor, values: list[Tensor], model: nn.Module) -> tuple[Tensor, ...]:
    if not along.requires_grad:  # the loss is linear in all of them
        return tuple(torch.zeros_like(value) for value in values)
    try:
        return gradients(along, values, model)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise InputError(
            f"grasp needs second derivatives, and torch has none for an operation of {type(model).__name__} "
            f"({str(error).splitlines()[0]}): use another method, or another form of that operation"
        ) from error


def synaptic_flow(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, input_shape: Sequence[int],
    train_mode: bool = False, bypass_norm: bool = False,
) -> float:  # fmt: skip
    """R = 1' (prod_l |theta_l|) 1, the total flow from inputs of one to the outputs (Tanaka et al. 2020, eq. 2).

    Computed in float64; infinite where that overflows. `input_shape` is (C, H, W); the rest is as in `synflow`.
    """
    shape, state = example_shape(input_shape), _flow_state(model, masks, torch.float64, train_mode, bypass_norm)
    ones = torch.ones(1, *shape, dtype=torch.float64, device=next(iter(state.values())).device)
    with scoring_mode(model, state, train_mode), torch.no_grad():
        return float(logits(model, ones).sum())


def _flow_state(
    model: nn.Module, masks: Mapping[str, Tensor] | None, dtype: torch.dtype, train_mode: bool, bypass_norm: bool
) -> dict[str, Tensor]:
    if train_mode and bypass_norm:
        raise InputError("train_mode scores with BatchNorm's batch statistics and bypass_norm without any: choose one")
    return absolute_state(model, masks, dtype, bypass_norm)


def synflow(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, input_shape: Sequence[int] | None = None,
    train_mode: bool = False, bypass_norm: bool = False, parameters: Iterable[str] | None = None, **_: object,
) -> Scores:  # fmt: skip
    """SynFlow (Tanaka et al. 2020, eq. 3): saliency of R = 1' (prod_l |theta_l|) 1, one input of ones, no data.

    The network is that of `absolute_state`. So a trained network is scored with its |bias|, |gamma|, |beta| and
    running variances, and with running means of zero, as they are at initialisation. The outputs that R sums are those
    in front of a softmax, log-softmax or sigmoid that the network may end with. `bypass_norm` makes every
    BatchNorm the identity instead: the way to score residual blocks whose last scale begins at zero. Where LayerNorm
    or attention subtract, paths count negative, and R too may be: the scores are the absolute values. For which
    networks they are conserved `theory.assumptions` says; a call without masks warns of layers that score 0 throughout.

    The scores are in float32 at least. Where float32 cannot hold R or its shares they are computed, and returned, in
    float64; where float64 cannot either, as for ResNet-1202, as shares of R, all divided by one number, if the network
    is a `Program`. Raises InputError without `input_shape` (C, H, W), for `bypass_norm` together with `train_mode`, and
    where none of these can be had.
    """
    if input_shape is None:
        raise InputError(
            "synflow needs the shape of one input without the batch: pass input_shape=(3, 32, 32) or alike"
        )
    like, input_shape = _like(model), example_shape(input_shape)
    for dtype in dict.fromkeys((torch.promote_types(like.dtype, torch.float32), torch.float64)):
        state = _flow_state(model, masks, dtype, train_mode, bypass_norm)
        leaves = _leaves(model, state, parameters)
        with scoring_mode(model, state, train_mode), torch.enable_grad():
            ones = torch.ones(1, *input_shape, dtype=dtype, device=next(iter(leaves.values())).device)
            flow = logits(model, ones).sum()
            check_positive(model)
            parts = gradients(flow, list(leaves.values()), model)
        scores = {name: (leaf * g).detach().abs() for (name, leaf), g in zip(leaves.items(), parts, strict=True)}
        finite = all(bool(score.isfinite().all()) for score in scores.values())
        if finite and holds(abs(float(flow.detach())), dtype, sum(leaf.numel() for leaf in leaves.values())):
            if masks is None:
                unscored = [name for name, score in scores.items() if name in prunable(model) and not bool(score.any())]
                warn_unscored(model, unscored, bypass_norm)
            return scores
    if parameters is None and not train_mode:
        network = FlowNetwork(model, input_shape, bypass_norm, masks, torch.float64)
        if network.program is not None:
            return network.by_name()
    raise InputError(
        f"the synaptic flow of {type(model).__name__} is {float(flow.detach())} even in float64: scale its weights "
        f"{'up' if flow.abs() < 1 else 'down'}"
    )


def magnitude(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    parameters: Iterable[str] | None = None,
    **_: object,
) -> Scores:
    """The magnitude |theta| of each weight (Janowsky 1989; Han et al. 2015)."""
    state = masked_state(model, masks)
    return {name: leaf.detach().abs() for name, leaf in _leaves(model, state, parameters).items()}


def random(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, *, seed: int = 0,
    parameters: Iterable[str] | None = None, **_: object,
) -> Scores:  # fmt: skip
    """A uniform number in (0, 1] per weight, drawn on the CPU, so that one `seed` gives one mask on every device."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, leaf in _leaves(model, masked_state(model, None), parameters).items():
        drawn = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        # 0 is what a pruned weight scores, so a live one scores above it.
        scores[name] = ((1 - drawn) * (masks[name].cpu() if masks else 1)).to(devices.with_float64(leaf.device))
    return scores


SALIENCIES: dict[str, Callable[..., Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}
NEEDS_DATA = frozenset({"snip", "grasp"})


def synaptic_saliency(
    model: nn.Module, x: Tensor, scalar: Callable[[Tensor], Tensor] = torch.sum, *,
    masks: Mapping[str, Tensor] | None = None, train_mode: bool = False, parameters: Iterable[str] | None = None,
) -> Scores:  # fmt: skip
    """S = dR/dtheta * theta for any scalar R = `scalar`(outputs) of the input `x` (Tanaka et al. 2020, eq. 1).

    Signed, in the model's dtype, for all parameters (default) or those named. The general form that the theory
    chapters need; the model must take `x`, else InputError.
    """
    state = masked_state(model, masks)
    names = parameters if parameters is not None else [name for name, _ in model.named_parameters()]
    leaves = _leaves(model, state, names)
    with scoring_mode(model, state, train_mode), torch.enable_grad():
        parts = gradients(scalar(forward(model, x)), list(leaves.values()), model)
    return {name: (leaf * g).detach() for (name, leaf), g in zip(leaves.items(), parts, strict=True)}
