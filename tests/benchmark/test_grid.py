import re
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from synflow_lib import models
from synflow_lib.benchmark import PUBLISHED_GRID, PUBLISHED_PANELS, Run, grid, published, published_grid
from synflow_lib.benchmark.grid import PUBLISHED_PRUNERS, highest_compression
from synflow_lib.errors import InputError
from synflow_lib.pruning import LOSSES, rho_max

RUN = Run("digits", "vgg11", "synflow", 2.0, width=0.25)


def test_the_published_grid_is_what_the_authors_ran():
    ours = {(r.dataset, r.model, r.pruner, r.log10_compression, r.seed) for r in PUBLISHED_GRID}
    theirs = published.accuracy()[["dataset", "model", "pruner", "log10_compression", "run"]]
    assert ours == set(theirs.itertuples(index=False, name=None))
    assert len(PUBLISHED_GRID) == len(set(PUBLISHED_GRID)) == 2340
    # Nine of the twelve panels are different networks, and in each five pruners share the three dense ones.
    assert len({r.key for r in PUBLISHED_GRID}) == 9 * (195 - 3 * 4)


def test_pruners_share_the_record_of_the_dense_network_and_nothing_else():
    dense = {Run("digits", "vgg11", pruner, 0, iterations=3).key for pruner in PUBLISHED_PRUNERS}
    pruned = {Run("digits", "vgg11", pruner, 0.25).key for pruner in PUBLISHED_PRUNERS}
    assert len(dense) == 1 and len(pruned) == 5
    scored = {Run("digits", "vgg11", "snip", 0, **way).key for way in ({"loss": "uniform"}, {"source": "cifar10"})}
    assert scored == dense
    changes = ({"seed": 1}, {"cycles": 1}, {"width": 0.5}, {"isometry": True})
    others = {Run("digits", "vgg11", "snip", 0, **change).key for change in changes}
    assert len(others | dense) == 5
    assert len(PUBLISHED_PANELS) == 12


def test_two_names_of_one_network_share_its_records():
    one, other = (Run("cifar10", name, "snip", 1.5, 2) for name in ("resnet18", "wide_resnet18_published"))
    assert one.key == other.key != replace(one, model="wide_resnet18").key
    pair = [models.build(run.model, run.dataset, width=0.1, seed=run.seed) for run in (one, other)]
    states = [model.state_dict() for model in pair]
    assert list(states[0]) == list(states[1])
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])


def test_every_published_run_is_valid():
    for run in PUBLISHED_GRID[::39]:
        assert run.validate() is run


def test_a_panel_of_the_published_grid_takes_any_recipe():
    runs = published_grid("fast", [("cifar10", "vgg16")])
    assert len(runs) == 195 and {run.recipe for run in runs} == {"fast"}


def test_a_varied_recipe_is_another_run_and_its_spelling_is_none():
    varied = [replace(RUN, recipe=f"fast:{text}") for text in ("lr=0.05,epochs=4", "epochs=04,lr=5e-2,crop=4")]
    assert varied[0] == varied[1] != RUN and varied[0].key != RUN.key
    assert replace(RUN, recipe="fast:crop=4") == RUN
    with pytest.raises(InputError, match="unknown value of a recipe 'epoch'"):
        replace(RUN, recipe="fast:epoch=4").validate()


def test_a_grid_is_a_product_with_the_last_axis_fastest():
    runs = grid("digits", ["vgg11", "mlp"], ["synflow"], [0, 0.5], (0, 1), "smoke", width=0.5)
    assert [(r.model, r.log10_compression, r.seed) for r in runs[:5]] == [
        *(("vgg11", 0.0, 0), ("vgg11", 0.0, 1), ("vgg11", 0.5, 0), ("vgg11", 0.5, 1), ("mlp", 0.0, 0))
    ]
    assert len(runs) == 8 and all(run.width == 0.5 for run in runs)


def test_keys_never_change():
    """Records of earlier versions must be found: these values are part of the format."""
    assert Run("digits", "vgg11", "synflow", 2.0).key == "25d9dfc1863ce18a"
    assert Run("cifar10", "vgg16", "snip", 0.75, 2, "described").key == "85f81c67eede4ab4"
    assert replace(RUN, shuffle=True, cycles=3, rewind=False).key == "71736c31c616f3f8"


def test_every_field_but_none_at_its_default_changes_the_key():
    other = {
        **{"dataset": "cifar10", "model": "vgg16", "pruner": "snip", "log10_compression": 1.0, "seed": 1},
        **{"recipe": "smoke", "width": 0.5, "iterations": 7, "schedule": "linear", "scope": "layer"},
        **{"train_mode": True, "invert": True, "shuffle": True, "reinitialise": True, "cycles": 1, "rewind": False},
        **{"isometry": True, "loss": "uniform", "source": "cifar10"},
    }
    assert list(other) == [field.name for field in fields(Run)]
    keys = {RUN.key, *(replace(RUN, **{name: value}).key for name, value in other.items())}
    assert len(keys) == len(other) + 1


