"""Figures of scores draw what their tables say, without a warning (warnings are errors here)."""

import numpy as np
import pandas as pd
import pytest
import torch

from synflow_lib import plotting
from synflow_lib.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("signed", [False, True])
def test_flow_in_out_draws_each_unit_once_and_the_diagonal(signed):
    flow = RANDOM.uniform(-1 if signed else 0.1, 1, 20)
    difference = np.where(np.arange(20) == 7, 0.25 * np.abs(flow).max(), 0.0)
    table = pd.DataFrame({"group": ["a"] * 10 + ["b"] * 10, "into": flow, "out": flow, "difference": difference})
    axis = plotting.flow_in_out({"synflow": table}).axes[0]
    assert sum(len(line.get_xdata()) for line in axis.lines[1:]) == 20
    assert axis.get_title(loc="left") == "SynFlow\nlargest |in − out| 0.25"


def test_a_flow_of_zero_stands_at_the_lower_end_of_a_logarithmic_axis():
    table = pd.DataFrame({"group": "a", "into": [1.0, 0.0, 0.1], "out": [1.0, 0.5, 0.0], "difference": [0, -0.5, 0.1]})
    axis = plotting.flow_in_out({"synflow": table}).axes[0]
    assert axis.lines[1].get_xydata().tolist() == [[1.0, 1.0], [0.1, 0.5], [0.1, 0.1]]
    with pytest.raises(InputError, match="no unit of SynFlow has any flow"):
        plotting.flow_in_out({"synflow": table.assign(into=0.0, out=0.0)})


TICKS = {
    (0.002, 30): ["$10^{1}$", "$10^{0}$", "$10^{-1}$", "$10^{-2}$"],
    (3e-7, 1): ["$10^{0}$", "$10^{-2}$", "$10^{-4}$", "$10^{-6}$"],
    (0.09, 1): ["$10^{-1}$", "$10^{0}$"],
    (0.2, 1.5): ["0.2", "1.5"],
    (-0.5, 1): ["−$10^{-2}$", "−$10^{0}$", "0", "$10^{-2}$", "$10^{0}$"],
}


@pytest.mark.parametrize("ends", TICKS)
def test_logarithmic_axes_have_powers_of_ten(ends):
    table = pd.DataFrame({"group": "a", "into": ends, "out": ends, "difference": 0.0})
    axis = plotting.flow_in_out({"synflow": table}).axes[0]
    for each in (axis.xaxis, axis.yaxis):
        assert sorted(tick.get_text() for tick in each.get_ticklabels()) == sorted(TICKS[ends])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_panels_stand_in_rows_of_three_and_all_are_named(number):
    table = pd.DataFrame({"group": "a", "into": [1.0, 2.0], "out": [1.0, 2.0], "difference": [0.0, 0.0]})
    figure = plotting.flow_in_out({name: table for name in list(plotting.NAMES)[:number]})
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title(loc="left").split("\n")[0] for axis in drawn] == list(plotting.NAMES.values())[:number]
    assert [bool(axis.get_ylabel()) for axis in drawn] == [index % 3 == 0 for index in range(number)]
    assert [bool(axis.get_xlabel()) for axis in drawn] == [index >= number - 3 for index in range(number)]
    assert [len(axis.get_legend().get_texts()) for axis in figure.axes if axis.get_legend()] == [4] * (number > 3)


def test_mean_score_against_size_fits_the_slope_that_the_data_have():
    size = np.array([10.0, 100.0, 1000.0])
    table = pd.DataFrame({"pruner": "synflow", "inverse_size": 1 / size, "average_score": 3 / size})
    reference = table.assign(average_score=(1 / size) ** 0.5)
    axis = plotting.mean_score_against_size(table, reference).axes[0]
    assert axis.get_title(loc="left") == "SynFlow: slope 1.000\nauthors 0.500"
    ours, theirs = axis.lines[0].get_ydata(), axis.lines[2].get_ydata()
    assert np.prod(ours) == pytest.approx(1) and np.prod(theirs) == pytest.approx(1)  # each over its geometric mean


def test_layers_without_a_logarithm_are_counted():
    size = np.array([10.0, 100.0, 1000.0, 50.0])
    table = pd.DataFrame({"pruner": "grasp", "inverse_size": 1 / size, "average_score": 3 / size * [1, 1, -1, 1]})
    axis = plotting.mean_score_against_size(table).axes[0]
    assert axis.get_title(loc="left") == "GraSP: slope 1.000\n3 of 4 layers, the rest negative"


def test_slopes_are_drawn_on_the_same_axes():
    size = np.array([10.0, 100.0, 1000.0])
    slopes = {"random": 0.0, "synflow": 1.0}
    parts = [
        pd.DataFrame({"pruner": p, "inverse_size": 1 / size, "average_score": size**-k}) for p, k in slopes.items()
    ]
    flat, steep = plotting.mean_score_against_size(pd.concat(parts)).axes[:2]
    assert flat.get_ylim() == steep.get_ylim() and flat.get_xlim() == steep.get_xlim()
    low, high = flat.get_ylim()
    assert low < 0.1 and high > 10


def test_score_distributions_have_a_box_for_each_layer():
    scores = {"snip": {"a": torch.rand(50), "b": torch.rand(9)}, "random": {"a": torch.rand(5), "b": torch.ones(3)}}
    figure = plotting.score_distributions(scores)
    assert [len(axis.patches) for axis in figure.axes] == [2, 2]


def test_cut_totals_draw_every_cut():
    axis = plotting.cut_totals(pd.DataFrame({"synflow": [1.0, 1.0], "signed loss": [0.5, 1.5]})).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["SynFlow", "signed loss"]
    assert axis.lines[1].get_ydata().tolist() == [0.5, 1.5]
