"""Every score is what its definition says, computed a second way, and leaves the model as it was."""

from types import SimpleNamespace

import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from torch.nn import functional as F
from toys import CLASSES, NETWORKS, SHAPE, batches, conv_chain, everything, mlp

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import flow_graph
from synflow_lib.pruning import (
    SALIENCIES,
    connected,
    grasp,
    loss_saliency,
    magnitude,
    prunable,
    prune,
    random,
    snip,
    synaptic_flow,
    synaptic_saliency,
    synflow,
)
from synflow_lib.theory import conservation


@pytest.mark.parametrize("method", SALIENCIES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("train_mode", [False, True])
def test_scores_have_the_shapes_of_the_weights_and_leave_the_model_as_it_was(method, network, train_mode):
    model = NETWORKS[network]().train()
    before = fingerprint(model)
    scores = SALIENCIES[method](model, input_shape=SHAPE, batches=batches(), train_mode=train_mode, seed=0)
    assert {name: score.shape for name, score in scores.items()} == {n: w.shape for n, w in prunable(model).items()}
    assert all(score.dtype == torch.float64 and not score.requires_grad for score in scores.values())
    assert fingerprint(model) == before


class Breaks(nn.Module):
    """Passes its input on, but raises `error` in forward pass number `at`; 0 is when torch.fx reads the code."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.seen = at, error, SimpleNamespace(passes=0)  # an attribute would be taken back

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            self.seen.passes += 1
        elif self.at:
            float(x)  # torch.fx cannot follow this, so it is the model itself that runs
        if self.seen.passes == self.at:
            raise self.error
        return x


def ones(model):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


# What runs the model, and in which forward pass it is broken: the last one.
RUNS = {
    "snip": (2, lambda model: snip(model, batches=batches())),
    "grasp": (4, lambda model: grasp(model, batches=batches())),
    "synflow": (1, lambda model: synflow(model, input_shape=SHAPE)),
    "synaptic flow": (1, lambda model: synaptic_flow(model, input_shape=SHAPE)),
    "synaptic saliency": (1, lambda model: synaptic_saliency(model, batches()[0][0])),
    "connected": (1, lambda model: connected(model, ones(model), SHAPE)),
    "prune by synflow": (3, lambda model: prune(model, "synflow", 2, input_shape=SHAPE, iterations=3)),
    "prune by snip": (4, lambda model: prune(model, "snip", 2, batches=batches(), iterations=2)),
}


def broken(at, error):
    model = conv_chain().train()
    model.insert(7, Breaks(at, error))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), ZeroDivisionError()], ids=repr)
def test_the_model_is_as_before_when_scoring_fails_or_is_interrupted(run, error):
    at, score = RUNS[run]
    model = broken(at, error)
    before = fingerprint(model)
    with pytest.raises(InputError if isinstance(error, RuntimeError) else type(error)):
        score(model)
    assert fingerprint(model) == before
    score(model)  # and it can still be scored
    assert fingerprint(model) == before


@pytest.mark.parametrize("run", ["prune by synflow", "connected"])
def test_the_model_is_as_before_when_the_reading_of_its_code_is_interrupted(run):
    model = broken(0, KeyboardInterrupt())
    before = fingerprint(model)
    with pytest.raises(KeyboardInterrupt):
        RUNS[run][1](model)
    assert fingerprint(model) == before


def test_synflow_of_a_linear_chain_is_the_product_of_path_sums():
    # S(w_ij in layer l) = [1' prod_{k>l} |W_k|]_i |w_ij| [prod_{k<l} |W_k| 1]_j
    model = mlp(bias=False)
    weights = [weight.detach().abs() for weight in prunable(model).values()]
    for index, (weight, score) in enumerate(zip(weights, synflow(model, input_shape=SHAPE).values(), strict=True)):
        before, after = torch.ones(weights[0].shape[1]).double(), torch.ones(CLASSES).double()
        for earlier in weights[:index]:
            before = earlier @ before
        for later in reversed(weights[index + 1 :]):
            after = later.T @ after
        assert torch.allclose(score, after[:, None] * weight * before, rtol=1e-12, atol=0)


def loss(model, parameters):
    total = sum(len(labels) for _, labels in batches())
    return sum(
        F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y) * len(y) / total for x, y in batches()
    )


def test_snip_is_the_slope_of_the_loss_along_a_gate_on_each_weight():
    model, step = mlp(), 1e-6
    signed = loss_saliency(model, batches=batches())
    name, weight = next(iter(prunable(model).items()))
    for position in ((0, 0), (3, 100), (11, 191)):
        shifted = {}
        for sign in (1, -1):
            moved = weight.detach().clone()
            moved[position] *= 1 + sign * step
            shifted[sign] = loss(model, {name: moved}).item()
        slope = (shifted[1] - shifted[-1]) / (2 * step)
        assert signed[name][position].item() == pytest.approx(slope, rel=1e-3, abs=1e-12)
    assert all(
        torch.equal(a, b.abs()) for a, b in zip(snip(model, batches=batches()).values(), signed.values(), strict=True)
    )


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    model = mlp(activation=nn.Tanh, sizes=(192, 4, 3))
    names = list(prunable(model))
    weights = tuple(prunable(model).values())

    def objective(*values):
        return loss(model, dict(zip(names, values, strict=True)))

    gradient = torch.autograd.grad(objective(*weights), weights)
    _, product = torch.autograd.functional.hvp(objective, weights, gradient)
    scores = grasp(model, batches=batches())
    for name, weight, column in zip(names, weights, product, strict=True):
        assert torch.allclose(scores[name], weight * column, rtol=1e-9, atol=1e-15)


def test_grasp_says_how_removing_a_weight_changes_the_gradient_norm():
    # d/ds |g((1-s) theta_j)|^2 / 2 at s = 0 is -theta_j (H g)_j.
    model, step = mlp(activation=nn.Tanh, sizes=(192, 4, 3)), 1e-5
    name, weight = next(iter(prunable(model).items()))
    score = grasp(model, batches=batches())[name]
    position = tuple(int(i) for i in (score == score.max()).nonzero()[0])

    def half_norm(factor):
        moved = weight.detach().clone()
        moved[position] *= factor
        values = {n: (moved if n == name else w.detach().clone()).requires_grad_() for n, w in prunable(model).items()}
        gradient = torch.autograd.grad(loss(model, values), list(values.values()))
        return sum((g**2).sum().item() for g in gradient) / 2

    slope = (half_norm(1 - step) - half_norm(1 + step)) / (2 * step)
    assert slope == pytest.approx(-score[position].item(), rel=1e-4)


def test_batches_of_any_size_give_the_score_of_all_examples_together():
    model = conv_chain()
    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    for method in (snip, grasp):
        split, joint = method(model, batches=batches()), method(model, batches=whole)
        assert all(
            torch.allclose(a, b, rtol=1e-9, atol=1e-14) for a, b in zip(split.values(), joint.values(), strict=True)
        )


def test_train_mode_scores_with_the_statistics_of_the_batch():
    model = conv_chain()
    still, moving = (snip(model, batches=batches(), train_mode=mode) for mode in (False, True))
    assert not torch.allclose(still["0.weight"], moving["0.weight"], rtol=0.1)


def test_magnitude_is_the_absolute_weight_and_random_only_depends_on_the_seed():
    model = mlp()
    scores = magnitude(model)
    assert all(torch.equal(scores[name], weight.abs()) for name, weight in prunable(model).items())
    first, again, other = (random(model, seed=seed)["1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() > 0 and first.max() <= 1 and first.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", SALIENCIES)
def test_a_masked_weight_scores_nothing(method):
    model = mlp()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    masks["1.weight"][:, ::2] = False
    scores = SALIENCIES[method](model, masks, input_shape=SHAPE, batches=batches(), seed=0)
    assert not scores["1.weight"][:, ::2].any() and scores["1.weight"][:, 1::2].any()


def test_synflow_ignores_running_means_and_signs():
    model = conv_chain()
    before = synflow(model, input_shape=SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.where(torch.rand_like(parameter) < 0.5, -1.0, 1.0)
        model[1].running_mean += 3
    after = synflow(model, input_shape=SHAPE)
    assert all(torch.allclose(before[name], after[name], rtol=1e-12) for name in before)


def trained():
    """A convolutional chain after some steps of SGD in train mode: biases, scales and statistics have moved."""
    model = conv_chain().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(5):
        for images, labels in batches():
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images + 1), labels).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def test_synflow_of_a_trained_network_is_conserved_with_its_biases_and_variances():
    model = trained()
    norm = model[1]
    assert min(norm.running_mean.abs().max(), norm.bias.abs().max(), (norm.running_var - 1).abs().max()) > 0.05
    scores = synflow(model, input_shape=SHAPE, parameters=everything(model))
    assert conservation.neurons(model, scores, SHAPE)["error"].max() <= 1e-12
    graph, flow = flow_graph(model, SHAPE), synaptic_flow(model, input_shape=SHAPE)
    for seed in range(5):
        side = conservation.random_cut(graph, torch.Generator().manual_seed(seed))
        assert conservation.cut_total(graph, scores, side) == pytest.approx(flow, rel=1e-12)
    assert not prune(model, "synflow", 10, input_shape=SHAPE).collapsed()


def test_bypassing_batch_norm_forgets_what_it_learned_and_only_that():
    model, plain = trained(), conv_chain(batch_norm=False)
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n in plain.state_dict()})
    bypassed, reference = synflow(model, input_shape=SHAPE, bypass_norm=True), synflow(plain, input_shape=SHAPE)
    assert all(torch.allclose(bypassed[name], reference[name], rtol=1e-12, atol=0) for name in reference)
    flows = [synaptic_flow(m, input_shape=SHAPE, bypass_norm=m is model) for m in (model, plain)]
    assert flows[0] == pytest.approx(flows[1], rel=1e-12)


@pytest.mark.parametrize("score", [synflow, synaptic_flow])
def test_batch_statistics_and_bypassed_batch_norm_exclude_each_other(score):
    with pytest.raises(InputError, match="choose one"):
        score(conv_chain(), input_shape=SHAPE, train_mode=True, bypass_norm=True)


def test_grasp_says_where_there_are_no_second_derivatives():
    with pytest.raises(InputError, match=r"needs second derivatives.*hardsigmoid"):
        grasp(mlp(nn.Hardsigmoid), batches=batches())


def test_grasp_differentiates_attention_twice():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

        def forward(self, x):
            x = x.flatten(2)[:, :, :8]
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    scores = grasp(Attention().double(), batches=batches())
    assert all(score.isfinite().all() and score.any() for score in scores.values())


def test_scores_are_absolute_where_a_layer_subtracts():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)).double()
    torch.manual_seed(0)
    nn.init.normal_(model[2].weight)
    scores = synflow(model, input_shape=SHAPE, parameters=everything(model))
    state = {name: parameter.detach().abs().requires_grad_() for name, parameter in model.named_parameters()}
    x = torch.ones(1, *SHAPE).double()
    gradients = torch.autograd.grad(torch.func.functional_call(model, state, (x,)).sum(), list(state.values()))
    signed = {name: state[name].detach() * g for name, g in zip(state, gradients, strict=True)}
    assert all(torch.allclose(scores[name], signed[name].abs(), rtol=1e-9, atol=1e-15) for name in scores)
    assert any((score < 0).any() for score in signed.values())


def test_synflow_turns_to_float64_where_float32_overflows():
    deep = mlp(bias=False, sizes=(192, *(40,) * 60)).float()
    with torch.no_grad():
        for weight in deep.parameters():
            weight *= 4
    scores = synflow(deep, input_shape=SHAPE)
    reference = synflow(deep.double(), input_shape=SHAPE)
    assert all(torch.equal(scores[name], reference[name]) for name in scores)
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max


def beyond_float64(model):
    """The same network with its weights a power of two larger, which changes no share of R by any bit."""
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2.0**600
    return model


def test_synflow_gives_shares_of_the_flow_where_float64_overflows_too():
    scores = synflow(beyond_float64(mlp(bias=False)), input_shape=SHAPE)
    reference = synflow(mlp(bias=False), input_shape=SHAPE)
    flow = synaptic_flow(mlp(bias=False), input_shape=SHAPE)
    assert all(torch.allclose(scores[name], reference[name] / flow, rtol=1e-12, atol=0) for name in reference)
    assert synaptic_flow(beyond_float64(mlp(bias=False)), input_shape=SHAPE) == float("inf")


def test_synflow_says_so_where_it_cannot_give_shares():
    untraceable = nn.Sequential(Breaks(-1, None), *mlp(bias=False))
    for model, options in ((untraceable, {}), (mlp(bias=False), {"parameters": ["1.weight"]})):
        with pytest.raises(InputError, match="even in float64"):
            synflow(beyond_float64(model), input_shape=SHAPE, **options)


def test_synaptic_saliency_of_the_loss_is_loss_saliency():
    model, ((images, labels),) = conv_chain(), batches(sizes=(6,))
    general = synaptic_saliency(model, images, lambda outputs: F.cross_entropy(outputs, labels))
    special = loss_saliency(model, batches=[(images, labels)], parameters=everything(model))
    assert list(general) == list(special)
    assert all(torch.allclose(general[name], special[name], rtol=1e-12) for name in general)


def test_prunable_finds_attention_counts_shared_weights_once_and_refuses_a_model_without_any():
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "first": nn.Linear(8, 8)})
    attention["second"] = nn.Linear(8, 8)
    attention["second"].weight = attention["first"].weight
    assert list(prunable(attention)) == ["attention.in_proj_weight", "attention.out_proj.weight", "first.weight"]
    with pytest.raises(InputError, match="no convolution or linear layer"):
        prunable(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))


IMAGES = torch.zeros(4, *SHAPE)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "pass batches"),
        ([], "pass batches"),
        ([IMAGES], r"sequence of \(images, labels\)"),
        ([(IMAGES, torch.zeros(3, dtype=torch.long))], "labels must be integers of shape"),
        ([(IMAGES, torch.zeros(4))], "labels must be integers of shape"),
        ([(IMAGES, torch.full((4,), CLASSES))], "do not fit outputs"),
        ([(IMAGES, torch.full((4,), -1))], "do not fit outputs"),
        ([(IMAGES[:, :2], torch.zeros(4, dtype=torch.long))], "cannot take an input of shape"),
    ],
)
@pytest.mark.parametrize("method", [snip, grasp])
def test_a_wrong_batch_gives_one_sentence(method, given, sentence):
    with pytest.raises(InputError, match=sentence):
        method(conv_chain(), batches=given)


def test_synflow_without_an_input_shape_says_what_to_pass():
    with pytest.raises(InputError, match="pass input_shape"):
        synflow(mlp())
