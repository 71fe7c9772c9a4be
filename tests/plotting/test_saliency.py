"""Figures of scores draw what their tables say, without a warning (warnings are errors here)."""

import numpy as np
import pandas as pd
import pytest
import torch

from synflow_lib import plotting

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("signed", [False, True])
def test_flow_in_out_draws_each_unit_once_and_the_diagonal(signed):
    flow = RANDOM.uniform(-1 if signed else 0.1, 1, 20)
    table = pd.DataFrame({"group": ["a"] * 10 + ["b"] * 10, "into": flow, "out": flow, "error": 0.25})
    axis = plotting.flow_in_out({"synflow": table}).axes[0]
    assert sum(len(line.get_xdata()) for line in axis.lines[1:]) == 20
    assert axis.get_title(loc="left") == "SynFlow\nworst error 0.25"


def test_mean_score_against_size_fits_the_slope_that_the_data_have():
    size = np.array([10.0, 100.0, 1000.0])
    table = pd.DataFrame({"pruner": "synflow", "inverse_size": 1 / size, "average_score": 3 / size})
    reference = table.assign(average_score=(1 / size) ** 0.5)
    title = plotting.mean_score_against_size(table, reference).axes[0].get_title(loc="left")
    assert title == "SynFlow: slope 1.000\nauthors 0.500"


def test_score_distributions_have_a_box_for_each_layer():
    scores = {"snip": {"a": torch.rand(50), "b": torch.rand(9)}, "random": {"a": torch.rand(5), "b": torch.ones(3)}}
    figure = plotting.score_distributions(scores)
    assert [len(axis.patches) for axis in figure.axes] == [2, 2]


def test_cut_totals_draw_every_cut():
    axis = plotting.cut_totals(pd.DataFrame({"synflow": [1.0, 1.0], "signed loss": [0.5, 1.5]})).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["SynFlow", "signed loss"]
    assert axis.lines[1].get_ydata().tolist() == [0.5, 1.5]
