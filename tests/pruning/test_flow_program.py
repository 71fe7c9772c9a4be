"""Kinds of position and powers of two change no score: the program is the network, at any depth."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from synflow_lib.models.tracing import trace
from synflow_lib.pruning import connected, flow_program, prunable, prune, synflow
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.flow_program import Taps, program
from synflow_lib.pruning.flow_steps import Ranges


class Block(nn.Module):
    """A basic residual block (He et al. 2016)."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def cifar_resnet(depth, width):
    """The CIFAR ResNets of He et al. (2016), 6n + 2 layers in three stages."""
    torch.manual_seed(0)
    layers, channels = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], width
    for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for index in range((depth - 2) // 6):
            layers.append(Block(channels, out, stride if index == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10, bias=False))


def shares(scores):
    """Every score over the sum of the last layer's, which all flow passes."""
    total = list(scores.values())[-1].double().sum()
    return {name: score.double() / total for name, score in scores.items()}


def assert_same_shares(model, input_shape, tolerance=1e-11):
    network = FlowNetwork(model, input_shape)
    assert network.program is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some chains read nothing but padding
        expected, ours = shares(synflow(model, input_shape=input_shape)), shares(network.by_name())
    for name, score in expected.items():
        torch.testing.assert_close(ours[name], score, rtol=tolerance, atol=0, msg=lambda text, n=name: f"{n}: {text}")


pairs = st.sampled_from([1, 2, 3, (1, 3), (3, 2)])
convolutions = st.tuples(st.just("conv"), pairs, st.sampled_from([1, 2, (1, 2)]), st.integers(0, 2), st.integers(1, 2))
pools = st.tuples(st.sampled_from(["max", "average"]), st.integers(2, 3), st.integers(1, 3), st.integers(0, 1))
others = st.tuples(st.sampled_from(["norm", "relu", "residual", "adaptive"]))


def layer(kind, channels, *sizes):
    if kind == "conv":
        kernel, stride, padding, dilation = sizes
        return nn.Conv2d(channels, 3, kernel, stride, padding, dilation)
    if kind == "max":
        return nn.MaxPool2d(sizes[0], sizes[1], sizes[2])
    if kind == "average":
        return nn.AvgPool2d(sizes[0], sizes[1], sizes[2])
    others = {
        "norm": lambda: nn.BatchNorm2d(channels),
        "relu": nn.ReLU,
        "residual": lambda: Block(channels, channels, 1),
        "adaptive": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    }
    return others[kind]()


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(convolutions | pools | others, min_size=1, max_size=7),
    size=st.tuples(st.integers(4, 13), st.integers(4, 13)),
    seed=st.integers(0, 1000),
)
def test_any_chain_of_operations_scores_as_the_network_run_as_it_is(kinds, size, seed):
    torch.manual_seed(seed)
    layers, channels = [], 2
    for kind in kinds:
        layers.append(layer(kind[0], channels, *kind[1:]))
        channels = 3 if kind[0] == "conv" else channels
    body = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for name, tensor in body.state_dict().items():  # as after training
            if "running" in name or "bias" in name:
                tensor.add_(torch.rand_like(tensor))
        try:
            features = body(torch.ones(1, 2, *size, dtype=torch.float64))[0].numel()
        except RuntimeError:
            assume(False)  # a window larger than the map
    assert_same_shares(nn.Sequential(body, nn.Flatten(), nn.Linear(features, 4).double()), (2, *size))


def test_positions_that_see_the_same_are_computed_once():
    model = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3)])
    compiled = program(model, trace(model), (3, 32, 32), torch.empty(0))
    assert [step.taps.shape[0] for step in compiled.steps] == [3 * 3, 5 * 5, 7 * 7]
    assert int(compiled.counts.sum()) == 32 * 32


