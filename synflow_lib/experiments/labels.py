"""Whether a mask knows the labels, or the task, that it was found with (Lee et al. 2020, chapter 10)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import pandas as pd

from synflow_lib.data import Dataset, scoring_batches
from synflow_lib.errors import InputError
from synflow_lib.experiments.signal_propagation import Setting
from synflow_lib.pruning import LOSSES
from synflow_lib.pruning.saliency import snip
from synflow_lib.theory import approximate_isometry


def without_labels(setting: Setting, log10_compressions: Iterable[float], seeds: Iterable[int]) -> pd.DataFrame:
    """SNIP by each of `LOSSES`, and SynFlow: trained after isometry.

    Columns: `log10_compression`, `score`, `seed`, `shared` (the overlap with the supervised mask) and `accuracy` (of
    the last epoch).
    """
    rows = []
    scores = {loss: partial(snip, loss=loss) for loss in LOSSES} | {"synflow": "synflow"}
    for power, seed in product(log10_compressions, seeds):
        supervised = setting.masks(setting.network(seed=seed), "snip", 10**power, seed)
        for name, method in scores.items():
            model = setting.network(seed=seed)
            masks = setting.masks(model, method, 10**power, seed)
            approximate_isometry(model, masks)
            shared = supervised.overlap(masks)
            rows.append((power, name, seed, shared, setting.train(model, masks, seed).accuracy_last))
    return pd.DataFrame(rows, columns=["log10_compression", "score", "seed", "shared", "accuracy"])


def halves(dataset: Dataset) -> dict[str, Dataset]:
    """Two tasks that share no label: the lower and the upper half of the classes, each counted from 0."""
    middle = dataset.classes // 2
    tasks = {}
    for name, low, high in (("lower half", 0, middle), ("upper half", middle, dataset.classes)):
        parts = {}
        for part in ("train", "test"):
            labels = getattr(dataset, f"{part}_labels")
            chosen = (labels >= low) & (labels < high)
            parts[f"{part}_images"] = getattr(dataset, f"{part}_images")[chosen]
            parts[f"{part}_labels"] = labels[chosen] - low
        tasks[name] = replace(dataset, official=False, remark=f"the {name} of the classes", **parts)
    return tasks


def transfer(
    setting: Setting, tasks: Mapping[str, Dataset], log10_compression: float, seeds: Sequence[int], per_class: int = 5
) -> pd.DataFrame:
    """A SNIP mask found on each task, or on random labels of the target, trained on each of `tasks` after isometry.

    Columns: `source`, `target`, `seed` and `accuracy` (of the last epoch). Raises InputError, before any work, for
    tasks whose images or numbers of classes differ: one network cannot do both.
    """
    kinds = {name: (*task.input_shape, task.classes) for name, task in tasks.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {'x'.join(map(str, k[:3]))} with {k[3]} classes" for name, k in kinds.items())
        raise InputError(f"a mask moves between data sets of one image size and number of classes only, not: {told}")
    rows = []
    for source, target, seed in product([*tasks, "random labels"], tasks, seeds):
        model = setting.network(seed=seed)
        scored = scoring_batches(tasks.get(source, tasks[target]), per_class)
        method = snip if source in tasks else partial(snip, loss="random labels")
        masks = setting.masks(model, method, 10**log10_compression, seed, scored)
        approximate_isometry(model, masks)
        rows.append((source, target, seed, setting.train(model, masks, seed, tasks[target]).accuracy_last))
    return pd.DataFrame(rows, columns=["source", "target", "seed", "accuracy"])
