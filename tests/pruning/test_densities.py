"""Densities by layer: one look at the scores gives what pruning to each compression anew does."""

import math

import pandas as pd
import pytest
import torch
from toys import SHAPE, batches, conv_chain, mlp

from synflow_lib.errors import InputError
from synflow_lib.pruning import SALIENCIES, first_collapse, layer_densities, prune, ranked_densities, rho_max

COLUMNS = ["log10_compression", "layer", "size", "kept", "density"]


@pytest.mark.parametrize("method", SALIENCIES)
def test_ranking_once_keeps_what_pruning_at_once_does(method):
    model, options = conv_chain(), {"batches": batches(), "input_shape": SHAPE}
    steps = [0.0, 0.31, 1.0, 1.5, math.log10(rho_max(model))]
    ranked = ranked_densities(SALIENCIES[method](model, **options), steps[::-1])
    pruned = [prune(model, method, 10**a, iterations=1, **options).layers().assign(log10_compression=a) for a in steps]
    pd.testing.assert_frame_equal(ranked[COLUMNS], pd.concat(pruned, ignore_index=True)[COLUMNS])
    table = layer_densities(model, [method], steps, iterations=1, **options)
    pd.testing.assert_frame_equal(ranked[COLUMNS], table[COLUMNS])


def test_equal_scores_are_ranked_by_their_place_as_prune_does():
    model = mlp()
    ones = {name: torch.ones_like(score) for name, score in SALIENCIES["magnitude"](model).items()}
    steps = [0.2, 0.7, 1.1]
    ranked = ranked_densities(ones, steps)
    for step in steps:
        kept = prune(model, lambda *_, **__: ones, 10**step).layers()["kept"]
        assert ranked[ranked["log10_compression"] == step]["kept"].tolist() == kept.tolist()


def test_beyond_rho_max_some_layer_is_empty():
    model = mlp()
    scores = SALIENCIES["random"](model)
    total = sum(score.numel() for score in scores.values())
    table = ranked_densities(scores, [math.log10(total / 3), math.log10(total)])
    assert table.groupby("log10_compression")["kept"].sum().tolist() == [3, 1]
    assert first_collapse(table) == pytest.approx(math.log10(total / 3))


def test_scores_that_cannot_be_ranked_give_one_sentence():
    with pytest.raises(InputError, match="infinite or not a number"):
        ranked_densities({"a.weight": torch.tensor([1.0, torch.nan])}, [0.1])


def test_the_first_collapse_is_the_lowest_compression_with_an_empty_layer():
    table = pd.DataFrame({"log10_compression": [3.0, 1.0, 2.0, 2.0], "density": [0.0, 0.1, 0.0, 0.4]})
    assert first_collapse(table) == 2.0
    assert first_collapse(table[table["density"] > 0]) == math.inf
