from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from toys import NETWORKS, conv_chain, mlp

import synflow_lib as sf
from synflow_lib import data, devices
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.training import Recipe, mask_gradients, sgd, train

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
