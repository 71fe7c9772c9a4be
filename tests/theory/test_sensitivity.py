"""The gradient as a product of layers is autograd's, and says where the sensitivity comes from."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CLASSES, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib.errors import InputError
from synflow_lib.models import initialise
from synflow_lib.pruning import prune, snip
from synflow_lib.theory import sensitivity

IMAGES, LABELS = batches((9,))[0]


@pytest.mark.parametrize("activation", sensitivity.SLOPES)
@pytest.mark.parametrize("depth", [3, 5, 7])
@pytest.mark.parametrize("initialisation", ["normal", "he", "orthogonal"])
def test_factorised_and_autograd_gradients_agree_to_1e_10(activation, depth, initialisation):
    model = initialise(mlp(activation, sizes=(192,) + (11,) * (depth - 1)), initialisation)
    layers = sensitivity.factors(model, IMAGES, LABELS)
    loss = F.cross_entropy(model(IMAGES), LABELS)
    expected = torch.autograd.grad(loss, [model.get_parameter(layer.name) for layer in layers])
    assert len(layers) == depth
    for layer, gradient in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.gradient, gradient, rtol=1e-10, atol=1e-10 * float(gradient.abs().max()))


def test_masks_and_biases_take_part():
    model = mlp(nn.LeakyReLU)
    masks = prune(model, "random", 4)
    scores = snip(model, masks, batches=[(IMAGES, LABELS)])
    for layer in sensitivity.factors(model, IMAGES, LABELS, masks):
        torch.testing.assert_close((layer.gradient * layer.weight).abs(), scores[layer.name])


def test_the_jacobians_of_the_layers_multiply_to_what_is_behind():
    first, *_, last = layers = sensitivity.factors(mlp(nn.Tanh), IMAGES, LABELS)
    product = torch.eye(CLASSES, dtype=torch.float64)
    for layer in reversed(layers[1:]):
        product = product @ layer.jacobian
    torch.testing.assert_close(first.behind, product)
    torch.testing.assert_close(last.backward, last.error)


def test_in_a_linear_chain_signal_times_error_is_the_same_at_every_layer():
    # <dL/dx_l, x_l> is Theorem 2 for this scalar, so a layer with a larger signal has a smaller error.
    layers = sensitivity.factors(mlp(nn.Identity, bias=False), IMAGES, LABELS)
    totals = torch.stack([(layer.gradient * layer.weight).sum() for layer in layers])
    torch.testing.assert_close(totals, totals[:1].expand_as(totals))


def test_propagation_tells_a_saturated_network():
    narrow, wide = (
        sensitivity.propagation(initialise(mlp(nn.Tanh), name), IMAGES, LABELS) for name in ("lecun", "normal")
    )
    assert list(wide.columns) == ["layer", "size", "signal", "error", "slope", "weight", "sensitivity"]
    assert wide["slope"][0] < 0.2 < narrow["slope"][0] and wide["slope"].iloc[-1] == 1
    assert wide["weight"][0] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("model", "labels", "sentence"),
    [
        (conv_chain(), LABELS, "must be an nn.Sequential of linear layers"),
        (residual(), LABELS, "is not factorised here"),
        (mlp(nn.GELU), LABELS, "and Identity, ReLU"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Tanh()), LABELS, "follows another activation"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 5)), LABELS, "takes 100 inputs, not the 192"),
        (mlp(), LABELS.double(), "labels must be integers"),
        (mlp(), LABELS + 100, "do not fit 5 outputs"),
    ],
)
def test_what_cannot_be_factorised_is_one_sentence(model, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        sensitivity.factors(model, IMAGES, labels)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_may_be_integers_of_any_kind(kind):
    images, expected = torch.rand(len(LABELS), *SHAPE).double(), LABELS.to(kind)
    for one, other in zip(*(sensitivity.factors(mlp(), images, each) for each in (LABELS, expected)), strict=True):
        assert torch.equal(one.gradient, other.gradient)


def test_an_activation_that_occurs_twice_counts_twice():
    shared = nn.Tanh()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 5)).double()
    expected = torch.autograd.grad(F.cross_entropy(model(IMAGES), LABELS), [model[i].weight for i in (1, 3, 5)])
    for layer, gradient in zip(sensitivity.factors(model, IMAGES, LABELS), expected, strict=True):
        torch.testing.assert_close(layer.gradient, gradient)


def test_a_bias_that_layers_share_is_added_in_both():
    model = mlp(sizes=(192, 5, 5))
    model[5].bias = model[3].bias
    expected = torch.autograd.grad(F.cross_entropy(model(IMAGES), LABELS), [model[i].weight for i in (1, 3, 5)])
    for layer, gradient in zip(sensitivity.factors(model, IMAGES, LABELS), expected, strict=True):
        torch.testing.assert_close(layer.gradient, gradient)


def test_a_single_layer_is_a_chain_and_one_that_occurs_twice_is_none():
    model = nn.Linear(192, 5).double()
    (layer,) = sensitivity.factors(model, IMAGES, LABELS)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(IMAGES.flatten(1)), LABELS), [model.weight])
    torch.testing.assert_close(layer.gradient, expected)
    assert layer.name == "weight"
    linear = nn.Linear(5, 5).double()
    with pytest.raises(InputError, match="layer '4' is layer '2' again"):
        sensitivity.factors(nn.Sequential(model, nn.ReLU(), linear, nn.ReLU(), linear), IMAGES, LABELS)


def test_foreign_masks_are_one_sentence():
    with pytest.raises(InputError, match="'zz'"):
        sensitivity.factors(mlp(), IMAGES, LABELS, {"zz": torch.ones(1)})
