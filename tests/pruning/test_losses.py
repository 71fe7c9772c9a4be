"""Each loss is its formula, and scores by it need no labels."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from toys import CLASSES, NETWORKS, SHAPE, batches, mlp

from synflow_lib.errors import InputError
from synflow_lib.pruning import LOSSES, SALIENCIES, loss_saliency, prunable, prune, snip
from synflow_lib.pruning.losses import random_labels

OUTPUTS = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
grasp = SALIENCIES["grasp"]
UNLABELLED = [name for name in LOSSES if name != "supervised"]


def test_the_supervised_loss_is_the_cross_entropy():
    assert LOSSES["supervised"](OUTPUTS, LABELS) == F.cross_entropy(OUTPUTS, LABELS)


def test_the_uniform_loss_is_the_mean_of_the_cross_entropies_with_every_class():
    classes = [F.cross_entropy(OUTPUTS, torch.full((6,), c)) for c in range(CLASSES)]
    torch.testing.assert_close(LOSSES["uniform"](OUTPUTS), torch.stack(classes).mean())


def test_entropy_is_that_of_the_softmax():
    expected = torch.distributions.Categorical(logits=OUTPUTS).entropy().mean()
    torch.testing.assert_close(LOSSES["entropy"](OUTPUTS), expected)


def test_random_labels_are_labels_and_those_of_their_seed():
    losses = {float(random_labels(OUTPUTS, seed=seed)) for seed in range(4)}
    assert len(losses) == 4 and random_labels(OUTPUTS, LABELS) == random_labels(OUTPUTS)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", UNLABELLED)
@pytest.mark.parametrize("method", [snip, grasp])
def test_scores_without_labels_need_none_and_read_none(network, loss, method):
    model, data = NETWORKS[network](), batches()
    scores = method(model, batches=[(images, None) for images, _ in data], loss=loss)
    labelled = method(model, batches=data, loss=loss)
    assert all(torch.equal(scores[name], labelled[name]) for name in scores)
    assert any(not torch.equal(scores[name], score) for name, score in method(model, batches=data).items())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [(9,), (7, 5)])
def test_grasp_by_a_loss_is_the_weight_times_its_hessian_times_its_gradient(loss, sizes):
    """The plain double backward over all examples at once, in float64 like the network."""
    model, data = mlp(activation=nn.Tanh, sizes=(192, 4, 3)), batches(sizes)
    drawn = [random_labels_of(len(images)) for images, _ in data]  # batch by batch, as the scores are
    images = torch.cat([images for images, _ in data])
    outputs, weights = model(images), list(prunable(model).values())
    labels = torch.cat(drawn if loss == "random labels" else [labels for _, labels in data])
    name = "supervised" if loss == "random labels" else loss
    gradient = torch.autograd.grad(LOSSES[name](outputs, labels), weights, create_graph=True)
    norm = sum(g.square().sum() for g in gradient) / 2  # its gradient is H g
    expected = [w.detach() * hg for w, hg in zip(weights, torch.autograd.grad(norm, weights), strict=True)]
    for score, value in zip(grasp(model, batches=data, loss=loss).values(), expected, strict=True):
        assert score.dtype == torch.float64
        torch.testing.assert_close(score, value, rtol=1e-9, atol=1e-15)


def random_labels_of(count):
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [snip, grasp])
def test_the_loss_is_the_supervised_one_unless_told_otherwise_bit_for_bit(method):
    model, data = NETWORKS["conv_chain"](), batches()
    default, named = method(model, batches=data), method(model, batches=data, loss="supervised")
    own = method(model, batches=data, loss=lambda outputs, labels: F.cross_entropy(outputs, labels))
    assert all(torch.equal(default[name], named[name]) and torch.equal(default[name], own[name]) for name in default)


def test_the_scores_of_a_loss_are_its_gradient_times_the_weight():
    model, (images, _) = NETWORKS["mlp"](), batches((7,))[0]
    LOSSES["entropy"](model(images)).backward()
    for name, score in loss_saliency(model, batches=[(images, None)], loss="entropy").items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(score, weight.grad * weight.detach())


def test_any_function_of_outputs_and_labels_can_be_the_loss_and_prune():
    model, data = NETWORKS["conv_chain"](), batches()
    own = partial(snip, loss=lambda outputs, labels: F.cross_entropy(outputs, labels))
    same, supervised = (prune(model, method, 10, batches=data) for method in (own, "snip"))
    assert same.overlap(supervised) == 1
    assert prune(model, partial(snip, loss="uniform"), 10, batches=data).kept == supervised.kept


@pytest.mark.parametrize(
    ("loss", "data", "sentence"),
    [
        ("supervised", [(torch.zeros(4, *SHAPE), None)], "batches must be a sequence"),
        ("uniformed", batches(), "did you mean 'uniform'"),
        (lambda outputs, labels: outputs.sum(1), batches(), "must give one number"),
        (lambda outputs, labels: torch.ones(()), batches(), "that depends on the outputs"),
    ],
)
@pytest.mark.parametrize("method", [snip, grasp])
def test_what_cannot_be_used_is_one_sentence(loss, data, sentence, method):
    with pytest.raises(InputError, match=sentence):
        method(NETWORKS["mlp"](), batches=data, loss=loss)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvisions_resnets_are_scored_with_and_without_labels(name, loss):
    torch.manual_seed(0)
    model = get_model(name, num_classes=10)
    scores = snip(model, batches=[(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))], loss=loss)
    assert len(scores) == len(prunable(model)) and all(bool(score.isfinite().all()) for score in scores.values())
    assert sum(bool(score.any()) for score in scores.values()) == len(scores)
