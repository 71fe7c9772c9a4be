"""VGG-19 is scored whole, biases too, on images where a pruner needs them; small variants stand for the large one."""

import pytest
import torch

from synflow_lib import data
from synflow_lib.experiments import vgg19
from synflow_lib.pruning import NEEDS_DATA, SALIENCIES, loss_saliency

SMALL = {"width": 1 / 16, "input_shape": (3, 32, 32)}


@pytest.mark.parametrize("pruner", SALIENCIES)
def test_all_parameters_are_scored_and_images_named_where_there_are_any(pruner):
    network, scores, seen = vgg19.scored(pruner, images=5, **SMALL)
    assert {n: s.shape for n, s in scores.items()} == {n: p.shape for n, p in network.named_parameters()}
    assert seen == ("5 digits" if pruner in NEEDS_DATA else "")


def test_the_double_precision_asked_for_is_that_of_the_scores():
    _, scores, _ = vgg19.scored("synflow", torch.float64, **SMALL)
    assert {score.dtype for score in scores.values()} == {torch.float64}


def test_batches_change_no_score():
    network, scores, _ = vgg19.scored("snip", images=23, **SMALL)  # in batches of 10, 10 and 3
    whole, _ = vgg19.pictures(23, SMALL["input_shape"], at_once=23)
    expected = loss_saliency(network, batches=whole, parameters=list(scores))
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name].abs(), rtol=1e-3, atol=1e-9)


def test_pictures_are_as_many_and_as_large_as_asked():
    batches, name = vgg19.pictures(5, (3, 64, 64), at_once=2)
    assert name == "5 digits" and [len(labels) for _, labels in batches] == [2, 2, 1]
    assert all(images.shape == (len(labels), 3, 64, 64) for images, labels in batches)
    drawn, labels = data.scoring_batches(data.load("digits"), 1, 5)[0]
    assert torch.equal(torch.cat([label for _, label in batches]), labels[:5])
    means = torch.cat([images for images, _ in batches]).mean((1, 2, 3))
    torch.testing.assert_close(means, drawn[:5].mean((1, 2, 3)), rtol=0.02, atol=0.02)  # enlarged, not cropped


@pytest.mark.parametrize("before", [True, False])
def test_onednn_is_as_it_was_whatever_happens(before):
    def enabled():
        return torch.backends.mkldnn.enabled

    found = enabled()
    try:
        torch.backends.mkldnn.enabled = before
        with vgg19.plain_sums(False):
            assert enabled() == before
        with pytest.raises(KeyError), vgg19.plain_sums():
            assert not enabled()
            raise KeyError
        assert enabled() == before
    finally:
        torch.backends.mkldnn.enabled = found
