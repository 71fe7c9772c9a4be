"""Flows within range are the true ones, masks part from one swap on, and the committed tables say what ERRATA says."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import NETWORKS, SHAPE

from synflow_lib import models
from synflow_lib.experiments import rounding, table
from synflow_lib.experiments.rounding import log10_flow, log10_scaled
from synflow_lib.pruning import prune, synaptic_flow


@pytest.mark.parametrize("network", NETWORKS)
def test_the_flow_within_range_is_the_flow(network):
    model = NETWORKS[network]()
    expected = math.log10(synaptic_flow(model, input_shape=SHAPE))
    assert log10_flow(model, SHAPE, torch.float64) == pytest.approx(expected, rel=1e-12)
    assert log10_scaled(model, SHAPE) == pytest.approx(expected, rel=1e-12)
    assert log10_scaled(model.float(), SHAPE) == pytest.approx(expected, abs=1e-6)


def test_a_thousand_layers_are_out_of_range_of_float64_but_not_of_ours():
    deep = rounding.plain(1000)
    assert log10_flow(deep, rounding.CIFAR, torch.float64) == math.inf
    expected = _log10_by_logarithms(deep)
    assert log10_scaled(deep, rounding.CIFAR) == pytest.approx(expected, rel=1e-5)


def _log10_by_logarithms(model) -> float:
    """The flow of a fully connected network without biases, divided by its size after every layer."""
    x, log10 = torch.ones(math.prod(rounding.CIFAR), dtype=torch.float64), 0.0
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            x = layer.weight.detach().double().abs() @ x
            log10, x = log10 + math.log10(x.max()), x / x.max()
    return log10 + math.log10(x.sum())


def test_no_flow_has_no_logarithm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert log10_flow(model, SHAPE, torch.float32) == -np.inf


def test_noise_is_of_the_size_that_it_says_and_of_its_seed():
    model = models.build("mlp", "digits").double()
    one, same, other = (rounding.noisy(model, 1e-6, seed) for seed in (0, 0, 1))
    before, after = model[1].weight.detach(), one[1].weight.detach()
    assert float((after / before - 1).std()) == pytest.approx(1e-6, rel=0.02)
    assert torch.equal(after, same[1].weight) and not torch.equal(after, other[1].weight)


def test_two_runs_side_by_side_are_two_runs_of_prune():
    parting = rounding._parting("vgg11", "float32", 2.0, 20, 0.125, 0)
    model = models.build("vgg11", (rounding.CIFAR, 10), 0.125)
    pair = [prune(m, "synflow", 100, input_shape=rounding.CIFAR, iterations=20) for m in (model, model.double())]
    last = parting.iloc[-1]
    assert last["overlap"] == pair[0].overlap(pair[1]) and last["kept"] == pair[0].kept
    d, kept = parting["differing"], parting["kept"]
    np.testing.assert_allclose(parting["overlap"], (kept - d) / (kept + d))


def test_masks_part_from_one_swap_on_and_only_by_single_precision():
    parting = table("vgg11_rounding")
    runs = {key: part for key, part in parting.groupby(["network", "other", "log10_compression"])}
    assert len(runs) == 6 and all(part["iteration"].tolist() == list(range(1, 101)) for part in runs.values())
    for key, part in runs.items():
        if key[:2] != ("vgg11", "float32"):
            assert (part["differing"] == 0).all(), key
    for a in (2.0, 3.0):
        differing = runs["vgg11", "float32", a]["differing"].to_numpy()
        lasting = differing[np.flatnonzero(differing == 0)[-1] + 1 :]  # an earlier swap may have healed
        assert len(lasting) > 70 and lasting[0] <= 3 and lasting.max() > 1000
        assert 0.6 < runs["vgg11", "float32", a]["overlap"].iloc[-1] < 0.95


def test_float32_overflows_where_errata_says_and_ours_does_not():
    ranges = table("flow_range").set_index("network")
    over = set(ranges.index[np.isinf(ranges["float32"])])
    assert {f"ResNet-{n}, ImageNet" for n in (50, 101, 152)} | {f"ResNet-{n}, CIFAR-10" for n in (56, 110)} <= over
    assert {"MLP of 60 layers", "MLP of 100 layers"} <= over and np.isfinite(ranges["scaled"]).all()
    held = ranges[np.isfinite(ranges["float64"])]
    np.testing.assert_allclose(held["scaled"], held["float64"], atol=1e-4)
    assert ranges.index[np.isinf(ranges["float64"])].tolist() == ["ResNet-1202, CIFAR-10"]


@pytest.mark.parametrize(
    ("network", "flow"),
    [
        ("VGG-11, CIFAR-10", 3e14),
        ("VGG-16, CIFAR-10", 3e22),
        ("ResNet-18, Tiny ImageNet", 7e28),
        ("VGG-19, ImageNet", 1e34),
        ("ResNet-110, CIFAR-10", 1.5e139),
        ("ResNet-152, ImageNet", 1.3e224),
    ],
)
def test_the_sizes_of_known_flows(network, flow):
    found = table("flow_range").set_index("network")["scaled"][network]
    assert found == pytest.approx(math.log10(flow), rel=0.01)  # the seed tells
