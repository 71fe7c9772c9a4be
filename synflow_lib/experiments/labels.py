"""Whether a mask knows the labels, or the task, that it was found with (Lee et al. 2020, chapter 10)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, product

import pandas as pd

from synflow_lib import data
from synflow_lib.data import Dataset, scoring_batches
from synflow_lib.errors import InputError
from synflow_lib.experiments import pool
from synflow_lib.experiments.signal_propagation import Setting
from synflow_lib.pruning import LOSSES
from synflow_lib.pruning.saliency import snip
from synflow_lib.theory import approximate_isometry

RANDOM = "random labels"


def without_labels(setting: Setting, log10_compressions: Iterable[float], seeds: Iterable[int]) -> pd.DataFrame:
    """SNIP by each of `LOSSES`, and SynFlow: trained after isometry.

    Columns: `log10_compression`, `score`, `seed`, `overlap` with the supervised mask, `accuracy` of the last epoch.
    """
    parts = [{"setting": setting, "power": power, "seed": seed} for power, seed in product(log10_compressions, seeds)]
    return pd.DataFrame(chain.from_iterable(pool.each(_by_every_score, parts)))


def _by_every_score(setting: Setting, power: float, seed: int) -> list[dict]:
    supervised = setting.masks(setting.network(seed=seed), "snip", 10**power, seed)
    rows = []
    for score in (*LOSSES, "synflow"):
        model = setting.network(seed=seed)
        masks = setting.masks(model, partial(snip, loss=score) if score in LOSSES else score, 10**power, seed)
        about = {"log10_compression": power, "score": score, "seed": seed, "overlap": supervised.overlap(masks)}
        approximate_isometry(model, masks)
        rows.append(about | {"accuracy": setting.train(model, masks, seed).accuracy_last})
    return rows


def tasks(dataset: str, other: str) -> dict[str, Dataset]:
    """Two tasks: the images of two data sets, or the `halves` of one where `other` is "".

    Raises InputError for data sets of different sizes, which one network cannot both learn.
    """
    if not other:
        return halves(data.load_once(dataset))
    found = {name: data.load_once(name) for name in (dataset, other)}
    kinds = {name: (*task.input_shape, task.classes) for name, task in found.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {'x'.join(map(str, k[:3]))} with {k[3]} classes" for name, k in kinds.items())
        raise InputError(f"a mask moves between data sets of one image size and number of classes only, not: {told}")
    return found


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
    setting: Setting, other: str, log10_compression: float, seeds: Sequence[int], per_class: int = 5
) -> pd.DataFrame:
    """A SNIP mask found on each of the `tasks` of the setting's data set and `other` (a name, or "" for its halves), or
    on random labels of the target, trained on each of them after isometry.

    Columns: `source`, `target`, `seed` and `accuracy` (of the last epoch). Raises InputError as `tasks` does, before
    any work.
    """
    both = tasks(setting.dataset, other)
    common = {"setting": setting, "other": other, "power": log10_compression, "per_class": per_class}
    parts = [
        common | {"source": source, "target": target, "seed": seed}
        for source, target, seed in product([*both, RANDOM], both, seeds)
    ]
    return pd.DataFrame(pool.each(_moved, parts))


def _moved(setting: Setting, other: str, power: float, per_class: int, source: str, target: str, seed: int) -> dict:
    both = tasks(setting.dataset, other)
    model = setting.network(seed=seed)
    scored = scoring_batches(both.get(source, both[target]), per_class)
    method = partial(snip, loss=RANDOM) if source == RANDOM else snip
    masks = setting.masks(model, method, 10**power, seed, scored)
    approximate_isometry(model, masks)
    accuracy = setting.train(model, masks, seed, both[target]).accuracy_last
    return {"source": source, "target": target, "seed": seed, "accuracy": accuracy}
