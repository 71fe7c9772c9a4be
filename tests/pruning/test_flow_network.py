"""The shortened SynFlow is the plain loop of Algorithm 1: the same scores, the same masks."""

import copy

import pytest
import torch
from torch import nn
from toys import NETWORKS, SHAPE, conv_chain, mlp

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import CONVOLUTION
from synflow_lib.pruning import Masks, keep_best, prunable, prune, rho_max, synaptic_flow, synflow
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.flow_program import Program
from synflow_lib.pruning.prune import best, number_kept
from synflow_lib.pruning.schedule import SCHEDULES
from synflow_lib.pruning.select import largest


def plain(model, compression, input_shape, iterations, schedule="exponential", scope="global"):
    live = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    for k in range(1, iterations + 1):
        scores = synflow(model, live, input_shape=input_shape)
        live = keep_best(scores, live, SCHEDULES[schedule](k, iterations, compression), scope)
    return Masks(live)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masks_of_toys_are_those_of_the_plain_loop(network, scope, schedule, dtype):
    model = NETWORKS[network]().to(dtype)
    options = {"input_shape": SHAPE, "iterations": 30, "schedule": schedule, "scope": scope}
    assert same(prune(model, "synflow", 25, **options), plain(model, 25, **options))


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mlp"])
@pytest.mark.parametrize("compression", [10, 300])
def test_masks_of_the_papers_networks_are_those_of_the_plain_loop(name, compression):
    model = models.build(name, "digits", width=0.125).double()
    fast = prune(model, "synflow", compression, input_shape=(3, 32, 32), iterations=50)
    assert same(fast, plain(model, compression, (3, 32, 32), 50))


def normalised(scores):
    """Divided by the largest: all that is promised is one common factor."""
    top = max(float(score.max()) for score in scores.values())
    return {name: score / top for name, score in scores.items()}


@pytest.mark.parametrize("network", ["vgg11", "resnet18", "mlp"])
def test_units_are_cut_out_and_the_scores_of_the_rest_stay(network):
    model = models.build(network, "digits", width=0.25).double()
    quick = FlowNetwork(model, (3, 32, 32))
    stored = len(quick.live)
    for k in range(1, 21):
        quick.keep(best(quick, 100 ** (-k / 20)))
        if k % 5:
            continue
        live = quick.masks()
        expected, ours = (normalised(x) for x in (synflow(model, live, input_shape=(3, 32, 32)), quick.by_name()))
        for name, score in expected.items():
            assert torch.allclose(ours[name], score, rtol=1e-11, atol=0), name
    assert len(quick.live) < stored / 5 and quick.left == Masks(live).kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marks_made_while_scoring_are_those_of_the_stored_scores(dtype):
    network = FlowNetwork(models.build("vgg11", "digits", width=0.25).to(dtype), (3, 32, 32))
    total, guessed, network.summed = len(network.live), 0, True
    for k in range(1, 61):
        number = number_kept(total, 100 ** (-k / 60))
        guessed += (marks := network.sift(number)) is not None
        unmarked = network.unmarked
        expected, _ = largest(scores := network.scores(), number, network.position)
        if marks is not None:
            assert torch.equal(marks, expected)
            assert unmarked == pytest.approx(float(scores[~expected].double().sum()), rel=1e-6)
        network.keep(expected)
    assert guessed > 50


def test_the_border_is_guessed_well_enough_while_the_network_is_large(monkeypatch):
    passes, scores = [], Program.scores
    monkeypatch.setattr(Program, "scores", lambda self, *rest: passes.append(self) or scores(self, *rest))
    network = FlowNetwork(models.build("vgg19", "cifar10", width=0.25), (3, 32, 32))
    for k in range(1, 41):
        network.keep(best(network, SCHEDULES["exponential"](k, 100, 2.0**12)))
    assert 42 <= len(passes) <= 46  # two that a sample shows the border, one for each other, two for a miss


