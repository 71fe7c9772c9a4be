"""The ways to score: opposite signs keep complementary halves, and which way the authors' numbers are."""

import math

import pandas as pd
import pytest
import torch

from synflow_lib.benchmark import published
from synflow_lib.experiments import scoring, table
from synflow_lib.pruning import ranked_densities


def test_opposite_signs_keep_complementary_halves():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(size, generator=generator) for name, size in {"a": (6, 7), "b": (4,)}.items()}
    scores["b"] += 1  # the high scores are of b, the low ones of a
    signed = scoring.both_signs("grasp", scores)
    own, other = (ranked_densities(signed[sign], [math.log10(2)])["density"] for sign in ("own", "published"))
    assert (own + other).tolist() == pytest.approx([1.0, 1.0]) and own[1] > other[1]
    assert list(scoring.both_signs("snip", scores)) == ["own"]


def gap(ours: pd.DataFrame, pruner: str) -> float:
    """The mean distance of the densities from the authors', over their compressions and our seeds."""
    theirs = published.table("vgg16_scoring_density").query("pruner == @pruner")
    both = ours.merge(theirs, on=["pruner", "log10_compression", "layer"], suffixes=("", "_authors"))
    assert len(both) == len(theirs) * ours["seed"].nunique()
    return float((both["density"] - both["density_authors"]).abs().mean())


@pytest.mark.parametrize(("pruner", "sign"), [("grasp", "published"), ("snip", "own")])
def test_committed_densities_are_the_authors_with_batch_norm_in_eval_mode_and_grasps_lowest_scores(pruner, sign):
    ways = table("vgg16_scoring_variants").query("pruner == @pruner").groupby(["mode", "sign"])
    gaps = {way: gap(ours, pruner) for way, ours in ways}
    nearest = gaps.pop(("eval", sign))
    assert nearest < 0.03 and nearest < min(gaps.values()) / 2
