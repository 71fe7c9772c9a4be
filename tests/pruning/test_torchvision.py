"""Torchvision's classifiers, untrained and on tiny images: pruned as they are, and left as they were."""

import copy
import math

import pytest
from fingerprint import fingerprint
from torch import nn
from toys import batches

from synflow_lib.errors import InputError
from synflow_lib.pruning import SALIENCIES, connected, prunable, prune, synflow
from synflow_lib.theory.assumptions import FAMILIES, SMALLEST, torchvision_model

# 27 million weights and more, where SynFlow must show that it copes; the other methods do the same as elsewhere.
LARGE = ("alexnet", "vgg11_bn", "wide_resnet50_2", "convnext_tiny", "swin_t", "vit_b_16")
NO_SECOND_DERIVATIVE = ("mobilenet_v3_small",)
SATURATED = ("regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")


def built(name):
    size = SMALLEST.get(name, 32)
    return torchvision_model(name, size), (3, size, size)


@pytest.mark.filterwarnings("ignore:synflow scores all weights")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_prunes_exactly_and_changes_nothing(name):
    model, shape = built(name)
    model.train()
    before = fingerprint(model)
    total = sum(weight.numel() for weight in prunable(model).values())
    options = {"input_shape": shape, "batches": [(x.float(), y) for x, y in batches(sizes=(2,), shape=shape)]}
    for method in ("synflow",) if name in LARGE else SALIENCIES:
        if method == "grasp" and name in NO_SECOND_DERIVATIVE:
            with pytest.raises(InputError, match="second derivatives"):
                prune(model, method, 20, **options)
        else:
            masks = prune(model, method, 20, iterations=2 if method == "synflow" else 1, **options)
            assert masks.kept == total - math.floor(0.95 * total) and list(masks) == list(prunable(model)), method
        assert name in LARGE or fingerprint(model) == before, method
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*LARGE, *SATURATED)])
def test_synflow_scores_every_layer(name):
    model, shape = built(name)
    scores = synflow(model, input_shape=shape)
    assert all(bool((score >= 0).all() & score.isfinite().all() & score.any()) for score in scores.values())


@pytest.mark.parametrize("name", SATURATED)
def test_synflow_warns_of_layers_that_it_cannot_score(name):
    model, shape = built(name)
    with pytest.warns(UserWarning, match=r"synflow scores all weights of .* 0 and removes them first"):
        scores = synflow(model, input_shape=shape)
    assert not all(score.any() for score in scores.values())


def test_a_copy_with_relu_finds_masks_for_mobilenet_v2():
    model, shape = built("mobilenet_v2")
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    masks = prune(twin, "synflow", 20, input_shape=shape, iterations=10)
    assert not masks.collapsed() and connected(model, masks, shape)
