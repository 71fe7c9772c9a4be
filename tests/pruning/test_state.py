"""The network that is scored: masked, absolute, with BatchNorm as it was trained or as the identity."""

import warnings

import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from toys import conv_chain

from synflow_lib.errors import InputError
from synflow_lib.pruning import synflow
from synflow_lib.pruning.passes import forward
from synflow_lib.pruning.state import absolute_state, batch_norms, masked_state, scoring_mode


def norms():
    """One BatchNorm of every kind, with parameters and statistics that are far from those at initialisation."""
    torch.manual_seed(0)
    layers = {
        "plain": nn.BatchNorm2d(4),
        "coarse": nn.BatchNorm2d(4, eps=1e-3),
        "coarser": nn.BatchNorm2d(4, eps=0.3),
        "without_scale": nn.BatchNorm2d(4, affine=False),
        "frozen": FrozenBatchNorm2d(4),
        "synchronised": nn.SyncBatchNorm(4),
    }
    for layer in layers.values():
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(4))
        layer.running_var.copy_(torch.rand(4) + 0.5)
    return layers


@pytest.mark.parametrize("kind", norms())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bypassed_batch_norm_is_the_identity_to_the_last_bit(kind, dtype):
    model = nn.Sequential(norms()[kind]).train()
    before = fingerprint(model)
    x = torch.rand(2, 4, 3, 3, dtype=dtype) * 100
    with scoring_mode(model, absolute_state(model, None, dtype, bypass_norm=True)):
        assert torch.equal(forward(model, x), x)
    with scoring_mode(model, absolute_state(model, None, dtype)):
        assert not torch.allclose(forward(model, x), x)
    assert fingerprint(model) == before


@pytest.mark.parametrize("kind", norms())
def test_batch_norm_counts_with_its_variance_and_without_signs_or_means(kind):
    norm = norms()[kind]
    weight, bias = (1, 0) if kind == "without_scale" else (norm.weight.abs(), norm.bias.abs())
    x = torch.rand(5, 4, 1, 1)
    with scoring_mode(norm, absolute_state(norm, None, torch.float64)):
        output = forward(norm, x.double()).flatten(1)
    expected = x.flatten(1).double() / (norm.running_var.double() + norm.eps).sqrt() * weight + bias
    assert torch.allclose(output, expected.detach(), rtol=1e-6)


def test_a_batch_norm_that_uses_the_batch_cannot_be_bypassed():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(InputError, match=r"^1 is a BatchNorm without running statistics.*put torch.nn.Identity"):
        synflow(model, input_shape=(3,), bypass_norm=True)


def test_two_batch_norms_that_share_their_scale_are_bypassed_both():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).double()
    model[2].weight = model[1].weight
    nn.init.constant_(model[1].weight, 3)
    x = torch.rand(2, 4).double()
    with scoring_mode(model, absolute_state(model, None, torch.float64, bypass_norm=True)):
        output = forward(model, x)
    assert torch.equal(output, x @ model[0].weight.abs().T + model[0].bias.abs())


def test_a_masked_state_is_a_copy_in_the_type_asked_for():
    model = conv_chain().float()
    state = masked_state(model, {"0.weight": torch.zeros_like(model[0].weight, dtype=torch.bool)}, torch.float64)
    assert not state["0.weight"].any() and model[0].weight.any()
    assert state["4.weight"].dtype == torch.float64 and state["1.num_batches_tracked"].dtype == torch.int64
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in masked_state(model, None).values())


def test_a_traced_part_is_scored_with_the_state_and_has_its_own_tensors_afterwards():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2)).double()
    model = nn.Sequential(*plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in use
        model[2] = torch.jit.trace(plain[2], torch.zeros(1, 5).double())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores, expected = synflow(model, input_shape=(4,)), synflow(plain, input_shape=(4,))
    assert list(scores) == ["0.weight", "3.weight"]
    assert all(torch.allclose(score, expected[name]) for name, score in scores.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model[2].weight, nn.Parameter)


def test_batch_norms_are_those_that_have_statistics_each_once():
    part = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.LayerNorm(4))
    model = nn.Sequential(nn.Linear(4, 4), part, FrozenBatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4))
    assert [prefix for prefix, _ in batch_norms(model)] == ["1.0.", "2."]


def test_a_mask_of_nothing_and_one_of_another_shape_are_told_apart():
    with pytest.raises(InputError, match=r"'99.weight' is \(2, 3\), but Sequential has no such parameter"):
        masked_state(conv_chain(), {"99.weight": torch.ones(2, 3)})
    with pytest.raises(InputError, match=r"'0.weight' is \(2, 3\), but Sequential has the shape \(\d+, 3, 3, 3\)"):
        masked_state(conv_chain(), {"0.weight": torch.ones(2, 3)})
