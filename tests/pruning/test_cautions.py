"""What one is warned of: scales, weights and scores of zero."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.ops import FrozenBatchNorm2d
from toys import SHAPE, conv_chain

from synflow_lib.pruning import prunable, prune, synflow
from synflow_lib.pruning.cautions import warn_zero_scales, zero_scales

IMAGES = (3, 64, 64)  # smaller ones leave corners of the last 3x3 kernels unread


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


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(6, 6)])
def test_what_instance_normalisation_leaves_of_an_even_input_is_rounding_and_warned_of(norm):
    def network(norm):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.LazyLinear(3))

    for score in (lambda m: synflow(m, input_shape=SHAPE), lambda m: prune(m, "synflow", 2, input_shape=SHAPE)):
        model = network(norm).double()
        model(torch.zeros(1, *SHAPE).double())
        with pytest.warns(UserWarning, match=r"^1 subtracts the mean of each channel.*rounding") as caught:
            score(model)
        assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = synflow(model, input_shape=SHAPE)
    assert scores["0.weight"].sum() < 1e-10 * scores["5.weight"].sum()


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 6), nn.GroupNorm(1, 6), nn.InstanceNorm2d(6, track_running_stats=True)]
)
def test_normalisation_over_several_channels_or_by_running_statistics_is_not_warned_of(norm):
    synflow(nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 4, 3)), input_shape=SHAPE)
