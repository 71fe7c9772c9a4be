"""A softmax, log-softmax or sigmoid at the end is no part of what is scored: that comes in front of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import SHAPE, batches, conv_chain

from synflow_lib.models.flow_graph import flow_graph
from synflow_lib.pruning import (
    LOSSES,
    apply_masks,
    compact,
    connected,
    grasp,
    prunable,
    prune,
    snip,
    synaptic_flow,
    synflow,
)
from synflow_lib.pruning.flow_network import FlowNetwork
from synflow_lib.theory import assumptions

MODULES = {"softmax": nn.Softmax(1), "log-softmax": nn.LogSoftmax(dim=-1), "sigmoid": nn.Sigmoid()}
CODE = {
    "softmax in code": lambda x: F.softmax(x, dim=1),
    "a method": lambda x: x.log_softmax(1),
    "log-softmax in code": lambda x: F.log_softmax(x, 1),
    "sigmoid in code": torch.sigmoid,
    "log-sigmoid": F.logsigmoid,
    "the logarithm of a softmax": lambda x: torch.log(F.softmax(x, 1).clamp(min=1e-9)),
    "sigmoid in another form": lambda x: torch.sigmoid(x).unsqueeze(2).squeeze(2).float().double(),
}


class Ended(nn.Module):
    """The chain under the names that it has alone, and what `end` makes of its outputs."""

    def __init__(self, end, chain=None):
        super().__init__()
        for name, module in (chain or conv_chain()).named_children():
            self.add_module(name, module)
        self.end = end

    def forward(self, x):
        for name, module in self.named_children():
            if name != "end":
                x = module(x)
        return self.end(x)


@pytest.mark.parametrize("name", [*MODULES, *CODE])
def test_synflow_scores_what_comes_in_front(name):
    model, plain = Ended({**MODULES, **CODE}[name]), conv_chain()
    expected, scores = synflow(plain, input_shape=SHAPE), synflow(model, input_shape=SHAPE)
    assert all(torch.equal(scores[layer], score) for layer, score in expected.items()) and len(scores) == len(expected)
    assert synaptic_flow(model, input_shape=SHAPE) == synaptic_flow(plain, input_shape=SHAPE)
    assert FlowNetwork(model, SHAPE).program is not None
    masks = prune(model, "synflow", 8, input_shape=SHAPE)
    assert all(torch.equal(masks[layer], mask) for layer, mask in prune(plain, "synflow", 8, input_shape=SHAPE).items())
    assert connected(model, masks, SHAPE)
    cut = {**masks, "4.weight": torch.zeros_like(masks["4.weight"])}
    assert not connected(model, cut, SHAPE)
    found = assumptions(model, SHAPE)
    assert found.holds and found.worst <= 1e-12


@pytest.mark.parametrize("name", [*MODULES, *CODE])
def test_the_flow_graph_and_compact_follow_it(name):
    model = Ended({**MODULES, **CODE}[name])
    assert flow_graph(model, SHAPE).sizes == flow_graph(conv_chain(), SHAPE).sizes
    masks = prune(model, "synflow", 30, input_shape=SHAPE)
    small, x = compact(model, masks, SHAPE), torch.randn(4, *SHAPE, dtype=torch.float64)
    assert small.share < 0.9
    torch.testing.assert_close(small.model(x), apply_masks(model, masks)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", [snip, grasp])
@pytest.mark.parametrize("name", [*MODULES, *CODE])
def test_cross_entropies_are_of_what_comes_in_front(name, method, loss):
    options = {"batches": batches(), "loss": loss}
    expected = method(conv_chain(), **options)
    for layer, score in method(Ended({**MODULES, **CODE}[name]), **options).items():
        torch.testing.assert_close(score, expected[layer], rtol=1e-9, atol=1e-15)


def test_a_loss_of_ones_own_gets_the_outputs_themselves():
    seen = []

    def likelihood(outputs, labels):
        seen.append(outputs)
        return F.nll_loss(outputs.log(), labels)

    scores = snip(Ended(nn.Softmax(1)), batches=batches(), loss=likelihood)
    assert all(torch.allclose(outputs.sum(1), torch.ones_like(outputs[:, 0])) for outputs in seen)
    for layer, score in snip(conv_chain(), batches=batches()).items():
        torch.testing.assert_close(scores[layer], score, rtol=1e-9, atol=1e-15)


def test_a_module_may_be_called_as_a_function_is():
    """Its name, "softmax", says nothing of what it does."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.softmax = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.softmax(torch.relu(self.first(x)))

    model = Named().double()
    assert flow_graph(model, (5,)).sizes == [5, 4, 3]
    assert list(synflow(model, input_shape=(5,))) == ["first.weight", "softmax.weight"]
    network = FlowNetwork(model, (5,))
    assert network.program is not None and network.by_name()["softmax.weight"].all()


