"""The flow graph has the units and edges that the network has."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import SHAPE, conv_chain, mlp, residual

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import Layer, flow_graph, per_edge


def test_a_chain_is_one_group_after_another():
    graph = flow_graph(conv_chain(), SHAPE)
    assert graph.sizes == [3, 6, 8, 5] and (graph.input, graph.output) == (0, 3) and graph.hidden == [1, 2]
    assert [(layer.source, layer.target) for layer in graph.layers] == [(0, 1), (1, 2), (2, 3)]
    assert [(scale.weight, scale.group) for scale in graph.scales] == [("1.weight", 1), ("5.weight", 2)]


def test_a_residual_sum_joins_the_units_that_it_adds():
    graph = flow_graph(residual(), SHAPE)
    group = {layer.weight: (layer.source, layer.target) for layer in graph.layers}
    stream = group["stem.weight"][1]
    assert group["inner.weight"][0] == group["outer.weight"][1] == group["shortcut.weight"][0] == stream
    assert group["last.weight"][1] == group["shortcut.weight"][1] == group["classifier.weight"][0]
    assert sorted(graph.sizes) == [3, 4, 5, 6, 8]


def test_resnet18_has_one_stream_per_stage():
    graph = flow_graph(models.build("resnet18", "cifar10", width=0.125), (3, 32, 32))
    writers = [sum(layer.target == group for layer in graph.layers) for group in graph.hidden]
    assert sorted(writers) == [1] * 8 + [3] * 4 and len(graph.layers) == 21


def test_edges_sum_over_kernels_positions_and_groups():
    graph = flow_graph(conv_chain(), SHAPE)
    saliency = torch.arange(5 * 32).double().view(5, 32)
    edges = per_edge(graph.layers[2], saliency, graph)  # 8 channels of 2x2 positions, flattened
    assert torch.equal(edges, saliency.view(5, 8, 4).sum(2))
    grouped = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = flow_graph(grouped, (4, 8, 8))
    assert graph.layers[0] == Layer("0.weight", "0.bias", 0, 1, groups=2)
    edges = per_edge(graph.layers[0], torch.ones(6, 2, 3, 3).double(), graph)
    assert torch.equal(edges, torch.block_diag(torch.full((3, 2), 9.0), torch.full((3, 2), 9.0)).double())


def test_torchvision_networks_are_understood():
    torchvision_models = pytest.importorskip("torchvision.models")
    for name, layers in (("alexnet", 8), ("vgg11_bn", 11), ("resnet18", 21), ("resnet50", 54), ("mnasnet0_5", 53)):
        assert len(flow_graph(torchvision_models.get_model(name), (3, 64, 64)).layers) == layers


class Multiplied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x) * self.second(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x) if x.sum() > 0 else x


class Coded(nn.Module):
    """Layers that `code` puts together."""

    def __init__(self, code):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.code = code

    def forward(self, x):
        return self.code(self, x)


def hooked(register):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    register(model)(lambda *_: None)
    return model


SUMMED = [
    lambda m, x: m.first(x) + m.second(x),
    lambda m, x: torch.add(m.first(x), m.second(x)),
    lambda m, x: m.first(x).add(m.second(x)),
    lambda m, x: torch.relu(m.first(x)).add_(m.second(x)),
]


@pytest.mark.parametrize("code", SUMMED)
def test_a_sum_is_one_however_it_is_written(code):
    graph = flow_graph(Coded(code), (3,))
    assert [(layer.source, layer.target) for layer in graph.layers] == [(0, 1), (0, 1)] and graph.sizes == [3, 3]


UNEQUAL = {
    "flattened in part": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)), "does not flatten everything"),
    "flattened in code": (Coded(lambda m, x: torch.flatten(m.wide(x), start_dim=2)), "does not flatten everything"),
    "with the batch": (Coded(lambda m, x: torch.flatten(m.wide(x))), "does not flatten everything"),
    "along a row": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 2)), "not flat"),
    "viewed": (Coded(lambda m, x: m.first(m.wide(x).view(-1, 4, 3))), "not flat"),
    "a broadcast sum": (Coded(lambda m, x: m.wide(x) + m.narrow(x)), "adds tensors of different shapes"),
    "another rank": (Coded(lambda m, x: m.wide(x) + m.wide(x).flatten(1)), "adds tensors of different shapes"),
    "a mean of everything": (Coded(lambda m, x: m.first(m.wide(x).mean())), "not one over positions"),
    "a mean of channels": (Coded(lambda m, x: m.wide(x).mean(1)), "not one over positions"),
    "a mean of the batch": (Coded(lambda m, x: m.wide(x).mean((0, 2))), "not one over positions"),
    "a mean of units": (Coded(lambda m, x: m.wide(x).flatten(1).mean(-1)), "not one over positions"),
    "pooled units": (nn.Sequential(nn.Flatten(), nn.AvgPool1d(3, 1, 1), nn.Linear(192, 2)), "not just the positions"),
    "pooled units in code": (Coded(lambda m, x: F.max_pool1d(m.wide(x).flatten(1), 3, 1, 1)), "not just the positions"),
    "pooled channels": (nn.Sequential(nn.Flatten(2), nn.MaxPool2d((1, 2))), "not"),
    "other units": (nn.Sequential(nn.Conv2d(4, 4, 1)), "reads 4 values, but what comes to it has 3 units"),
}


@pytest.mark.parametrize("case", UNEQUAL)
def test_units_that_do_not_match_are_refused(case):
    model, sentence = UNEQUAL[case]
    with pytest.raises(InputError, match=sentence):
        flow_graph(model, (3, 8, 8))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2]),
        lambda x: torch.mean(x, (2, 3)),
        lambda x: x.mean(dim=(2, 3), keepdim=True).flatten(1),
        lambda x: x.mean((2, 3), True).flatten(1),
        lambda x: x.mean(3).mean(2),
    ],
)
def test_a_mean_over_positions_is_pooling(pool):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.classifier(pool(torch.relu(self.features(x))))

    assert flow_graph(Pooled(), (3, 8, 8)).sizes == [3, 4, 2]


POOLED = {
    "kernel": lambda x: F.max_pool2d(x, 2),
    "keywords": lambda x: F.max_pool2d(x, kernel_size=2, stride=2, padding=0, ceil_mode=True),
    "mean": lambda x: F.avg_pool2d(x, (2, 2), count_include_pad=False),
    "all positions": lambda x: F.avg_pool2d(x, x.size(3)),
    "all positions of a shape": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 1),
    "activation": lambda x: F.gelu(F.relu6(x)).sigmoid(),
    "dropout": lambda x: F.dropout2d(x, training=False),
    "as it is": lambda x: x,
}


@pytest.mark.parametrize("reshape", [lambda x: x.view(-1, 192), lambda x: torch.reshape(x, (x.size(0), 192))])
def test_sizes_that_the_code_names_matter_behind_the_input_alone(reshape):
    class Viewed(nn.Module):
        def __init__(self, late):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1) if late else nn.Identity()
            self.last = nn.Linear(192, 2)

        def forward(self, x):
            return self.last(reshape(self.first(x)))

    early, late = (flow_graph(Viewed(late), (3, 8, 8)) for late in (False, True))
    assert not early.reshapes and early.sizes == [3, 2]
    assert late.reshapes and late.sizes == [3, 3, 2]


MORE = {
    "a reshape to sizes": (lambda x: x.view(x.size(0), 4, -1), "cannot follow 'view': use flatten"),
    "indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "no rule for the operation"),
    "a divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "nothing else that changes it"),
}


@pytest.mark.parametrize("case", POOLED)
def test_pooling_and_reshaping_in_code_keep_the_channels(case):
    def code(m, x):
        x = POOLED[case](torch.relu(m.wide(x)))
        return m.second(x.view(x.size(0), -1)) if case != "as it is" else x

    model = Coded(code)
    model.second = nn.Linear(4 * POOLED[case](torch.zeros(1, 4, 8, 8))[0, 0].numel(), 3)
    graph = flow_graph(model, (3, 8, 8))
    assert graph.sizes == ([3, 4, 3] if case != "as it is" else [3, 4]) and not graph.reshapes


@pytest.mark.parametrize("case", MORE)
def test_what_more_is_asked_of_pooling_and_reshaping_is_refused(case):
    code, sentence = MORE[case]
    with pytest.raises(InputError, match=sentence):
        flow_graph(Coded(lambda m, x: code(m.wide(x))), (3, 8, 8))


def test_whatever_flattens_all_but_the_batch_is_followed():
    for flatten in (nn.Flatten(), nn.Flatten(1, 3), nn.Flatten(-3)):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), flatten, nn.Flatten(), nn.Linear(256, 2))
        assert flow_graph(model, (3, 8, 8)).sizes == [3, 4, 2]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Coded(lambda m, x: torch.add(m.first(x), m.second(x), alpha=0.5)), "no rule for the operation"),
        (Coded(lambda m, x: torch.add(m.first(x), other=m.second(x))), "no rule for the operation"),
        (Coded(lambda m, x: m.first(input=x)), "must take one tensor, as its first argument"),
        (Coded(lambda m, x: torch.relu(input=m.first(x))), "must take one tensor, as its first argument"),
        (Coded(lambda m, x: (m.first(x), x)), "must take one tensor, as its first argument"),
        (Coded(lambda m, x: {"out": m.first(x)}), "must take one tensor, as its first argument"),
        (hooked(lambda model: model[0].register_forward_hook), "'0' has a forward hook"),
        (hooked(lambda model: model[1].register_forward_pre_hook), "'1' has a forward hook"),
        (hooked(lambda model: model.register_forward_hook), "'Sequential' has a forward hook"),
        (Multiplied(), "no rule for the operation"),
        (Branching(), "cannot be traced"),
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 3)), "no rule for Softmax"),
    ],
)
def test_what_the_graph_cannot_follow_is_named(model, sentence):
    with pytest.raises(InputError, match=sentence):
        flow_graph(model, (3,))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x, y):
        return self.first(x) + self.second(y)


def test_a_second_input_is_refused():
    with pytest.raises(InputError, match=r"no rule for the operation %y : .*placeholder"):
        flow_graph(TwoInputs(), (3,))


def test_mlp_units_are_its_neurons():
    assert flow_graph(mlp(), SHAPE).sizes == [3, 12, 9, 7, 5]
