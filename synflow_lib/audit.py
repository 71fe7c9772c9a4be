"""The findings of ERRATA.md that the authors' published numbers show by themselves, recomputed: no network is trained.

    synflow audit 8      # the numbers behind finding 8
    synflow audit        # all that are computed here

Each function is one table, from data/reference and, where a finding is about code, from the library's own networks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from synflow_lib.benchmark import published, results
from synflow_lib.benchmark.grid import PUBLISHED_PRUNERS
from synflow_lib.data import DATASETS
from synflow_lib.errors import lookup
from synflow_lib.theory import conservation

T_OF_THREE_RUNS = 2.776  # exceeded by |t| in one of twenty pairs of samples of three runs: 4 degrees of freedom
SPREADS = T_OF_THREE_RUNS * (2 / 3) ** 0.5  # the same in standard deviations of the runs: 2.27
CELLS_DRAWN = 100_000  # of equal methods: a share in a hundred is then known to a thirtieth of it


def replicates() -> pd.DataFrame:
    """Finding 1: two columns of figure 6 differ as two sets of runs of one network do, and other columns do not.

    One row per data set and pair of models: the means of the `dense` runs (15 each), and how many of the panel's 65
    `cells` are `apart`, by a t test at 5 % of three runs against three: 3 of 65 by chance.
    """
    runs = published.accuracy()
    cells = runs.groupby(["model", "dataset", "pruner", "log10_compression"], sort=False)["top1_accuracy"]
    cells = cells.agg(["mean", "var"])
    whole = runs.query("log10_compression == 0").groupby(["model", "dataset"])["top1_accuracy"].mean()
    rows = []
    for pair in (("resnet18", "wide_resnet18_published"), ("vgg16", "resnet18")):
        one, other = (cells.loc[model] for model in pair)
        gap, error = (one["mean"] - other["mean"]).abs(), np.sqrt((one["var"] + other["var"]) / 3)
        apart = (gap > T_OF_THREE_RUNS * error).groupby("dataset", sort=False)
        for dataset, number in apart.sum().items():
            dense = [whole[model, dataset] for model in pair]
            rows.append((dataset, *pair, *dense, number, apart.size()[dataset]))
    return pd.DataFrame(rows, columns=["dataset", "model", "other_model", "dense", "other_dense", "apart", "cells"])


def parameters() -> pd.DataFrame:
    """Finding 1: all parameters of networks for CIFAR-10, the trained scales of identity shortcuts included.

    The authors' "WideResNet-18" has 11,174,986 of them; twice the channels would have four times as many.
    """
    from synflow_lib import models

    rows = []
    for name in ("resnet18", "wide_resnet18_published", "wide_resnet18"):
        network = models.add_identity_scales(models.build(name, "cifar10"))
        tensors = list(network.parameters())
        rows.append((name, len(tensors), sum(tensor.numel() for tensor in tensors)))
    return pd.DataFrame(rows, columns=["model", "tensors", "parameters"])


def first_epochs() -> pd.DataFrame:
    """Finding 2: training loss and test accuracy of the dense VGG-16 on CIFAR-100 after one epoch, by recipe."""
    theirs = published.table("figure1_curves").query("log10_compression == 0").assign(recipe="the authors")
    theirs = theirs.rename(columns={"top1_accuracy": "test_accuracy"})
    both = pd.concat([theirs, results.first_epochs()]).query("epoch == 1")
    table = both.groupby("recipe", sort=False)[["train_loss", "test_accuracy"]].agg(["min", "max"])
    table.columns = [" ".join(names) for names in table.columns]
    return table.assign(runs=both.groupby("recipe", sort=False).size()).reset_index()


def best_epochs() -> pd.DataFrame:
    """Finding 3: figure 6 beside the best and the last epoch of the same runs (VGG-16 on CIFAR-100, from figure 1)."""
    runs = published.accuracy().dropna(subset=["top1_last"])
    best = published.table("figure1_accuracy")[["pruner", "log10_compression", "run", "top1_best"]]
    both = runs.merge(best, on=["pruner", "log10_compression", "run"])
    gain = both["top1_accuracy"] - both["top1_last"]
    found = {"runs": len(both), "equal_to_best": int((both["top1_accuracy"] == both["top1_best"]).sum())}
    return pd.DataFrame([found | {"mean_above_last": gain.mean(), "max_above_last": gain.max()}])


def whole_and_learning() -> pd.DataFrame:
    """Finding 7: the last log10 compression of VGG-16 on CIFAR-100 with whole layers, and that which still learns.

    One row per pruner and run: no layer is empty up to `whole`; the best epoch beats guessing (1 %) up to `learning`.
    """
    runs = published.table("figure1_accuracy").query("top1_best > 1")
    learning = runs.groupby(["pruner", "run"])["log10_compression"].max().rename("learning").reset_index()
    whole = published.table("vgg16_last_without_collapse").rename(columns={"log10_compression": "whole"})
    return whole.merge(learning, on=["pruner", "run"])


def winners() -> pd.DataFrame:
    """Finding 8: in how many cells of figure 6 each pruner has the highest mean; ties count for both.

    Columns: `where`, a column per pruner, `cells`.
    """
    means = _means().query("log10_compression > 0").round(4)
    best = means.eq(means.max(axis=1), axis=0)
    where = _ranges(best.index)
    table = best.groupby(where.to_numpy(), sort=False).sum()
    table["cells"] = where.value_counts()
    return table.rename_axis("where").rename_axis(columns=None).reset_index()


def winners_by_network() -> pd.DataFrame:
    """Finding 8: the same up to 10^1.5, the VGGs and ResNet-18 apart, which counts twice (finding 1)."""
    means = _means().query("0 < log10_compression <= 1.5").round(4)
    network = means.index.get_level_values("model").map(lambda name: "VGG" if name.startswith("vgg") else "ResNet-18")
    table = means.eq(means.max(axis=1), axis=0).groupby(network, sort=False).sum()
    table["cells"] = network.value_counts()
    return table.rename_axis("networks").rename_axis(columns=None).reset_index()


def near_the_best() -> pd.DataFrame:
    """Finding 8: in how many cells above 1 and below 10^1.5 methods are no further apart than repeated runs are.

    `within` of `cells`: no more than 2.27 run-to-run spreads between the two best, or the pruner `which` and the best.
    Of two equal methods, chosen beforehand, 95 % are; `if_equal` is the percentage among five, by drawing.
    """
    runs = published.accuracy().query("0 < log10_compression < 1.5")
    table = runs.pivot_table(index=["dataset", "model", "log10_compression"], columns=["pruner", "run"], sort=False)
    ours = table["top1_accuracy"][[*PUBLISHED_PRUNERS]].to_numpy().reshape(len(table), len(PUBLISHED_PRUNERS), -1)
    equal = np.random.default_rng(0).normal(size=(CELLS_DRAWN, *ours.shape[1:]))
    found = {"within": _near(ours).sum(axis=0), "cells": len(ours), "if_equal": 100 * _near(equal).mean(axis=0)}
    return pd.DataFrame({"which": ["the two best", *PUBLISHED_PRUNERS], **found})


def _near(runs: np.ndarray) -> np.ndarray:
    """Whether the two best of runs [cells, pruners, runs], and each and the best, are near: [cells, 1 + pruners]."""
    mean, variance = runs.mean(axis=2), runs.var(axis=2, ddof=1)
    order = mean.argsort(axis=1)
    best = np.take_along_axis(mean, order[:, -1:], 1), np.take_along_axis(variance, order[:, -1:], 1)
    each = best[0] - mean <= SPREADS * np.sqrt((best[1] + variance) / 2)
    return np.concatenate([np.take_along_axis(each, order[:, -2:-1], 1), each], axis=1)


def shortfalls() -> pd.DataFrame:
    """Finding 8: by how many points each pruner's mean is below the best pruner's, over the cells of figure 6.

    One row per range `where` and `pruner`: the `mean` and the `most` over the range's 72 cells, in how many it is
    `within_a_point` of the best, and in how many a run of three was never better than `guessing`.
    """
    means = _means().query("log10_compression > 0")
    behind = means.rsub(means.max(axis=1), axis=0).stack().rename("points")
    runs = published.accuracy().query("log10_compression > 0")
    guessing = runs["top1_accuracy"] <= 100 / runs["dataset"].map(lambda name: DATASETS[name].classes)
    cells = behind.to_frame().join(guessing.groupby([runs[name] for name in behind.index.names]).any().rename("dead"))
    cells["near"] = cells["points"] <= 1
    parts = cells.groupby([_ranges(cells.index).rename("where"), "pruner"], sort=False)
    kinds = {"mean": ("points", "mean"), "most": ("points", "max")}
    counts = {"within_a_point": ("near", "sum"), "guessing": ("dead", "sum")}
    return parts.agg(**kinds, **counts).reset_index()


def cut_resnets() -> pd.DataFrame:
    """Finding 8: the first log10 compression at which magnitude pruning leaves ResNet-18 guessing, in each run.

    Columns: `dataset`, `lowest` and `highest` of the six runs (two names of one network, finding 1).
    """
    runs = published.accuracy().query("pruner == 'magnitude'")
    runs = runs[runs["model"].isin(["resnet18", "wide_resnet18_published"])]
    guessing = runs[runs["top1_accuracy"] <= 100 / runs["dataset"].map(lambda name: DATASETS[name].classes)]
    first = guessing.groupby(["dataset", "model", "run"], sort=False)["log10_compression"].min()
    return first.groupby("dataset", sort=False).agg(lowest="min", highest="max").reset_index()


def below_random() -> pd.DataFrame:
    """Finding 8: SynFlow's mean minus random pruning's in points, ResNet-18 on Tiny ImageNet."""
    means = _means().loc[("tiny-imagenet", "resnet18")]
    return (means["synflow"] - means["random"]).rename("synflow_minus_random").reset_index()


def cycles() -> pd.DataFrame:
    """Finding 11: the curves of figure 5a in numbers, a row per number of cycles.

    `epochs` of the last training; the last log10 compression at or `above_80` percent and `above_guessing` (10 %),
    by the last epoch; `failures_before` that last one.
    """
    runs = published.table("figure5a_imp_accuracy")
    reached = {"above_80": runs["top1_final"] >= 80, "above_guessing": runs["top1_final"] > 10}
    table = runs.groupby("cycles")["epochs"].max().to_frame()
    for name, rows in reached.items():
        table[name] = runs[rows].groupby("cycles")["log10_compression"].max()
    earlier = runs["log10_compression"] < runs["cycles"].map(table["above_guessing"])
    table["failures_before"] = (earlier & ~reached["above_guessing"]).groupby(runs["cycles"]).sum()
    return table.reset_index()


def layer_slopes() -> pd.DataFrame:
    """Finding 14: slope of log mean score on log 1/size over the layers of VGG-19 (figure 4); 1: equal totals."""
    return _slopes(published.table("figure4_layer_scores"), ["pruner", "state"], "average_score")


def first_collapse() -> pd.DataFrame:
    """Finding 14: the first compression 2^index at which VGG-19 at ImageNet size has an empty layer (figure 2).

    Columns: `pruner`, `iterations`, `compression`, the empty `layers` counted from 0, and `rho_max`, the mean number of
    weights of a layer.
    """
    layers = published.table("figure2_layer_density")
    rho_max = layers.drop_duplicates("layer")["size"].mean()
    empty = layers[layers["density"] == 0].sort_values("index")
    first = empty[empty["index"] == empty.groupby(["pruner", "iterations"])["index"].transform("min")]
    first = first.assign(compression=2 ** first["index"])
    table = first.groupby(["pruner", "iterations", "compression"])["layer"].agg(sorted).rename("layers").reset_index()
    return table.assign(rho_max=round(rho_max)).sort_values("compression")


def magnitude_slopes() -> pd.DataFrame:
    """Finding 15: slope of log mean squared weight on log 1/size in figure 5b, before training and after 99 epochs."""
    scores = published.table("figure5b_imp_layer_scores")
    scores = scores[scores["epoch"].isin([scores["epoch"].min(), scores["epoch"].max()])]
    return _slopes(scores, ["init", "epoch"], "average_square_weight")


def states() -> pd.DataFrame:
    """Finding 16: mean scores of the state "pretrained" over those of "initialization" in figure 4, over the layers."""
    scores = published.table("figure4_layer_scores").set_index(["pruner", "layer", "state"])["average_score"].unstack()
    ratio = scores["pretrained"] / scores["initialization"]
    return ratio.groupby("pruner", sort=False).agg(lowest_ratio="min", highest_ratio="max").reset_index()


FINDINGS: dict[int, Sequence[Callable[[], pd.DataFrame]]] = {
    1: (replicates, parameters),
    2: (first_epochs,),
    3: (best_epochs,),
    7: (whole_and_learning,),
    8: (winners, winners_by_network, shortfalls, near_the_best, cut_resnets, below_random),
    11: (cycles,),
    14: (layer_slopes, first_collapse),
    15: (magnitude_slopes,),
    16: (states,),
}


def show(number: int | str) -> str:
    """The tables of finding `number` of ERRATA.md, each under its claim; InputError where none is computed here."""
    tables = lookup({str(known): tables for known, tables in FINDINGS.items()}, str(number), "finding with a table")
    claims = [table.__doc__.strip().splitlines()[0] for table in tables]
    shown = [table().to_string(index=False, float_format="{:.4g}".format, na_rep="-") for table in tables]
    return "\n\n".join(f"{claim}\n{text}" for claim, text in zip(claims, shown, strict=True))


def _ranges(cells: pd.MultiIndex) -> pd.Series:
    """Which of the two ranges of compression that finding 8 tells apart each of `cells` lies in."""
    high = cells.get_level_values("log10_compression") > 1.5
    return pd.Series(high, index=cells).map({False: "up to 10^1.5", True: "above 10^1.5"})


def _means() -> pd.DataFrame:
    """Figure 6 by dataset, model and log10_compression: the mean of three runs, a column per pruner."""
    cells = ["dataset", "model", "log10_compression", "pruner"]
    return published.accuracy().groupby(cells)["top1_accuracy"].mean().unstack()[[*PUBLISHED_PRUNERS]]


def _slopes(scores: pd.DataFrame, by: list[str], column: str) -> pd.DataFrame:
    scores = scores.rename(columns={column: "average_score"})
    groups = scores.groupby(by, sort=False)[["inverse_size", "average_score"]]
    return groups.apply(conservation.slope).rename("slope").reset_index()
