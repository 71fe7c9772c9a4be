"""Figure 3: sums by hand at a small width, and the committed tables beside the numbers of the authors' data."""

import pandas as pd
import pytest

from synflow_lib import experiments, models
from synflow_lib.benchmark import published
from synflow_lib.experiments import neurons
from synflow_lib.theory.conservation import violation

SMALL = {"width": 1 / 16, "input_shape": (3, 32, 32)}
AUTHORS = published.table("figure3_violation").set_index("pruner")["violation"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setenv("SYNFLOW_PROCESSES", "1")


@pytest.fixture(scope="module")
def committed() -> dict[str, pd.DataFrame]:
    return neurons.by_pruner(*(experiments.table(name) for name in ("vgg19_neurons", "vgg19_neurons_images")))


def test_flows_are_sums_over_a_unit_s_weights_in_shares_of_the_largest():
    table = neurons.vgg19_neurons(**SMALL)
    network = models.build("vgg19", ((3, 32, 32), 1000), SMALL["width"])
    first, second = (network.features[index].weight.detach().abs().double() for index in (0, 2))
    into, out = first.sum((1, 2, 3)), second.sum((0, 2, 3))
    part = table[table["layer"] == 0]
    ratio = (part["magnitude_difference"] / part["magnitude"]).to_numpy()
    assert ratio == pytest.approx(((into - out) / into).numpy(), rel=0.02)  # three digits of each
    assert table["magnitude"].max() == 1 and len(table) == 4992 / 16


def test_synflow_conserves_at_a_small_width_too():
    units = neurons.by_pruner(neurons.vgg19_neurons(**SMALL))
    assert violation(units["synflow"]) <= 1e-12 and units["synflow"]["error"].max() <= 1e-12
    assert 1e-9 < violation(units["synflow_float32"]) <= 1e-5
    assert violation(units["magnitude"]) > 0.3


def test_scores_on_images_say_which_and_how_many():
    table = neurons.vgg19_neurons_images(images=6, **SMALL)
    assert set(table["snip_images"]) | set(table["grasp_images"]) == {"6 digits"}
    units = neurons.by_pruner(table)
    assert (units["snip"][["into", "out"]] >= 0).all(axis=None) and (units["grasp"]["into"] < 0).any()
    assert violation(units["grasp"]) < 0.2 < violation(units["snip"])


def test_taking_a_table_apart_gives_what_was_put_in():
    table = pd.DataFrame({"layer": [0, 1], "unit": [3, 3], "snip": [1.0, 0.5], "snip_difference": [-1.0, 0.25]})
    (units,) = neurons.by_pruner(table).values()
    assert units["out"].tolist() == [2.0, 0.25] and units["error"].tolist() == [0.5, 0.5]
    assert units["group"].tolist() == [0, 1] and violation(units) == 1


def test_the_committed_units_are_those_between_two_convolutions(committed):
    sizes = [64, 64, 128, 128, *[256] * 4, *[512] * 7]
    for units in committed.values():
        assert units.groupby("group").size().tolist() == sizes and len(units) == 4992
    assert set(committed) == {*AUTHORS.index, "synflow_float32"}


def test_synflow_conserves_at_every_unit_of_the_paper_s_network(committed):
    assert violation(committed["synflow"]) <= 1e-12 and committed["synflow"]["error"].max() <= 1e-12
    assert violation(committed["synflow_float32"]) <= 1e-6 and committed["synflow_float32"]["error"].max() <= 1e-6


@pytest.mark.parametrize(("pruner", "within"), [("magnitude", 0.02), ("snip", 0.06), ("grasp", 0.12)])
def test_the_others_miss_conservation_by_what_the_authors_missed_it(committed, pruner, within):
    assert violation(committed[pruner]) == pytest.approx(AUTHORS[pruner], rel=within)


def test_uniform_random_scores_miss_it_by_the_number_of_readers(committed):
    # The first of 512 channels are read by twice as many weights as feed them: 1 - 1/2 of the largest flow, and noise.
    assert violation(committed["random"]) == pytest.approx(0.52, abs=0.02)
    channels = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    expected = [1 - before / after for before, after in zip(channels, channels[2:], strict=False)]
    medians = committed["random"].groupby("group")["error"].median().tolist()
    assert medians == pytest.approx(expected, abs=0.02)