def test_what_is_changed_are_the_options_that_are_not_at_their_default():
    assert RUN.changed == {} and replace(RUN, iterations=100, source="digits", recipe="smoke").changed == {}
    changed = {"iterations": 7, "rewind": False, "isometry": True, "loss": "uniform"}
    assert replace(RUN, **changed).changed == changed


def test_equal_runs_have_equal_keys_however_they_are_written():
    same = [
        Run("digits", "vgg11", "synflow", 2, np.int64(0), width=np.float32(0.25)),
        Run("digits", "vgg11", "synflow", np.log10(100.0), 0, width=0.25, iterations=100, shuffle=np.bool_(False)),
        replace(RUN, log10_compression=2.0 + 1e-13),
    ]
    assert {run.key for run in same} == {RUN.key}
    assert set(same) == {RUN}
    assert replace(RUN, source="digits") == RUN
    assert replace(RUN, pruner="snip", iterations=1).key == replace(RUN, pruner="snip").key
    assert replace(RUN, iterations=1).key != RUN.key


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dataset": "cifar"}, "unknown data set 'cifar'; did you mean 'cifar10'?"),
        ({"model": "vgg"}, "unknown model 'vgg'"),
        ({"pruner": "synflo"}, "unknown pruning method 'synflo'; did you mean 'synflow'?"),
        ({"recipe": "publish"}, "unknown recipe 'publish'; did you mean 'published'?"),
        ({"schedule": "cubic"}, "unknown schedule 'cubic'"),
        ({"scope": "local"}, "unknown scope 'local'"),
        ({"log10_compression": -0.1}, "compression must be a ratio from 1 to rho_max"),
        ({"log10_compression": 5.5}, "compression must be a ratio from 1 to rho_max"),
        ({"width": 0.0}, "width must be a positive factor"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"seed": -1}, "seed and cycles must not be negative"),
        ({"seed": 2**63}, "seed must be below 2**63, not 9223372036854775808"),
        ({"cycles": -1}, "seed and cycles must not be negative"),
        ({"pruner": "snip", "loss": "uniformed"}, "unknown loss 'uniformed'; did you mean 'uniform'?"),
        ({"pruner": "snip", "source": "cifar"}, "unknown data set 'cifar'; did you mean 'cifar10'?"),
        ({"loss": "uniform"}, "loss is for snip and grasp, which score on data, not for synflow"),
        (
            {"source": "cifar10", "pruner": "random"},
            "source is for snip and grasp, which score on data, not for random",
        ),
        (
            {"pruner": "grasp", "source": "cifar100"},
            "a network for digits (3x32x32, 10 classes) cannot score on cifar100 (3x32x32, 100 classes): a source must "
            "have images of the same shape and as many classes",
        ),
        (
            {"dataset": "cifar100", "pruner": "snip", "source": "tiny-imagenet"},
            "a network for cifar100 (3x32x32, 100 classes) cannot score on tiny-imagenet (3x64x64, 200 classes)",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(wrong, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        replace(RUN, **wrong).validate()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seed": 1.5}, {"seed": "1"}, {"seed": None}, {"cycles": 0.5}, {"iterations": 2.5}),
        *({"log10_compression": "2"}, {"log10_compression": float("nan")}, {"log10_compression": float("inf")}),
        *({"shuffle": "yes"}, {"rewind": 2}, {"width": "wide"}, {"isometry": "no"}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
        replace(RUN, **wrong)


@pytest.mark.parametrize("pruner", ["snip", "grasp"])
def test_what_scores_on_data_takes_any_loss_and_a_source_of_its_size(pruner):
    for loss in LOSSES:
        run = replace(RUN, pruner=pruner, loss=loss, source="cifar10", isometry=True)
        assert run.validate() is run


def test_the_highest_compression_is_counted_without_weights():
    for width in (0.25, 1.0):
        assert highest_compression("vgg11", "cifar10", width) == rho_max(models.build("vgg11", width=width))
    tight = Run("cifar10", "vgg11", "synflow", float(np.log10(9_222_848 / 9)))
    assert tight.validate().compression == pytest.approx(9_222_848 / 9)


def test_published_compressions_are_quarters():
    steps = sorted({run.log10_compression for run in PUBLISHED_GRID})
    assert len(steps) == 13 and all(b - a == 0.25 for a, b in pairwise(steps))
