"""Densities by layer: one look at the scores gives what pruning to each compression anew does."""

import math

import pandas as pd
import pytest
import torch
from toys import SHAPE, batches, conv_chain, mlp

from synflow_lib.errors import InputError
from synflow_lib.pruning import SALIENCIES, first_collapse, layer_densities, prune, ranked_densities, rho_max
from synflow_lib.pruning.densities import scored_once

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


def test_densities_are_those_of_prune_with_the_iterations_of_each_method():
    model, options = conv_chain(), {"batches": batches(), "input_shape": SHAPE}
    table = layer_densities(model, ["synflow", "snip"], [1.0, 1.5], **options)
    parts = [
        prune(model, method, 10**a, **options).layers().assign(pruner=method, log10_compression=a)
        for method in ("synflow", "snip")
        for a in (1.0, 1.5)
    ]
    pd.testing.assert_frame_equal(table, pd.concat(parts, ignore_index=True))
    once = layer_densities(model, ["synflow"], [1.5], iterations=1, **options)
    assert once["kept"].tolist() != parts[1]["kept"].tolist()


def test_a_whole_network_is_scored_once_and_a_pruned_one_each_time():
    model, seen = mlp(), []

    def counting(model, masks, **options):
        seen.append((masks, options))
        return SALIENCIES["magnitude"](model, masks)

    table = layer_densities(model, {"mine": counting, "magnitude": "magnitude"}, [0.5, 1.0, 1.5], input_shape=SHAPE)
    assert len(seen) == 1
    mine, named = (table[table["pruner"] == name]["kept"].tolist() for name in ("mine", "magnitude"))
    assert mine == named and len(mine) + len(named) == len(table)
    layer_densities(model, {"mine": counting}, [0.5, 1.0], iterations=2, input_shape=SHAPE)
    assert len(seen) == 1 + 2 * 2
    pruned, cached = prune(model, "magnitude", 4), scored_once(counting, model)
    for masks in (pruned, pruned):
        scores = cached(model, masks, seed=3)
        assert seen[-1] == (pruned, {"seed": 3}) and not any(bool(scores[name][~pruned[name]].any()) for name in scores)
    assert len(seen) == 1 + 2 * 2 + 2


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
