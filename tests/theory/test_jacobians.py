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


def shared_activation(*, activation=nn.Tanh, layer=None):
    torch.manual_seed(0)
    shared = activation()
    sizes = [nn.Linear(192, 6), layer or nn.Linear(6, 6), layer or nn.Linear(6, 4)]
    return nn.Sequential(nn.Flatten(), *(part for linear in sizes for part in (linear, shared))).double()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.PReLU])
def test_an_activation_that_occurs_twice_counts_twice(activation):
    model = shared_activation(activation=activation)
    product = torch.eye(192, dtype=torch.float64)
    for _, stage, points in jacobians.stages(model, dict(model.named_parameters()), IMAGES[:1]):
        product = jacobians.LinearMap(stage, points.detach()).matrix().detach() @ product
    expected = torch.autograd.functional.jacobian(model, IMAGES[:1]).view(4, 192)
    torch.testing.assert_close(product, expected)


def test_a_layer_that_occurs_twice_is_one_sentence():
    with pytest.raises(InputError, match="layer '5' is layer '3' again"):
        jacobians.chain(shared_activation(layer=nn.Linear(6, 6)), IMAGES)
    tied = mlp(sizes=(192, 6, 6))
    tied[3].weight = nn.Parameter(torch.eye(6).double())
    tied[5].weight = tied[3].weight
    with pytest.raises(InputError, match="layer '5' is layer '3' again"):
        jacobians.chain(tied, IMAGES)


def test_a_single_layer_is_a_chain_too():
    model, x = nn.Linear(6, 4).double(), torch.randn(3, 6).double()
    s = torch.linalg.svdvals(model.weight.detach())
    for table in (jacobians.chain(model, x), jacobians.layers(model, (6,))):
        assert table["layer"].tolist() == ["weight"] and table["max"][0] == pytest.approx(float(s[0]))


class Tied(nn.Module):
    """An embedding of the index of the largest input, and a head that shares its weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.middle(self.embedding(x.argmax(1))))


def test_a_head_that_shares_its_weight_with_an_embedding_has_its_own_map():
    maps = jacobians.layer_maps(Tied(), (20,))
    assert {operator.shape for operator in maps.values()} == {(8, 8), (20, 8)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_half_precision_is_decomposed_in_float32(dtype, method):
    model, x = mlp().to(dtype), IMAGES.to(dtype)
    same = mlp().to(dtype).float()
    for half, single in (
        (jacobians.layers(model, SHAPE, method=method), jacobians.layers(same, SHAPE, method=method)),
        (jacobians.chain(model, x, method=method), jacobians.chain(same, x.float(), method=method)),
    ):
        assert half.equals(single)
    assert torch.equal(jacobians.input_output(model, x), jacobians.input_output(same, x.float()))


def test_weights_that_are_not_finite_and_foreign_masks_are_one_sentence():
    model = mlp()
    with pytest.raises(InputError, match="'zz'"):
        jacobians.layers(model, SHAPE, {"zz": torch.ones(1)})
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"3\.weight holds weights that are not finite"):
        jacobians.layers(model, SHAPE)
    with pytest.raises(InputError, match="not finite has no singular values"):
        jacobians.input_output(model, IMAGES)
