import pytest

from synflow_lib.benchmark import published
from synflow_lib.errors import InputError


def test_all_published_runs_are_there():
    runs = published.accuracy()
    assert len(runs) == 2340
    assert runs["top1_accuracy"].between(0, 100).all()
    assert (runs.groupby(["dataset", "model"]).size() == 195).all()
    assert "wide_resnet18" not in set(runs["model"])


def test_a_panel_is_a_band_over_three_runs():
    panel = published.panel("cifar100", "vgg16")
    assert list(panel.columns) == ["pruner", "log10_compression", "min", "mean", "max"]
    assert len(panel) == 65
    assert ((panel["min"] <= panel["mean"]) & (panel["mean"] <= panel["max"])).all()
    runs = published.accuracy().query("dataset == 'cifar100' and model == 'vgg16' and pruner == 'synflow'")
    point = panel.query("pruner == 'synflow' and log10_compression == 1").iloc[0]
    three = runs.query("log10_compression == 1")["top1_accuracy"]
    assert len(three) == 3 and point["mean"] == pytest.approx(three.mean())


def test_figure_6_shows_the_best_epoch_of_the_runs_of_figure_1():
    """Two files of the authors that must agree: the panel of CIFAR-100 and VGG-16, 195 runs."""
    key = ["pruner", "log10_compression", "run"]
    panel = published.accuracy().query("dataset == 'cifar100' and model == 'vgg16'")
    both = panel.merge(published.table("figure1_accuracy"), on=key)
    assert len(both) == 195
    assert (both["top1_accuracy"] == both["top1_best"]).all()


@pytest.mark.parametrize(("dataset", "model"), [("digits", "vgg11"), ("cifar10", "wide_resnet18")])
def test_what_the_authors_did_not_run_is_an_empty_panel(dataset, model):
    assert published.panel(dataset, model).empty
    assert not published.published(dataset, model)
    assert published.published("cifar10", "wide_resnet18_published")


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown data set 'cifar'"):
        published.panel("cifar", "vgg11")
    with pytest.raises(InputError, match="unknown model 'vgg'"):
        published.panel("cifar10", "vgg")
    with pytest.raises(InputError, match="did you mean 'figure7_schedule'"):
        published.table("figure7_schedules")


def test_absent_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"figure6_accuracy.csv.*run from a checkout"):
        published.accuracy()
