from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from toys import NETWORKS, conv_chain, mlp

import synflow_lib as sf
from synflow_lib import data, devices
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import Recipe, mask_gradients, sgd, train
from synflow_lib.training.optim import idle_biases

RECIPE = Recipe("mine", 3, 32, 0.05, 5e-4, "test")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_path_is_that_of_masks_in_the_forward_pass(network, fused, toy_data):
    """Two implementations: gradients masked, and weights masked at every use while the dead ones drift freely."""
    model = NETWORKS[network]()
    masks = sf.prune(model, "random", 5)
    reference = deepcopy(model)
    train(model, toy_data, RECIPE, masks, seed=3, device="cpu", speed=Speed(fused=fused))

    optimiser = sgd(reference, RECIPE, Speed())
    with devices.seeded(3, torch.device("cpu")) as generator:
        for _ in range(RECIPE.epochs):
            for images, labels in data.train_batches(toy_data, RECIPE.batch_size, generator, RECIPE.augment):
                weights = {n: p * masks[n] if n in masks else p for n, p in reference.named_parameters()}
                optimiser.zero_grad()
                F.cross_entropy(functional_call(reference, weights, (images.double(),)), labels).backward()
                optimiser.step()
    assert any(bool((p[~masks[n]] != 0).any()) for n, p in reference.named_parameters() if n in masks)
    for name, parameter in reference.named_parameters():
        expected = parameter * masks[name] if name in masks else parameter
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=0, atol=1e-12)


def test_pruned_weights_stay_exactly_zero_in_bfloat16(toy_data):
    model = conv_chain().float()
    masks = sf.prune(model, "magnitude", 10)
    recipe = replace(RECIPE, weight_decay=0.01)
    train(model, toy_data, recipe, masks, device="cpu", speed=Speed(bfloat16=True, channels_last=True, fused=True))
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all() or not mask.any()


def test_gradients_of_pruned_weights_alone_become_zero():
    model = mlp()
    masks = sf.prune(model, "magnitude", 4)
    zero_pruned = mask_gradients(model, masks)
    model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    zero_pruned()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name] * masks[name] if name in masks else before[name])


def test_masks_that_keep_everything_cost_nothing():
    model = mlp()
    zero_pruned = mask_gradients(model, sf.prune(model, "magnitude", 1))
    zero_pruned()  # before there are any gradients
    mask_gradients(model, None)()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_masks_of_another_model_are_refused():
    with pytest.raises(InputError, match="another model"):
        mask_gradients(conv_chain(), sf.prune(mlp(), "magnitude", 4))


def test_every_parameter_is_updated_once():
    model = conv_chain()
    listed = [p for group in sgd(model, RECIPE, Speed()).param_groups for p in group["params"]]
    assert len(listed) == len({id(p) for p in listed}) == len(list(model.parameters()))


def listed_several_times(parameters: list[tuple[torch.Tensor, int]], buffers: dict, recipe: Recipe, lr: float) -> None:
    """A step of SGD as PyTorch 1.4 made it, over a list in which tensors occur several times, update by update."""
    for parameter, times in parameters:
        for _ in range(times):
            gradient = parameter.grad
            gradient.add_(parameter, alpha=recipe.weight_decay)  # in place: the next update finds it there
            if parameter in buffers:
                buffers[parameter].mul_(recipe.momentum).add_(gradient)
            else:
                buffers[parameter] = gradient.clone()
            parameter.sub_(gradient + recipe.momentum * buffers[parameter], alpha=lr)


@pytest.mark.parametrize("network", NETWORKS)
def test_repeated_updates_are_those_of_a_list_with_repetitions(network, toy_data):
    """Ten steps with real gradients and a learning rate that changes: the same weights and the same momentum."""
    updates = (("*.bias", 2), ("[1s]*", 5), ("*", 4))
    recipe = replace(RECIPE, updates=updates, weight_decay=0.01)
    model = NETWORKS[network]()
    reference = deepcopy(model)
    optimiser, buffers = sgd(model, recipe, Speed()), {}
    listed = [(parameter, recipe.updates_of(name)) for name, parameter in reference.named_parameters()]
    assert {times for _, times in listed} > {2, 4}
    images, labels = toy_data.train_images[:16].double() / 255, toy_data.train_labels[:16]
    for step in range(10):
        lr = 0.05 / (1 + step)
        for group in optimiser.param_groups:
            group["lr"] = lr
        for one in (model, reference):
            one.zero_grad()
            F.cross_entropy(one(images), labels).backward()
        optimiser.step()
        with torch.no_grad():
            listed_several_times(listed, buffers, recipe, lr)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(optimiser.state[ours]["momentum_buffer"], buffers[theirs], rtol=1e-12, atol=1e-12)


