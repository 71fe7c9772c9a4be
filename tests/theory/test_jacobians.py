"""Layers and whole networks have the Jacobians that autograd has, and orthogonal chains are isometries."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from toys import CLASSES, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib.errors import InputError
from synflow_lib.models import initialise
from synflow_lib.pruning import prunable, prune
from synflow_lib.theory import jacobians

IMAGES, _ = batches((4,))[0]


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_an_orthogonal_linear_chain_has_all_singular_values_1(depth):
    model = initialise(mlp(nn.Identity, bias=False, sizes=(192,) + (CLASSES,) * (depth - 1)), "orthogonal")
    for table in (jacobians.layers(model, SHAPE), jacobians.chain(model, IMAGES)):
        assert len(table) == depth
        assert (table[["min", "max", "mean"]] - 1).abs().to_numpy().max() < 1e-6
    torch.testing.assert_close(jacobians.input_output(model, IMAGES), torch.ones(4, CLASSES).double())


@pytest.mark.parametrize("network", [mlp, conv_chain, residual])
def test_the_input_output_jacobian_is_autograds(network):
    model = network().eval()
    expected = torch.autograd.functional.jacobian(model, IMAGES[:1]).view(CLASSES, -1)
    torch.testing.assert_close(jacobians.input_output(model, IMAGES)[0], torch.linalg.svdvals(expected))


def test_the_stages_of_a_chain_multiply_to_the_whole():
    model, values = conv_chain().eval(), []
    product = torch.eye(192, dtype=torch.float64)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for _, stage, points in jacobians.stages(model, state, IMAGES[:1]):
        operator = jacobians.LinearMap(stage, points.detach())
        product = operator.matrix().detach() @ product
        values.append(operator.shape)
    assert values == [(96, 192), (32, 96), (5, 32)]
    torch.testing.assert_close(torch.linalg.svdvals(product), jacobians.input_output(model, IMAGES[:1])[0])


def test_a_linear_layers_values_are_those_of_its_masked_matrix():
    model = mlp()
    masks = prune(model, "magnitude", 5)
    for row, (name, mask) in zip(jacobians.layers(model, SHAPE, masks).itertuples(), masks.items(), strict=True):
        s = torch.linalg.svdvals(prunable(model)[name].detach() * mask)
        assert (row.layer, row.outputs, row.inputs) == (name.removesuffix(".weight"), *mask.shape)
        assert (row.mean, row.min, row.max) == pytest.approx((float(s.mean()), float(s.min()), float(s.max())))


def test_the_slopes_of_the_activation_belong_to_a_layer_of_a_chain():
    model = initialise(mlp(nn.Tanh), "orthogonal")
    alone, with_slopes = jacobians.layers(model, SHAPE), jacobians.chain(model, IMAGES)
    assert (with_slopes["mean"][:-1] < alone["mean"][:-1]).all()
    assert with_slopes["mean"].iloc[-1] == pytest.approx(alone["mean"].iloc[-1])


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_16"])
def test_the_layers_of_any_module_have_singular_values(name):
    settings = {"image_size": 32} if name == "vit_b_16" else {}
    torch.manual_seed(0)
    model = get_model(name, num_classes=10, **settings)
    table = jacobians.layers(model, (3, 32, 32), method="lanczos", steps=4, probes=1)
    attention = sum(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    assert len(table) >= len(prunable(model)) - 2 * attention
    assert table[["mean", "max"]].notna().all().all() and (table["max"] >= table["mean"]).all()


def test_what_has_no_such_jacobian_is_one_sentence():
    with pytest.raises(InputError, match=r"is no nn\.Sequential"):
        jacobians.chain(residual(), IMAGES)
    with pytest.raises(InputError, match="cannot take an input of shape"):
        jacobians.layers(conv_chain(), (1, 8, 8))
    with pytest.raises(InputError, match=r"needs outputs of shape \[B, classes\]"):
        jacobians.input_output(nn.Conv2d(3, 2, 3).double(), IMAGES)
