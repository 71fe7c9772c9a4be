"""The network that SynFlow scores: absolute, with BatchNorm as it was trained or as the identity, and warned of."""

import warnings

import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.ops import FrozenBatchNorm2d
from toys import SHAPE, conv_chain

from synflow_lib.errors import InputError
from synflow_lib.pruning import prunable, prune, synflow
from synflow_lib.pruning.state import (
    absolute_state,
    example_input,
    forward,
    masked_state,
    scoring_mode,
    warn_zero_scales,
    zero_scales,
)

IMAGES = (3, 64, 64)  # smaller ones leave corners of the last 3x3 kernels unread


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


@pytest.mark.parametrize("model, shape, dtype, runs", [
    (nn.Linear(5, 2), (5,), torch.float32, 0),
    (nn.Linear(5, 2).double(), (5,), torch.float64, 0),
    (nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), (5,), torch.int64, 1),
])  # fmt: skip
def test_an_example_is_what_the_model_takes_and_a_model_without_embedding_is_not_run(model, shape, dtype, runs):
    run = []
    model.register_forward_pre_hook(lambda module, inputs: run.append(module))
    example = example_input(model, 2, shape)
    assert (example.shape, example.dtype, len(run)) == ((2, *shape), dtype, runs)
    model(example)


def test_zero_scales_are_those_without_any_channel():
    model = nn.ModuleDict(
        {
            "zero": nn.BatchNorm2d(4),
            "partly": nn.BatchNorm2d(4),
            "without_scale": nn.BatchNorm2d(4, affine=False),
            "group": nn.GroupNorm(2, 4),
            "layer": nn.LayerNorm(4),
            "frozen": FrozenBatchNorm2d(4),
            "one": nn.LayerNorm(4),
        }
    )
    for name in ("zero", "group", "layer", "frozen"):
        model[name].weight.detach().zero_()
    model["partly"].weight.detach()[:3] = 0
    assert zero_scales(model) == ["zero", "group", "layer", "frozen"]


def without_norms(model):
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def test_zero_initialised_blocks_score_zero_with_a_warning_and_are_scored_with_batch_norm_bypassed():
    torch.manual_seed(0)
    model = resnet18(num_classes=10, zero_init_residual=True).double()
    with pytest.warns(UserWarning, match=r"layer1.0.bn2, .* and 5 more \(8 in all\).*bypass_norm=True"):
        scores = synflow(model, input_shape=IMAGES)
    in_blocks = [name for name in scores if ".conv" in name]
    assert len(in_blocks) == 16 and not any(scores[name].any() for name in in_blocks)

    bypassed = synflow(model, input_shape=IMAGES, bypass_norm=True)  # without a warning, which would be an error
    assert all(score.min() > 0 for score in bypassed.values())
    reference = synflow(without_norms(model), input_shape=IMAGES)
    assert all(torch.allclose(bypassed[name], reference[name], rtol=1e-12, atol=0) for name in reference)


def test_prune_warns_once_however_often_it_scores_and_keeps_blocks_where_batch_norm_is_bypassed():
    torch.manual_seed(0)
    model = resnet18(num_classes=10, zero_init_residual=True)

    def emptied_blocks(**options):
        masks = prune(model, "synflow", 20, input_shape=IMAGES, iterations=3, **options)
        return [name for name in masks.collapsed() if ".conv" in name]

    with pytest.warns(UserWarning) as caught:
        assert len(emptied_blocks()) >= 8
    assert len(caught) == 1 and "zero in every channel" in str(caught[0].message)
    assert not emptied_blocks(bypass_norm=True)


def test_the_warning_points_to_the_line_that_scores():
    model = conv_chain()
    nn.init.zeros_(model[1].weight)
    for score in (lambda: synflow(model, input_shape=SHAPE), lambda: prune(model, "synflow", 2, input_shape=SHAPE)):
        with pytest.warns(UserWarning) as caught:
            score()
        assert [warning.filename for warning in caught] == [__file__]


def test_a_head_of_zeros_is_warned_of():
    model = VisionTransformer(
        image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    )
    with pytest.warns(UserWarning, match=r"all weights are zero in heads.head.weight"):
        assert not any(score.any() for score in synflow(model, input_shape=IMAGES).values())


def test_saturated_activations_are_warned_of_and_a_copy_with_relu_is_scored():
    def network(activation):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 40), activation(), nn.Linear(40, 5)).double()

    saturated = network(nn.ReLU6)
    nn.init.constant_(saturated[1].weight, 1)
    with pytest.warns(UserWarning, match=r"scores all weights of 1.weight 0.*saturated"):
        assert not synflow(saturated, input_shape=SHAPE)["1.weight"].any()
    masks = prune(network(nn.ReLU), "synflow", 5, input_shape=SHAPE, iterations=5)
    assert list(masks) == list(prunable(saturated)) and not masks.collapsed()


def test_an_ordinary_network_is_not_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert warn_zero_scales(conv_chain()) is False
        synflow(conv_chain(), input_shape=SHAPE)
    assert caught == []
