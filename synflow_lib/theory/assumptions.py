"""Whether the theorems cover a network, found out twice: by reading its operations, and by measuring its flow.

The conservation laws need an output that is positively homogeneous of degree 1 in the input and the additive
parameters together (biases, betas, embeddings that are added: edges from a constant input of 1). Twice the input and
twice those parameters then give twice the output, and by Euler's theorem the flow that enters is the flow that leaves:

    <dR/dx, x> + sum over additive parameters b of S(b) = R.

This is Theorem 2 for the cuts at the two ends. Reading asks of every operation whether it keeps that property;
measuring evaluates both sides in SynFlow's own network: absolute parameters, an input of ones, float64. Where the
property fails SynFlow's scores are a heuristic: they need not be conserved, and a saturated activation makes them 0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import fx, nn

from synflow_lib import devices
from synflow_lib.errors import InputError, few
from synflow_lib.models.flow_graph import BATCH_NORM
from synflow_lib.models.nodes import kind, only_ends
from synflow_lib.models.tracing import trace
from synflow_lib.pruning.compact import check_compactable
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.passes import logits
from synflow_lib.pruning.state import absolute_state, gradients, scoring_mode

# Operations go by one name, as module (MaxPool2d), function (max_pool2d) or method (relu_): maxpool, relu.
# On the nonnegative numbers that SynFlow sends ELU, CELU and SELU are linear too; for the saliency of a loss they fail.
HOMOGENEOUS = (
    r"identity|.*dropout|stochasticdepth|(leaky|p|r)?relu|[cs]?elu|linear|conv(transpose)?|batchnorm|(adaptive)?(max|avg)"
    r"pool|a?max|mean|sum|upsample|interpolate|(un)?flatten|reshape|view|permute|transpose|movedim|swapaxes|(un)?squeeze|"
    r"expand|repeat|contiguous|clone|to|float|double|chunk|split|unbind|getitem|roll|.*pad|pixel(un)?shuffle|channelshuffle"
)
JOIN, SUM, PRODUCT = r"cat|concat|stack", r"i?(add|sub)", r"i?(mul|truediv)|multiply|div|matmul|b?mm|einsum"
BIAS_AT = {"linear": 2, "conv": 2, "convtranspose": 2, "batchnorm": 4}  # among a function's arguments
SIZE = r"size|dim|getattr|len|eq|ne|[lg][te]|assert"
BREAKS = {
    "is not linear on positive numbers": (
        r"gelu|silu|mish|tanh|(log|hard)?sigmoid|hardswish|softplus|softsign|tanhshrink|glu|exp|log|sqrt|pow"
    ),
    "saturates": r"relu6|hardtanh|clamp|clip",
    "divides by the size of its own input": r"(layer|group|instance|rms|localresponse)norm|normalize",
    "weighs values by a softmax of values": r".*attention|softmax",
}

# One small network for each family of torchvision's classifiers, with what it needs to take small images.
FAMILIES: dict[str, dict[str, object]] = {
    "alexnet": {},
    "vgg11_bn": {},
    "resnet18": {},
    "resnext50_32x4d": {},
    "wide_resnet50_2": {},
    "densenet121": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "convnext_tiny": {},
    "swin_t": {},
    "vit_b_16": {"image_size": 32},
}
SMALLEST = {"alexnet": 64}  # images; the others take 32 x 32


UNEXPLAINED = 1e-6  # a deviation that is no rounding, in float64
# A gate that is saturated, or a ReLU6 that is not, keeps the property by chance: so it is measured at many sizes.
SIZES_MEASURED = (1.0, 2.0**-8, 2.0**-16)


@dataclass(frozen=True)
class Assumptions:
    """What was read and what was measured of one network.

    `breaks` names the kinds of operation that break the theorems' assumptions, `reasons` has a sentence for each.
    `deviation` is |flow in - flow out| / flow out for SynFlow's input of ones, `worst` the largest when the input and
    the additive parameters are made smaller together by any of `SIZES_MEASURED`. Where nothing breaks the assumptions
    both are 0 to rounding.
    """

    breaks: tuple[str, ...]
    reasons: tuple[str, ...]
    deviation: float
    worst: float

    @property
    def holds(self) -> bool:
        """Whether every operation that was read keeps the assumptions."""
        return not self.breaks


def assumptions(model: nn.Module, input_shape: Sequence[int], *, bypass_norm: bool = False) -> Assumptions:
    """Say whether the conservation laws cover SynFlow's scores of `model`, by reading its code and by measuring.

    `input_shape` is that of one example, (C, H, W); `bypass_norm` is that of `synflow`. The model is not changed.
    Raises InputError where torch.fx cannot follow the code, where the model cannot take such an input, and where the
    flow is zero or more than float64 holds.
    """
    reader = _Reader(model)
    deviations = _deviations(model, input_shape, reader.additive, bypass_norm)
    if not reader.broken and max(deviations) > UNEXPLAINED:
        reader.broken[""] = "unexplained", "is how its flow is lost, which is measured", ["no operation that was read"]
    broken = reader.broken.values()
    reasons = tuple(f"{what} {why}: {few(where)}" for what, why, where in broken)
    return Assumptions(tuple(what for what, _, _ in broken), reasons, deviations[0], max(deviations))


def _deviations(
    model: nn.Module, input_shape: Sequence[int], additive: Iterable[str], bypass_norm: bool
) -> list[float]:
    """|<dR/dx, x> + sum S(b) - R| / R for each of `SIZES_MEASURED`, over the parameters b named in `additive`."""
    state = absolute_state(model, None, torch.float64, bypass_norm)
    device = next(iter(state.values())).device
    added = {name: state[name] for name in sorted(additive)}
    deviations = []
    for size in SIZES_MEASURED:
        x = torch.full((1, *input_shape), size, dtype=torch.float64, device=device, requires_grad=True)
        smaller = {name: (size * value).requires_grad_() for name, value in added.items()}
        leaves = [x, *smaller.values()]
        with scoring_mode(model, state | smaller), torch.enable_grad():
            flow = logits(model, x).sum()
            parts = gradients(flow, leaves, model)
        leaving = flow.detach()
        if not 0 < leaving.abs() < torch.inf:
            raise InputError(
                f"the flow through {type(model).__name__} is {float(leaving)}: there is nothing to conserve"
            )
        entering = sum((leaf.detach() * g).sum() for leaf, g in zip(leaves, parts, strict=True))
        deviations.append(float(((entering - leaving) / leaving).abs()))
    return deviations


def torchvision_table(names: Iterable[str] = tuple(FAMILIES), size: int = 32, seed: int = 0) -> pd.DataFrame:
    """`assumptions` for torchvision's classifiers, untrained, with 10 classes and images of `size` x `size`.

    AlexNet gets 64 x 64 at least. Columns: `network`, `theorem` ("holds", or "heuristic" where SynFlow's scores need
    not be conserved), `because` (what breaks it), `deviation` and `worst` (measured), `layers` and `unscored` (how
    many of them SynFlow scores 0 throughout), `quick` (whether SynFlow runs as matrix products) and `compacts`
    (whether `compact` can follow the network). Raises InputError for what `assumptions` cannot read or measure.
    """
    rows = []
    for name in names:
        side = max(size, SMALLEST.get(name, 0))
        model, shape = torchvision_model(name, side, seed).eval(), (3, side, side)
        found, network = assumptions(model, shape), FlowNetwork(model, shape)
        scores = [network.scores()[span.start : span.stop] for span in network.spans]
        rows.append(
            {
                "network": name,
                "theorem": "holds" if found.holds else "heuristic",
                "because": ", ".join(found.breaks),
                "deviation": found.deviation,
                "worst": found.worst,
                "layers": len(scores),
                "unscored": sum(not bool(layer.any()) for layer in scores),
                "quick": network.program is not None,
                "compacts": _compacts(model, shape),
            }
        )
    return pd.DataFrame(rows)


def torchvision_model(name: str, size: int = 32, seed: int = 0) -> nn.Module:
    """Build torchvision's classifier `name` without trained weights, for 10 classes and images of `size` x `size`.

    A head that begins at zero (the vision transformers') is drawn as torch.nn.Linear draws it: nothing would flow. The
    caller's random state is left as it was.
    """
    from torchvision.models import get_model

    settings = FAMILIES.get(name, {})
    with devices.seeded(seed, torch.device("cpu")):
        model = get_model(name, num_classes=10, **settings | ({"image_size": size} if "image_size" in settings else {}))
        for module in model.modules():
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                module.reset_parameters()
    return model


def _compacts(model: nn.Module, input_shape: Sequence[int]) -> bool:
    try:
        check_compactable(model, input_shape)
    except InputError:
        return False
    return True


class _Reader:
    """Walks the traced code once: which values depend on the input, and which operations treat them how."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.parameters = {name for name, _ in model.named_parameters()}
        self.broken: dict[str, tuple[str, str, list[str]]] = {}
        # What is added: every bias, and whatever the code itself adds (embeddings, tokens that are concatenated).
        self.additive = {name for name in self.parameters if name.endswith("bias")}
        graph = trace(model)
        self.flows: dict[fx.Node, bool] = {}
        self.made_of: dict[fx.Node, set[str]] = {}
        for node in graph.nodes:
            own = {str(node.target)} if node.op == "get_attr" else set()
            self.made_of[node] = own.union(*(self.made_of[x] for x in node.all_input_nodes))
            self.flows[node] = node.op == "placeholder" or any(self.flows[x] for x in node.all_input_nodes)
            if self.flows[node] and node.op.startswith("call"):
                self.flows[node] = self._read(node)

    def _read(self, node: fx.Node) -> bool:
        """Note what the operation breaks; return whether its result is a value, not a size."""
        module = self.modules[node.target] if node.op == "call_module" else None
        called, where = (node.target, str(node)) if module is None else (module, node.target)
        name = type(module).__name__ if module is not None else str(getattr(called, "__name__", called))
        what = kind(called)
        if re.fullmatch(SIZE, what):
            return False
        if only_ends(node, self.modules):
            return True
        why = next((why for why, names in BREAKS.items() if re.fullmatch(names, what)), None)
        if what in ("clamp", "clip", "clampmin") and _at_zero(node):
            why, what = None, "relu"
        if why:
            self._break(what, name, why, where)
        elif isinstance(module, BATCH_NORM) and module.running_var is None:
            self._break(what, name, "uses the statistics of its own input", where)
        elif re.fullmatch(f"{JOIN}|{SUM}", what):
            self._sum(node, _given(node, "other") if re.fullmatch(SUM, what) else _given(node, "tensors")[0])
        elif re.fullmatch(PRODUCT, what):
            if sum(self.flows[x] for x in _inputs(node)) > 1:
                self._break("product", "product", "multiplies values that both depend on the input", where)
            elif "div" in what and self.flows.get(_given(node, "other")[1]):
                self._break("quotient", "quotient", "divides by values that depend on the input", where)
        elif what.endswith("pad") and _padded_with(node, module) not in (None, 0):
            self._break("constant", "constant", "is added that is no parameter", where)
        elif module is None and what in BIAS_AT:
            self._weighted(node, BIAS_AT[what], where)
        elif not re.fullmatch(HOMOGENEOUS, what):
            self._break(what, name, "has no rule here", where)
        return True

    def _weighted(self, node: fx.Node, bias_at: int, where: str) -> None:
        """A layer written as a function: what it adds is additive, and its weight must not depend on the input."""
        bias = node.kwargs.get("bias", node.args[bias_at] if len(node.args) > bias_at else None)
        if isinstance(bias, fx.Node):
            self.additive |= self.made_of[bias] & self.parameters
        if sum(self.flows[x] for x in _inputs(node)) > 1:
            self._break("product", "product", "multiplies values that both depend on the input", where)

    def _sum(self, node: fx.Node, parts: fx.Node | Sequence[object]) -> None:
        for part in [parts] if isinstance(parts, fx.Node) else parts:
            if isinstance(part, fx.Node) and self.flows[part]:
                continue
            names = self.made_of[part] if isinstance(part, fx.Node) else set()
            if not names or not names <= self.parameters:
                self._break("constant", "constant", "is added that is no parameter", str(node))
            self.additive |= names & self.parameters

    def _break(self, kind: str, what: str, why: str, where: str) -> None:
        self.broken.setdefault(kind, (what, why, []))[2].append(where)


def _given(node: fx.Node, last: str) -> tuple[object, ...]:
    """The first two arguments of an operation, which may be called `input` and `last`."""
    return (*node.args, *(node.kwargs[name] for name in ("input", last) if name in node.kwargs))[:2]


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes that an operation takes, by position and by name, each as often as it does."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _at_zero(node: fx.Node) -> bool:
    """Whether a clamp is from 0 upwards, as ReLU is."""
    low, high = (*node.args[1:], None, None)[:2]
    return node.kwargs.get("min", low) == 0 and node.kwargs.get("max", high) is None


def _padded_with(node: fx.Node, module: nn.Module | None) -> object:
    if module is not None:
        return getattr(module, "value", None)
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