@pytest.mark.parametrize("between", [nn.Sigmoid, nn.Softplus, lambda: nn.Softmax(1)])
def test_what_does_not_end_the_network_is_part_of_it(between):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 6), between(), nn.Linear(6, 4)]
    model = nn.Sequential(*layers).double()
    assert not assumptions(model, SHAPE).holds
    weights = {name: weight.abs() for name, weight in model.named_parameters()}
    leaves = [weights[name].detach().requires_grad_() for name in prunable(model)]
    state = weights | dict(zip(prunable(model), leaves, strict=True))
    flow = torch.func.functional_call(model, state, (torch.ones(1, *SHAPE, dtype=torch.float64),)).sum()
    for leaf, gradient, score in zip(
        leaves, torch.autograd.grad(flow, leaves), synflow(model, input_shape=SHAPE).values(), strict=True
    ):
        torch.testing.assert_close(score, (leaf * gradient).abs().detach())


def test_the_one_output_of_a_binary_classifier_may_be_squeezed():
    """Its sigmoid is 1 to the last bit where SynFlow's values are large, so that nothing would be left to score."""

    def network(end):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(192, 400), nn.ReLU(), nn.Linear(400, 1)]
        model = Ended(end, nn.Sequential(*layers)).double()
        nn.init.constant_(model.get_submodule("3").weight, 10)
        return model

    plain, model = network(lambda x: x), network(lambda x: torch.sigmoid(x).squeeze(1))
    assert model(torch.rand(5, *SHAPE).double()).shape == (5,)
    expected = synflow(plain, input_shape=SHAPE)
    assert all(torch.equal(score, expected[layer]) for layer, score in synflow(model, input_shape=SHAPE).items())
    assert prune(model, "synflow", 8, input_shape=SHAPE) == prune(plain, "synflow", 8, input_shape=SHAPE)


@pytest.mark.parametrize("goes_on", [lambda p: 1 - p, lambda p: p[:, :2], lambda p: p + p.squeeze()])
def test_what_is_made_of_probabilities_otherwise_is_part_of_the_network(goes_on):
    model = Ended(lambda x: goes_on(torch.sigmoid(x)))
    plain = conv_chain()
    scores, expected = synflow(model, input_shape=SHAPE), synflow(plain, input_shape=SHAPE)
    assert FlowNetwork(model, SHAPE).program is None
    assert not any(torch.allclose(score, expected[layer]) for layer, score in scores.items())


def test_a_gate_that_is_multiplied_is_part_of_the_network():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x):
            gate = torch.sigmoid(self.last(torch.relu(self.first(x))))
            return gate * gate

    model = Both().double()
    leaves = [weight.detach().abs().requires_grad_() for weight in model.parameters()]
    hidden = leaves[1] @ (leaves[0] @ torch.ones(5, dtype=torch.float64))
    expected = torch.autograd.grad(hidden.sigmoid().square().sum(), leaves)
    for leaf, gradient, score in zip(leaves, expected, synflow(model, input_shape=(5,)).values(), strict=True):
        torch.testing.assert_close(score, (leaf * gradient).abs().detach())