@given(
    rows=st.integers(1, 6), index=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=5)
)
@settings(max_examples=100, deadline=None)
def test_spreading_is_the_adjoint_of_gathering(rows, index):
    taps = Taps(torch.tensor(index).clamp(max=rows), rows)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 2, generator=generator, dtype=torch.float64)
    g = torch.rand(len(index), 3 * 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((taps.gather(x) * g).sum(), (x * taps.spread(g)).sum())


def test_resnet_110_scores_as_float64_does_where_float32_overflows():
    model = cifar_resnet(110, 4)
    assert_same_shares(model.double(), (3, 16, 16), 1e-10)


def test_a_thousand_layers_score_as_the_same_layers_scaled_into_range():
    torch.manual_seed(0)
    layers = [layer for _ in range(999) for layer in (nn.Linear(8, 8, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(8, 5, bias=False)).double()
    deep = FlowNetwork(model, (8,)).by_name()
    with torch.no_grad():
        for weight in model.parameters():
            weight /= weight.abs().sum(1).mean()  # a factor on a whole layer changes no share
    expected = shares(synflow(model, input_shape=(8,)))
    for name, score in shares(deep).items():
        torch.testing.assert_close(score, expected[name], rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resnet_1202_conserves_its_flow_beyond_what_float64_holds(dtype):
    model = cifar_resnet(1202, 2).to(dtype)
    scores = FlowNetwork(model, (3, 8, 8)).by_name()
    total = {name: float(score.double().sum()) for name, score in scores.items()}
    near = pytest.approx(1, rel=1e-3 if dtype == torch.float32 else 1e-9)
    assert total["0.weight"] == near and list(total.values())[-1] == near  # shares of R, which float64 cannot hold
    for name, module in model.named_modules():
        if isinstance(module, Block):  # what flows into a block's branch flows out of it
            assert total[f"{name}.conv1.weight"] == pytest.approx(total[f"{name}.conv2.weight"], rel=near.rel)


def test_resnet_152_is_pruned_at_imagenet_size_in_float32():
    torch.manual_seed(0)
    model = pytest.importorskip("torchvision.models").resnet152()
    masks = prune(model, "synflow", 5, input_shape=(3, 224, 224), iterations=5)
    assert masks.kept == -(-masks.total // 5)
    assert connected(model, masks, (3, 224, 224))


def test_the_model_and_its_weights_are_left_alone():
    model = cifar_resnet(8, 4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = FlowNetwork(model, (3, 8, 8))
    network.keep(network.scores() > 0.001)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in prunable(model).values()) and model.training


def iterated(network, keep=0.97, times=60, between=lambda network: None):
    """All scores of an iterated pruning, and how many numbers were looked at for each pass."""
    looks, scores, number = [], [], torch.Tensor.__float__

    def look(tensor):
        looks[-1] += 1
        return number(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__float__", look)
        for _ in range(times):
            looks.append(0)
            scores.append(network.scores().clone())
            left = max(1, int(keep * network.left))
            network.keep(torch.zeros_like(network.live).index_fill_(0, scores[-1].topk(left).indices, True))
            between(network)
    return scores, looks


DEEP = {
    "chain": lambda: nn.Sequential(*[nn.Linear(24, 24) for _ in range(40)], nn.Linear(24, 3)),
    "residual": lambda: cifar_resnet(14, 4),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_magnitudes_give_the_same_bits_and_spare_the_looks(name, dtype, monkeypatch):
    torch.manual_seed(0)
    model, shape = DEEP[name]().to(dtype).eval(), (24,) if name == "chain" else (3, 16, 16)
    expected, often = iterated(FlowNetwork(model, shape))
    monkeypatch.setattr(flow_program, "waits", lambda device: True)
    found, seldom = iterated(FlowNetwork(model, shape))
    assert all(map(torch.equal, found, expected))
    assert min(often) > 40 and seldom[0] > 40 and seldom.count(0) == len(seldom) - 1


def test_known_magnitudes_that_do_not_hold_are_not_used(monkeypatch):
    """Flow that grows and falls by 2**64 from one pass to the next, and a network that is cut in two."""
    model = nn.Sequential(*[nn.Linear(12, 12, bias=False) for _ in range(41)])
    factors = iter([2.0**64, 2.0**-64] * 3)

    def grow(network):
        factor = next(factors, 0.0)
        span = network.spans[20]
        network.theta[span.start : span.stop] *= factor

    monkeypatch.setattr(flow_program, "waits", lambda device: True)
    found, looks = iterated(FlowNetwork(model, (12,)), keep=1.0, times=8, between=grow)
    assert all(torch.equal(scores, found[0]) for scores in found[:7]) and not found[7].any()
    assert all(look > 40 for look in looks)
    with pytest.raises(ValueError, match="infinite or not a number"):
        iterated(FlowNetwork(model, (12,)), keep=1.0, times=2, between=lambda network: network.theta.fill_(torch.inf))


@pytest.mark.parametrize(("least", "held"), [(1.0, True), (0.0, False), (torch.inf, False), (torch.nan, False)])
def test_a_pass_holds_where_its_flow_and_scores_do_too(least, held):
    ranges = Ranges([5, None])
    assert ranges.power(torch.tensor([20.0]), 0) == 0 == ranges.power(torch.zeros(1), 3)
    assert ranges.positive(torch.tensor(least), "wrong")  # for now
    assert ranges.held() is held
    assert ranges.magnitudes == ([5, None] if held else [])


def test_a_number_that_is_looked_at_counts_at_once():
    ranges = Ranges()
    assert ranges.positive(torch.tensor(1.0), "wrong") and not ranges.positive(torch.tensor(0.0), "wrong")
    for number in (torch.inf, -torch.inf, torch.nan):
        with pytest.raises(ValueError, match="out of range"):
            ranges.positive(torch.tensor(number), "out of range")


class Two(nn.Module):
    """Two layers and a head that `join` puts together."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.last = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.bilinear, self.join = nn.Bilinear(6, 6, 6), join
        self.double()

    def forward(self, x):
        return self.last(self.join(self, self.one(x)))


def assert_run_as_it_is(model, input_shape):
    """There is no program, and the scores, as shares, are those of `synflow`."""
    network = FlowNetwork(model, input_shape)
    assert network.program is None
    found, expected = shares(network.by_name()), shares(synflow(model, input_shape=input_shape))
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-11, atol=0)


JOINS = {
    "a weighted sum": lambda m, h: torch.add(h, m.two(h), alpha=0.01),
    "a sum by keyword": lambda m, h: torch.add(h, other=m.two(h)),
    "a layer by keyword": lambda m, h: m.two(input=h),
    "a layer of two inputs": lambda m, h: m.bilinear(h, m.two(h)),
    "a function by keyword": lambda m, h: torch.relu(input=m.two(h)),
}


@pytest.mark.parametrize("name", JOINS)
def test_what_an_operation_is_told_besides_is_not_passed_over(name):
    assert_run_as_it_is(Two(JOINS[name]), (6,))


@pytest.mark.parametrize("join", [lambda m, h: (h, h), lambda m, h: {"out": h}])
def test_a_network_that_returns_more_than_a_tensor_is_one_sentence(join):
    model = Two(join)
    model.last = nn.Identity()
    with pytest.raises(ValueError, match="must return one tensor"):
        FlowNetwork(model, (6,)).scores()


def test_sizes_may_be_lists_and_keywords():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.pool = nn.Conv2d(3, 4, [3, 3], padding=[1, 1]), nn.MaxPool2d([2, 2])
            self.last = nn.Linear(16, 2)

        def forward(self, x):
            x = F.adaptive_avg_pool2d(F.relu(self.pool(self.first(x)), inplace=True), output_size=[2, 2])
            return self.last(torch.flatten(x, start_dim=1))

    assert_same_shares(Pooled().double(), (3, 8, 8))


IN_CODE = {
    "maximum": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "average": lambda x: F.avg_pool2d(x, kernel_size=(2, 3), stride=2, padding=1, count_include_pad=False),
    "dropped": lambda x: F.dropout2d(F.leaky_relu(x), training=False),
    "mean": lambda x: x.mean((2, 3)),
    "a number": lambda x: x.view(-1, 324),
    "a number and the batch": lambda x: torch.reshape(x, (x.size(0), 324)),
    "mean of the last two": lambda x: torch.mean(x, [-1, -2], keepdim=True),
}


class PooledInCode(nn.Module):
    """A convolution, whatever `code` does with it, a view that flattens, a linear layer."""

    def __init__(self, code):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.code = nn.Conv2d(3, 4, 3, padding=1), code
        self.last = nn.Linear(code(torch.zeros(1, 4, 9, 9)).numel(), 2)
        self.double()

    def forward(self, x):
        x = self.code(F.relu(self.first(x)))
        return self.last(x.view(x.size(0), -1))


@pytest.mark.parametrize("name", IN_CODE)
def test_pooling_and_reshaping_in_code_is_what_it_is_as_modules(name):
    assert_same_shares(PooledInCode(IN_CODE[name]), (3, 9, 9))


AS_IT_IS = {
    "rows and columns in turn": lambda x: x.mean(3).mean(2),
    "a size": lambda x: F.avg_pool2d(x, x.size(3)),
    "a ceiling": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "a divisor": lambda x: F.avg_pool2d(x, 3, divisor_override=2),
}


@pytest.mark.parametrize("name", AS_IT_IS)
def test_other_pooling_in_code_is_run_as_it_is(name):
    assert_run_as_it_is(PooledInCode(AS_IT_IS[name]), (3, 9, 9))


def test_a_window_larger_than_the_map_is_one_sentence():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(50), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="cannot take an input of shape"):
        prune(model, "synflow", 2, input_shape=(3, 8, 8))


def hooked(model):
    gate = torch.tensor([1.0, 1, 1, 0, 0, 0]).double()
    model[0].register_forward_hook(lambda module, inputs, output: output * gate)


def hooked_before(model):
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * torch.arange(6.0),))


@pytest.mark.parametrize("hook", [hooked, hooked_before])
def test_hooks_count(hook):
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    hook(model)
    assert_run_as_it_is(model, (6,))


def tied_bias(model):
    model[4].bias = model[0].bias


def tied_scale(model):
    model[3].weight = model[1].weight


def tied_variance(model):
    model[3].running_var = model[1].running_var.fill_(3)


def tied_weight(model):
    model[4].weight = model[0].weight


def parametrized(index, name):
    return lambda model: parametrize.register_parametrization(model[index], name, nn.Softplus())


@pytest.mark.parametrize(
    "change",
    [tied_bias, tied_scale, tied_variance, tied_weight]
    + [parametrized(index, name) for index in (0, 1, 6) for name in ("weight", "bias")],
)
def test_what_is_shared_or_computed_from_others_counts(change):
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(3 * 16, 2)]
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), *head
    )
    for tensor in (*model.parameters(), model[1].running_var):
        nn.init.uniform_(tensor, 1, 2)
    change(model.double())
    assert_run_as_it_is(model, (3, 8, 8))
    assert connected(model, {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()}, (3, 8, 8))
