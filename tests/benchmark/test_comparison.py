import math

import numpy as np
import pandas as pd
import pytest

from synflow_lib.benchmark import Run, compare, published, tables
from synflow_lib.benchmark.comparison import pooled_deviation


def rows(*runs: tuple[Run, float, float]) -> pd.DataFrame:
    """Results with the given last and best accuracies."""
    made = [
        {**{name: getattr(run, name) for name in tables.FIELDS}, "key": run.key, "status": "done"}
        | {"accuracy_last": last, "accuracy_best": best}
        for run, last, best in runs
    ]
    return tables.typed(pd.DataFrame(made, columns=tables.COLUMNS))


def test_the_authors_against_themselves_differ_by_nothing():
    authors = published.accuracy().query("dataset == 'cifar100' and model == 'vgg16' and log10_compression > 0")
    own = rows(
        *(
            (Run("cifar100", "vgg16", r.pruner, r.log10_compression, r.run, "published"), r.top1_last, r.top1_accuracy)
            for r in authors.itertuples()
        )
    )
    table = compare(own)
    assert len(table) == 60 and (table["seeds"] == 3).all()
    assert np.allclose(table[["best", "last"]], 0) and np.allclose(table["best_in_spreads"].dropna(), 0)


def test_a_difference_in_points_and_in_spreads():
    runs = [Run("cifar100", "vgg16", "snip", 1.0, seed, "fast") for seed in (0, 1)]
    (row,) = compare(rows((runs[0], 70.0, 71.0), (runs[1], 72.0, 75.0))).to_dict("records")
    theirs = published.accuracy().query(
        "dataset == 'cifar100' and model == 'vgg16' and pruner == 'snip' and log10_compression == 1"
    )
    best, last = theirs["top1_accuracy"], theirs["top1_last"]
    assert (row["seeds"], row["ours_best"], row["ours_last"], row["recipe"]) == (2, 73.0, 71.0, "fast")
    assert row["best"] == pytest.approx(73.0 - best.mean()) and row["last"] == pytest.approx(71.0 - last.mean())
    spread = math.sqrt((2 * best.var(ddof=1) + 1 * 8.0) / 3)  # ours: 71 and 75, variance 8
    assert row["best_in_spreads"] == pytest.approx(row["best"] / spread)


def test_a_varied_recipe_that_is_the_plain_one_elsewhere_is_not_counted_there():
    varied = Run("tiny-imagenet", "vgg11", "snip", 1.0, 0, "described:epochs=160")
    plain = Run("cifar10", "vgg11", "snip", 1.0, 0, "described")
    table = compare(rows((varied, 50.0, 51.0), (plain, 90.0, 91.0)))
    assert sorted(zip(table["dataset"], table["recipe"], strict=True)) == [
        *(("cifar10", "described"), ("tiny-imagenet", "described:epochs=160"))
    ]


def test_the_pooled_deviation_is_that_of_equal_samples_and_nan_without_freedom():
    assert pooled_deviation(pd.Series([1.0, 3.0]), pd.Series([11.0, 13.0])) == pytest.approx(math.sqrt(2))
    assert pooled_deviation(pd.Series([1.0, 3.0]), pd.Series([5.0])) == pytest.approx(math.sqrt(2))
    assert math.isnan(pooled_deviation(pd.Series([1.0]), pd.Series([np.nan])))


def test_a_spread_of_zero_gives_no_units_and_the_last_epoch_is_known_for_one_panel_alone():
    authors = published.accuracy().assign(top1_accuracy=10.0)
    (row,) = compare(rows((Run("cifar10", "vgg11", "snip", 3.0, 0, "fast"), 10.0, 11.0)), authors).to_dict("records")
    assert row["best"] == 1.0 and math.isnan(row["best_in_spreads"])
    assert row["ours_last"] == 10.0 and math.isnan(row["authors_last"]) and math.isnan(row["last"])


def test_a_dense_network_stands_in_every_row_and_both_names_of_resnet_18():
    table = compare(rows((Run("cifar10", "resnet18", "synflow", 0.0, 0, "fast"), 95.0, 95.5)))
    assert len(table) == 10 and set(table["model"]) == {"resnet18", "wide_resnet18_published"}
    assert (table["ours_best"] == 95.5).all()


@pytest.mark.parametrize(
    "run",
    [
        Run("cifar10", "vgg11", "snip", 1.0, 0, "fast", width=0.25),
        Run("cifar10", "vgg11", "snip", 1.0, 0, "fast", shuffle=True),
        Run("cifar10", "vgg11", "snip", 1.1, 0, "fast"),
        Run("digits", "vgg11", "snip", 1.0, 0, "fast"),
    ],
)
def test_what_the_authors_did_not_run_is_not_compared(run):
    assert compare(rows((run, 90.0, 91.0))).empty