def test_one_update_each_is_sgd_with_nesterov_momentum():
    ours, theirs = conv_chain(), conv_chain()
    recipe = replace(RECIPE, updates=(("*", 1),))
    optimisers = sgd(ours, recipe, Speed()), sgd(theirs, RECIPE, Speed())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator, dtype=torch.float64)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_repeated_updates_leave_gradients_and_pruned_weights_alone():
    model = conv_chain()
    masks = sf.prune(model, "random", 4)
    sf.apply_masks(model, masks)
    optimiser = sgd(model, replace(RECIPE, updates=(("*", 4),), weight_decay=0.1), Speed())
    zero_pruned = mask_gradients(model, masks)
    model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    zero_pruned()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    for _ in range(3):
        optimiser.step()
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_a_parameter_without_gradient_stays_as_it_is():
    model = mlp()
    optimiser = sgd(model, replace(RECIPE, updates=(("*", 3),)), Speed())
    before = deepcopy(list(model.parameters()))
    optimiser.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def with_idle_biases() -> nn.Module:
    """Two convolutions in front of BatchNorm, one that is not, and a linear layer, all with a bias that is not zero."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), *norms, nn.Flatten(), nn.Linear(16, 5)).double()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_a_bias_in_front_of_batch_norm_does_nothing():
    """Its gradient is zero, and without it everything else goes the same way."""
    model = with_idle_biases()
    assert [id(bias) for bias in idle_biases(model)] == [id(model[0].bias), id(model[5].bias)]
    F.cross_entropy(model(torch.rand(8, 3, 8, 8, dtype=torch.float64)), torch.arange(8) % 5).backward()
    sizes = {name: float(parameter.grad.abs().max()) for name, parameter in model.named_parameters()}
    assert max(sizes.pop("0.bias"), sizes.pop("5.bias")) < 1e-14 < 1e-6 < min(sizes.values())


def test_no_bias_is_idle_where_a_hook_may_read_it_and_the_model_keeps_its_attributes():
    model = with_idle_biases()
    before = vars(model).copy()
    assert idle_biases(model) and vars(model) == before
    model[0].register_forward_hook(lambda _, inputs, output: output.relu())
    assert idle_biases(model) == []


@pytest.mark.parametrize("updates", [(), (("*", 3),)])
def test_leaving_idle_biases_alone_changes_nothing_else(updates, toy_data):
    found = []
    for skip in (False, True):
        model = with_idle_biases()
        before = [bias.clone() for bias in idle_biases(model)]
        recipe = replace(RECIPE, weight_decay=0.0, updates=updates)
        history = train(model, toy_data, recipe, device="cpu", speed=Speed(skip_biases=skip))
        assert not skip or all(torch.equal(*pair) for pair in zip(before, idle_biases(model), strict=True))
        assert all(parameter.requires_grad for parameter in model.parameters())
        found.append((model.state_dict(), [row["test_loss"] for row in history.curve]))
    (plain, losses), (skipped, other) = found
    assert losses == pytest.approx(other, rel=1e-9)
    for name in plain:
        torch.testing.assert_close(plain[name], skipped[name], rtol=0, atol=1e-9)


class Reads(nn.Module):
    """A convolution in front of BatchNorm, whose output or whose bias something else may read as well."""

    def __init__(self, also: str):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
        self.also = also
        self.last = nn.Linear(4, 3)
        if also in ("second", "last"):
            self.get_submodule(also).bias = self.first.bias

    def forward(self, x):
        y = self.first(x)
        if self.also == "values" and float(y.sum()) > 0:
            y = -y
        normed = self.second(self.norm(y))
        if self.also == "output":
            return normed + y[:, :, 2:, 2:]
        if self.also == "last":
            return self.last(normed)
        return normed + self.first.bias[:, None, None] if self.also == "bias" else normed


@pytest.mark.parametrize("also", ["", "output", "bias", "second", "last", "values", "eval"])
def test_only_a_bias_that_nothing_else_reads_is_idle(also):
    model = Reads(also)
    model.norm.train(also != "eval")
    assert len(idle_biases(model)) == (not also)


def test_a_bias_that_one_channel_does_not_share_is_not_idle():
    """BatchNorm1d takes means over the middle dimension of a linear layer's output, and the bias is along the last."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(3)).double()
    model(torch.rand(6, 3, 4, dtype=torch.float64)).square().mul(torch.rand(6, 3, 5)).sum().backward()
    assert model[0].bias.grad.abs().max() > 1e-6 and not idle_biases(model)


def test_a_convolution_that_is_called_twice_is_idle_only_if_both_calls_are():
    shared, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    assert len(idle_biases(nn.Sequential(shared, norm, shared, norm))) == 1
    assert not idle_biases(nn.Sequential(shared, norm, shared, nn.ReLU()))
    assert not idle_biases(nn.Sequential(shared, nn.ReLU(), shared, norm))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_pruned_layer_without_gradient_is_left_out(frozen, toy_data):
    model, images = mlp(), torch.ones(2, 3, 8, 8, dtype=torch.float64)
    model[3].requires_grad_(not frozen)
    model.unused = None if frozen else nn.Linear(6, 6).double()
    forward = model if frozen else nn.Sequential(*list(model)[:-1])
    masks = sf.prune(model, "random", 4)
    zero_pruned = mask_gradients(model, masks)
    forward(images).square().sum().backward()
    zero_pruned()
    without = [name for name in masks if model.get_parameter(name).grad is None]
    assert without == (["3.weight"] if frozen else ["unused.weight"])
    assert not any(model.get_parameter(n).grad[~mask].any() for n, mask in masks.items() if n not in without)


def test_a_pruned_network_trains_with_a_frozen_layer(toy_data):
    model = mlp()
    model[3].requires_grad_(False)
    masks = sf.prune(model, "random", 4)
    sf.apply_masks(model, masks)
    before = model[3].weight.clone()
    train(model, toy_data, RECIPE, masks, device="cpu")
    assert torch.equal(model[3].weight, before)
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())
