"""The shortened SynFlow is the plain loop of Algorithm 1: the same scores, the same masks."""

import pytest
import torch
from torch import nn
from toys import NETWORKS, SHAPE, conv_chain, mlp

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import CONVOLUTION
from synflow_lib.pruning import Masks, keep_best, prunable, prune, rho_max, synflow
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.pruning.schedule import SCHEDULES


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


def test_units_are_cut_out_and_the_scores_of_the_rest_stay():
    model = models.build("resnet18", "digits", width=0.25).double()
    network = FlowNetwork(model, (3, 32, 32))
    stored = len(network.live)
    masks = prune(model, "synflow", 100, input_shape=(3, 32, 32), iterations=20)
    everything = torch.cat([masks[span.name].flatten() for span in network.spans])
    network.keep(everything)  # float64 stores weights in their own order
    assert len(network.live) < stored / 5 and network.left == masks.kept
    assert same(Masks(network.masks()), masks)
    expected = synflow(model, masks, input_shape=(3, 32, 32))
    for span in network.spans:
        ours = span.view(network.scores())
        theirs = expected[span.name][span.rows][:, span.columns]
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=0)


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


def test_a_network_that_cannot_be_shrunk_is_pruned_all_the_same():
    class Multiplied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.gate, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.first(x) * self.gate(x))

    model = Multiplied().double()
    assert FlowNetwork(model, (6,)).graph is None
    assert same(prune(model, "synflow", 10, input_shape=(6,), iterations=20), plain(model, 10, (6,), 20))


def test_weights_that_carry_no_flow_go_first_and_removed_ones_never_return():
    model = mlp(bias=False)
    with torch.no_grad():
        model[3].weight[:, :6] = 0  # half of the first hidden layer leads nowhere
    assert same(prune(model, "synflow", 1.5, input_shape=SHAPE, iterations=5), plain(model, 1.5, SHAPE, 5))


def test_float32_turns_to_float64_where_the_flow_overflows():
    deep = mlp(bias=False, sizes=(192, *(20,) * 60)).float()
    with torch.no_grad():
        for weight in deep.parameters():
            weight *= 8
    assert same(prune(deep, "synflow", 30, input_shape=SHAPE), prune(deep.double(), "synflow", 30, input_shape=SHAPE))


def test_a_flow_that_float64_cannot_hold_is_one_sentence():
    model = mlp(bias=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1e200
    with pytest.raises(InputError, match="even in float64"):
        prune(model, "synflow", 2, input_shape=SHAPE)


def test_the_highest_compression_leaves_one_weight_in_each_layer_of_a_real_network():
    model = models.build("vgg11", "digits", width=0.125)
    masks = prune(model, "synflow", rho_max(model), input_shape=(3, 32, 32))
    assert masks.layers()["kept"].tolist() == [1] * 9
    assert all(isinstance(model.get_submodule(n.rpartition(".")[0]), CONVOLUTION | nn.Linear) for n in masks)