def test_the_model_is_not_changed_not_even_when_scoring_raises():
    model = conv_chain().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune(model, "synflow", 20, input_shape=SHAPE)
    with pytest.raises(InputError, match="cannot take an input of shape"):
        prune(model, "synflow", 20, input_shape=(5, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_trained_networks_with_biases_and_statistics_agree_too():
    model = conv_chain()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
            tensor += 0.3 * torch.rand(tensor.shape, generator=generator).double()
    assert same(prune(model, "synflow", 15, input_shape=SHAPE, iterations=40), plain(model, 15, SHAPE, 40))


def test_weights_that_carry_no_flow_go_first_and_removed_ones_never_return():
    model = mlp(bias=False)
    with torch.no_grad():
        model[3].weight[:, :6] = 0  # half of the first hidden layer leads nowhere
    assert same(prune(model, "synflow", 1.5, input_shape=SHAPE, iterations=5), plain(model, 1.5, SHAPE, 5))


class Multiplied(nn.Module):
    """A network that has no program: the product of two branches."""

    def __init__(self, size=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter *= size

    def forward(self, x):
        return self.last(self.first(x) * self.gate(x))


def test_a_network_that_has_no_program_is_run_as_it_is():
    model = Multiplied().double()
    assert FlowNetwork(model, (6,)).program is None
    assert same(prune(model, "synflow", 10, input_shape=(6,), iterations=20), plain(model, 10, (6,), 20))


class Branching(nn.Module):
    """A network that does something else in train mode, as those with auxiliary outputs do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return (self.last(x), x) if self.training else self.last(self.middle(x))


def test_the_network_of_eval_mode_is_scored_in_whatever_mode_the_model_is():
    model = Branching().double()
    options = {"input_shape": (6,), "iterations": 20}
    assert same(prune(model.train(), "synflow", 8, **options), prune(model.eval(), "synflow", 8, **options))
    assert prune(model.train(), "synflow", 8, **options)["middle.weight"].any() and model.training


def test_it_turns_from_float32_to_float64_where_the_flow_overflows():
    large, larger = Multiplied(1e15), Multiplied(1e15).double()
    options = {"input_shape": (6,), "iterations": 20}
    assert same(prune(large, "synflow", 8, **options), prune(larger, "synflow", 8, **options))


@pytest.mark.parametrize("flow", [1e-36, 1e-40, 1e-43])
def test_it_turns_to_float64_before_float32_rounds_scores_to_zero(flow):
    """Grouped convolutions have no program."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(16, 16, 1, groups=4, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[-1].weight *= flow / synaptic_flow(model, input_shape=(16, 1, 1))
    network, exact = FlowNetwork(model, (16, 1, 1)), synflow(copy.deepcopy(model).double(), input_shape=(16, 1, 1))
    assert network.program is None
    for scores in (network.by_name(), synflow(model, input_shape=(16, 1, 1))):
        for name, score in exact.items():
            assert torch.allclose(scores[name].double(), score, rtol=1e-5, atol=0)


def test_half_precision_is_scored_in_float32_at_least():
    model = mlp(bias=False).half()
    scores, exact = (synflow(m, input_shape=SHAPE) for m in (model, copy.deepcopy(model).double()))
    for name, score in exact.items():
        assert scores[name].dtype == torch.float32
        assert torch.allclose(scores[name].double(), score, rtol=1e-5, atol=0)


class Remembering(Multiplied):
    """Keeps what it computed, as code does that is looked into."""

    def forward(self, x):
        self.features = self.first(x) + self.gate(x)
        return self.last(self.features)


def test_nothing_of_the_code_that_was_read_stays_in_the_model():
    model = Remembering()
    prune(model, "synflow", 3, input_shape=(6,))
    assert not hasattr(model, "features")
    features = model.features = model(torch.ones(1, 6))
    prune(model, "synflow", 3, input_shape=(6,))
    assert model.features is features


def test_a_flow_that_float64_cannot_hold_is_one_sentence_where_there_is_no_program():
    with pytest.raises(InputError, match="even in float64"):
        prune(Multiplied(1e120).double(), "synflow", 2, input_shape=(6,))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_one_sentence(value):
    model = conv_chain()
    with torch.no_grad():
        model[4].weight[2, 3, 0, 0] = value
    with pytest.raises(InputError, match="infinite or not a number"):
        prune(model, "synflow", 2, input_shape=SHAPE)


@pytest.mark.parametrize("size", [2.0**-600, 2.0**-300, 2.0**300, 2.0**600])
def test_a_factor_on_all_weights_changes_no_mask_however_large(size):
    model, scaled = mlp(bias=False), mlp(bias=False)
    with torch.no_grad():
        for weight in scaled.parameters():
            weight *= size
    assert not 0 < synaptic_flow(scaled, input_shape=SHAPE) < torch.inf
    options = {"input_shape": SHAPE, "iterations": 30}
    assert same(prune(model, "synflow", 20, **options), prune(scaled, "synflow", 20, **options))


def test_the_highest_compression_leaves_one_weight_in_each_layer_of_a_real_network():
    model = models.build("vgg11", "digits", width=0.125)
    masks = prune(model, "synflow", rho_max(model), input_shape=(3, 32, 32))
    assert masks.layers()["kept"].tolist() == [1] * 9
    assert all(isinstance(model.get_submodule(n.rpartition(".")[0]), CONVOLUTION | nn.Linear) for n in masks)
