"""Layer-collapse: the experiments on small networks, and their committed tables beside the authors' numbers."""

import math

import pandas as pd
import pytest
import torch

from synflow_lib import models
from synflow_lib.benchmark import published
from synflow_lib.experiments import collapse, table
from synflow_lib.experiments.scoring import BATCH
from synflow_lib.experiments.vgg19 import pictures
from synflow_lib.pruning import SALIENCIES, critical_compressions, first_collapse, prune, rho_max

SMALL = ((3, 32, 32), 100)
KEYS = ["pruner", "index", "layer"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("SYNFLOW_PROCESSES", "1")


def committed() -> pd.DataFrame:
    return table("vgg19_layer_density")


def authors() -> pd.DataFrame:
    return published.table("figure2_layer_density").query("iterations <= 100")


def test_the_densities_of_a_narrow_vgg19_are_those_of_its_masks():
    width, step = 1 / 64, 3
    found = collapse.vgg19_layer_density(width, SMALL, images=20, doublings=step)
    model = models.build("vgg19", SMALL, width)
    for pruner, options in {"random": {}, "magnitude": {}, "synflow": {"input_shape": SMALL[0]}}.items():
        ours = found.query("pruner == @pruner and index == @step")
        layers = prune(model, pruner, 2**step, **options).layers()
        assert ours["module"].tolist() == layers["layer"].tolist()
        assert ours["density"].tolist() == layers["density"].tolist()
    assert list(dict.fromkeys(found["pruner"])) == list(SALIENCIES)
    assert set(found.query("pruner in ['snip', 'grasp']")["images"]) == {"20 digits"}
    assert found["index"].max() == pytest.approx(math.log2(rho_max(model)))
    assert (found.query("index == 0")["density"] == 1).all()


@pytest.mark.parametrize("pruner", collapse.DATA_FREE)
def test_iteration_changes_no_mask_of_random_and_magnitude(pruner):
    model = models.build("vgg16", SMALL, 1 / 16)
    once, often = (prune(model, pruner, 50, iterations=n, seed=2) for n in (1, 7))
    assert all(torch.equal(once[name], often[name]) for name in once)


@pytest.fixture(scope="module")
def narrow() -> dict[str, pd.DataFrame]:
    """Both tables of a VGG-16 of 1/16 of the width, of one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNFLOW_PROCESSES", "1")
        return collapse.vgg16_tables(1 / 16, (3,), 20, 10, 0.1, 0.5, log10_compressions=(0.5, 1.0))


def test_critical_compressions_of_a_narrow_vgg16(narrow):
    found = narrow["vgg16_critical_compression"]
    keys = ["pruner", "mode", "sign", "iterations"]
    cells = found.pivot(index=keys, columns="criterion", values="log10_compression")
    assert (cells["signal"] <= cells["layer"] + 0.1).all()  # in a chain an empty layer lets no signal through
    for pruner in collapse.DATA_FREE:
        assert cells.loc[pruner, "eval", "own", 1].equals(cells.loc[pruner, "eval", "own", 100])
    assert cells.loc["synflow", "eval", "own", 100]["layer"] > cells.query("pruner != 'synflow'")["layer"].max()
    assert set(found["images"]) == {"", "20 digits", "10 digits"}
    assert sorted(key[1:] for key in cells.index if key[0] == "grasp") == [
        ("eval", "own", 1),
        ("eval", "own", 10),
        ("eval", "published", 1),
        ("train", "own", 1),
        ("train", "published", 1),
    ]


def test_scored_once_for_both_tables_is_as_if_scored_for_each(narrow):
    model = models.build("vgg16", SMALL, 1 / 16, 3)
    batches, seen = pictures(20, SMALL[0], BATCH, 3)
    options = {"batches": batches, "input_shape": SMALL[0]}
    for way, rows in narrow["vgg16_scoring_variants"].groupby(["pruner", "mode", "sign"]):
        how = {"train_mode": way[1] == "train", "invert": way[2] == "published"}
        critical = critical_compressions(model, way[0], tolerance=0.1, **options, **how)
        same = narrow["vgg16_critical_compression"].query("iterations == 1").set_index(["pruner", "mode", "sign"])
        found = same.loc[way].set_index("criterion")["log10_compression"]
        assert found.to_dict() == {criterion: math.log10(rho) for criterion, rho in critical.items()}
        assert set(rows["images"]) == {seen} and set(rows["seed"]) == {3}
        for log10, layers in rows.groupby("log10_compression"):
            expected = prune(model, way[0], 10**log10, **options, **how).layers()
            assert layers[["size", "density"]].to_numpy().tolist() == expected[["size", "density"]].to_numpy().tolist()


def test_every_way_to_score_keeps_as_many_weights_and_the_modes_keep_others(narrow):
    found = narrow["vgg16_scoring_variants"]
    assert found["layer"].max() == 13
    ways = found.assign(kept=found["density"] * found["size"]).groupby(["pruner", "mode", "sign", "log10_compression"])
    assert len(ways) == 12 and ways["kept"].sum().round(6).nunique() == 2
    first = found.query("layer == 0 and log10_compression == 1").set_index(["pruner", "mode", "sign"])["density"]
    assert first.groupby("pruner").nunique().tolist() == [4, 2]


def test_committed_vgg19_is_whole_and_its_compressions_are_what_they_say():
    ours = committed()
    assert sorted(set(ours["index"]))[:-3] == list(range(23)) and ours["layer"].nunique() == 19
    for _, part in ours.groupby(["pruner", "sign", "index"]):
        kept = (part["density"] * part["size"]).sum()
        assert part["size"].sum() / kept == pytest.approx(10 ** part["log10_compression"].iloc[0], rel=0.06)


@pytest.mark.parametrize("pruner", ["random", "magnitude", "synflow"])
def test_committed_layer_densities_are_the_authors_within_5_percent(pruner):
    both = committed().query("pruner == @pruner and index <= 22").astype({"index": int})
    both = both.merge(authors(), on=KEYS, suffixes=("", "_authors"))
    large = both[(both[["density", "density_authors"]].min(axis=1) * both["size"]) >= 5000]
    assert len(both) == 23 * 19 and len(large) > 100
    assert ((large["density"] / large["density_authors"] - 1).abs() <= 0.05).all()
    assert (both["module"] == both["module_authors"]).all() and (both["size"] == both["size_authors"]).all()


@pytest.mark.parametrize(("pruner", "ratio", "factor"), [("magnitude", 512, 2), ("random", 4096, 4)])
def test_committed_layers_collapse_where_the_authors_do(pruner, ratio, factor):
    first = [first_collapse(rows[rows["pruner"] == pruner]) for rows in (committed(), authors())]
    assert 10 ** first[1] == pytest.approx(ratio, rel=0.01)
    assert 10 ** abs(first[0] - first[1]) <= factor * 1.01


def test_committed_synflow_empties_no_layer_before_rho_max_nor_does_the_authors():
    ours = committed().query("pruner == 'synflow'")
    highest = rho_max(models.build("vgg19", ((3, 224, 224), 1000)))
    assert 10 ** ours["log10_compression"].max() == pytest.approx(highest, rel=1e-4)
    assert (ours.loc[ours["index"] <= 22, "density"] > 0).all()
    assert 10 ** first_collapse(authors().query("pruner == 'synflow'")) > highest
    # One weight a layer is left at rho_max, and a hundred iterations, which are no theorem, do not spread them evenly.
    last = ours[ours["log10_compression"] == ours["log10_compression"].max()]
    assert (last["density"] * last["size"]).sum() == pytest.approx(19, abs=1.01) and (last["density"] == 0).any()


def critical() -> pd.DataFrame:
    found = table("vgg16_critical_compression")
    keys = ["pruner", "mode", "sign", "iterations", "seed"]
    return found.pivot(index=keys, columns="criterion", values="log10_compression")


@pytest.mark.parametrize("pruner", SALIENCIES)
def test_committed_critical_compressions_are_the_authors_within_a_step_of_their_grid(pruner):
    sign, iterations = ("published" if pruner == "grasp" else "own"), (100 if pruner == "synflow" else 1)
    ours = critical().loc[pruner, "eval", sign, iterations].median()
    theirs = published.table("vgg16_last_without_collapse").query("pruner == @pruner")["log10_compression"].median()
    assert abs(math.floor(ours["layer"] / 0.25) * 0.25 - theirs) <= 0.25  # the last of their compressions before ours
    trained = published.table("figure1_accuracy").query("pruner == @pruner and top1_best > 1")
    learned = trained.groupby("run")["log10_compression"].max().median()
    assert learned <= ours["signal"] <= ours["layer"] + 0.02  # no path, nothing learned


def test_committed_iteration_is_what_moves_collapse_to_rho_max():
    found, highest = critical(), math.log10(rho_max(models.build("vgg16", SMALL)))
    synflow = found.loc["synflow", "eval", "own"]
    assert synflow.loc[100].to_numpy() == pytest.approx(highest, abs=1e-4)
    medians = found.groupby(["pruner", "mode", "sign", "iterations"])["layer"].median()
    assert medians.xs(1, level="iterations").idxmin()[0] == "synflow"  # and without it breaks first
    for pruner in ("snip", "grasp"):
        assert medians[pruner, "eval", "own", 1] + 1 < medians[pruner, "eval", "own", 10] < highest
    for pruner in collapse.DATA_FREE:
        assert medians[pruner, "eval", "own", 1] == medians[pruner, "eval", "own", 100]


def test_committed_train_mode_breaks_snip_and_grasp_earlier():
    medians = critical().query("iterations == 1").groupby(["pruner", "sign", "mode"])["signal"].median().unstack()
    both = medians.loc[["snip", "grasp"]]
    assert (both["train"] + 0.25 < both["eval"]).all()
