"""The authors' published numbers, as CSV files in data/reference.

Source: Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving
synaptic flow" (NeurIPS 2020); the numbers behind its figures, from the results its authors published beside
their code. They are the authors' measurements, not ours.
"""

import pandas as pd

from synflow_lib import models, paths
from synflow_lib.benchmark.grid import PUBLISHED_PANELS
from synflow_lib.data import DATASETS
from synflow_lib.errors import InputError, lookup, suggest


def table(name: str) -> pd.DataFrame:
    """Return one file of the authors' numbers, e.g. "figure2_layer_density"; raises InputError where it is
    absent.
    """
    path = paths.reference() / f"{name}.csv"
    if not path.is_file():
        known = sorted(file.stem for file in paths.reference().glob("*.csv"))
        listed = f"known: {', '.join(known)}" if known else "the folder is empty: run from a checkout of the project"
        raise InputError(f"there are no published numbers {paths.shown(path)}{suggest(name, known)} ({listed})")
    return pd.read_csv(path)


def accuracy() -> pd.DataFrame:
    """The 2,340 runs of figure 6: dataset, model, pruner, log10_compression, run (0 to 2), top1_accuracy and
    top1_last (percent).

    The accuracies are those of the best epoch; `top1_last` is that of the last one, known for VGG-16 on CIFAR-100
    (figure 1) and NaN elsewhere. The authors' "wide_resnet18" is called `wide_resnet18_published` here, because
    that is the network they trained (ERRATA 1).
    """
    frame = table("figure6_accuracy")
    frame = frame.assign(model=frame["model"].replace("wide_resnet18", "wide_resnet18_published"))
    last = (
        table("figure1_accuracy").assign(dataset="cifar100", model="vgg16").rename(columns={"top1_final": "top1_last"})
    )
    keys = ["dataset", "model", "pruner", "log10_compression", "run"]
    return frame.merge(last[[*keys, "top1_last"]], on=keys, how="left")


def panel(dataset: str, model: str) -> pd.DataFrame:
    """One panel of figure 6 as a band: pruner, log10_compression and min, mean, max of top1_accuracy over
    three runs.

    Empty where the authors have no such panel, as for the digits or the truly wide ResNet; raises InputError
    for an unknown name.
    """
    lookup(DATASETS, dataset, "data set")
    lookup(models.MODELS, model, "model")
    runs = accuracy().query("dataset == @dataset and model == @model")
    grouped = runs.groupby(["pruner", "log10_compression"], sort=False)["top1_accuracy"]
    return grouped.agg(["min", "mean", "max"]).reset_index()


def published(dataset: str, model: str) -> bool:
    """Whether figure 6 has a panel for `model` on `dataset`."""
    return (dataset, model) in PUBLISHED_PANELS
