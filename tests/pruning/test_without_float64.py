"""A model on a device that has no float64, as on Apple's GPUs: what needs it is computed on the CPU."""

import pytest
import torch
from fake_mps import OnMPS, on_mps
from torch import nn
from toys import SHAPE, batches, conv_chain, residual

from synflow_lib.pruning import SALIENCIES, apply_masks, compact, connected, prune, synaptic_flow, synflow
from synflow_lib.theory import assumptions, conservation, isometry, jacobians


def gates():
    """No program: scored by autograd, paths found by gradients."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.GLU(), nn.Linear(6, 5))


NETWORKS = {"chain": lambda: conv_chain().float(), "residual": lambda: residual().float(), "gates": gates}


def data(place=lambda x: x):
    return [(place(images.float()), place(labels)) for images, labels in batches()]


def test_the_device_refuses_what_it_should():
    with on_mps(nn.Linear(3, 2)) as model:
        assert model.weight.device.type == "mps" and model(model.weight.new_ones(1, 3)).device.type == "mps"
        with pytest.raises(TypeError, match="float64"):
            model.weight.double()
        with pytest.raises(TypeError, match="float64"):
            torch.ones(3, dtype=torch.float64, device=model.weight.device)
        with pytest.raises(RuntimeError, match="same device"):
            model(torch.ones(1, 3))
        assert not isinstance(model.weight.detach().cpu().double(), OnMPS)


@pytest.mark.parametrize("method", SALIENCIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_masks_are_those_of_the_model_on_the_cpu(network, method):
    expected = prune(NETWORKS[network](), method, 4, input_shape=SHAPE, batches=data(), iterations=2)
    with on_mps(NETWORKS[network]()) as model:
        masks = prune(
            model,
            method,
            4,
            input_shape=SHAPE,
            batches=data(lambda x: x.to(next(model.parameters()).device)),
            iterations=2,
        )
        connected(model, masks, SHAPE)
        apply_masks(model, masks)
    assert all(torch.equal(masks[name].cpu(), mask) for name, mask in expected.items())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_flow_and_what_the_theorems_say_of_it(network):
    flow, scores = (
        synaptic_flow(NETWORKS[network](), input_shape=SHAPE),
        synflow(NETWORKS[network](), input_shape=SHAPE),
    )
    with on_mps(NETWORKS[network]()) as model:
        assert synaptic_flow(model, input_shape=SHAPE) == pytest.approx(flow)
        found = synflow(model, input_shape=SHAPE)
        means = conservation.layer_means(found)
        assumptions(model, SHAPE)
        isometry.deviations(model)
        jacobians.layers(model, SHAPE)
        jacobians.input_output(model, torch.rand(2, *SHAPE))
    assert means["average_score"].tolist() == pytest.approx([float(s.double().mean()) for s in scores.values()])


def test_a_flow_that_float32_cannot_hold():
    model = gates()
    for weight in model.parameters():
        nn.init.constant_(weight, 1e25)
    expected = synflow(model, input_shape=SHAPE)
    with on_mps(model):
        assert all(torch.allclose(s, expected[name]) for name, s in synflow(model, input_shape=SHAPE).items())
        prune(model, "synflow", 2, input_shape=SHAPE, iterations=2)


def test_a_smaller_network_is_made_there():
    masks = prune(conv_chain().float(), "synflow", 20, input_shape=SHAPE)
    with on_mps(conv_chain().float()) as model:
        small = compact(model, masks, SHAPE)
        assert all(p.device.type == "mps" for p in small.model.parameters())
        small.expand()
