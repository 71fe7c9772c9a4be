"""Every initialisation has the variance that defines it, and orthogonal weights are orthogonal."""

import pytest
import torch
from torch import nn

from synflow_lib.errors import InputError
from synflow_lib.models import build
from synflow_lib.models.initialisation import INITIALISATIONS, initialise

VARIANCE = {  # of a layer with 300 inputs and 100 outputs
    "normal": 1.0,
    "lecun": 1 / 300,
    "glorot": 2 / 400,
    "he": 2 / 300,
    "variance scaling": 1 / 300,
    "orthogonal": 1 / 300,
}


@pytest.mark.parametrize("name", INITIALISATIONS)
def test_weights_have_the_variance_of_their_scheme_times_the_gain_and_biases_are_zero(name):
    layer = initialise(nn.Linear(300, 100), name, gain=3.0).requires_grad_(False)
    assert abs(layer.weight.mean()) < 0.02 * layer.weight.std()
    assert float(layer.weight.var()) == pytest.approx(9 * VARIANCE[name], rel=0.03)
    assert not layer.bias.any()


def test_variance_scaling_is_cut_off_at_two_deviations_and_lecun_is_not():
    cut, whole = (initialise(nn.Linear(300, 100), name).weight.abs().max() for name in ("variance scaling", "lecun"))
    assert cut <= 2 / 300**0.5 / 0.8796 + 1e-6 < whole  # 0.8796 is TensorFlow's constant


@pytest.mark.parametrize("layer", [nn.Linear(30, 30), nn.Linear(40, 20), nn.Conv2d(5, 16, 3)])
def test_orthogonal_weights_have_all_singular_values_1(layer):
    values = torch.linalg.svdvals(initialise(layer.double(), "orthogonal").weight.flatten(1))
    torch.testing.assert_close(values, torch.ones_like(values))


def test_a_seed_gives_its_weights_and_leaves_the_global_random_state():
    state = torch.random.get_rng_state()
    one, same, other = (initialise(build("vgg11", "digits", width=0.05), "he", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and (a.ndim == 1 or not torch.equal(a, c))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"name": "xavier"}, "unknown initialisation"), ({"name": "he", "gain": 0.0}, "gain must be a positive")],
)
def test_bad_input_is_one_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        initialise(nn.Linear(3, 2), **settings)
