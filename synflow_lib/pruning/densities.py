"""How dense pruning leaves each layer, over compression: the paper's figure 2."""

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from torch import nn

from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning.masks import Masks
from synflow_lib.pruning.prune import default_iterations, held, number_kept, prune, ranked
from synflow_lib.pruning.saliency import SALIENCIES, Scores
from synflow_lib.pruning.select import count, largest


def layer_densities(
    model: nn.Module,
    methods: Sequence[str] | Mapping[str, str | Callable[..., Scores]],
    log10_compressions: Sequence[float],
    **options: object,
) -> pd.DataFrame:
    """Density of every layer for each method and compression (the paper's figure 2).

    `methods` are names of `SALIENCIES`, or a mapping from names of your own to methods as `prune` takes them. Columns:
    pruner (the name), log10_compression, layer, size, kept, density. The scores of single-shot methods are computed
    once. `options` are those of `prune`.
    """
    methods = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    tables, options = [], {**options, "batches": held(options.get("batches"))}
    for name, method in methods.items():
        single = (options.get("iterations") or default_iterations(method)) == 1
        score = scored_once(method, model) if single else method
        for log10 in log10_compressions:
            table = prune(model, score, 10**log10, **options).layers()
            tables.append(table.assign(pruner=name, log10_compression=log10))
    return pd.concat(tables, ignore_index=True)


def ranked_densities(scores: Scores, log10_compressions: Sequence[float]) -> pd.DataFrame:
    """Density of every layer when the best of all weights by `scores` are kept at once, for each compression.

    What `prune` keeps in one iteration, but of a huge network quickly: the smaller share is looked for among the
    larger one only. Compressions may lie beyond rho_max, where some layer must be empty. Columns: log10_compression
    (ascending), layer, size, kept, density. Raises InputError for scores that are not finite.
    """
    sizes = {name.removesuffix(".weight"): score.numel() for name, score in scores.items()}
    left, kept, tables = ranked(scores.values()), list(sizes.values()), []
    if not bool(left.isfinite().all()):
        raise InputError("some scores are infinite or not a number: score in float64 (model.double())")
    for log10 in sorted(log10_compressions):
        chosen, _ = largest(left, number_kept(sum(sizes.values()), 10**-log10))
        kept, left = [count(part) for part in chosen.split(kept)], left[chosen]
        table = pd.DataFrame({"layer": list(sizes), "size": list(sizes.values()), "kept": kept})
        tables.append(table.assign(density=table["kept"] / table["size"], log10_compression=log10))
    return pd.concat(tables, ignore_index=True)


def scored_once(method: str | Callable[..., Scores], model: nn.Module) -> Callable[..., Scores]:
    """The same saliency, computed of the whole network at the first call only, for every search begins with that."""
    score = method if callable(method) else lookup(SALIENCIES, method, "pruning method")
    known: list[Scores] = []

    def cached(model: nn.Module, masks: Masks, **options: object) -> Scores:
        if not all(bool(mask.all()) for mask in masks.values()):
            return score(model, masks, **options)
        if not known:
            known.append(score(model, masks, **options))
        return known[0]

    return cached


def first_collapse(table: pd.DataFrame) -> float:
    """log10 of the lowest compression in a table of densities at which a layer is empty; infinite where none is."""
    emptied = table.loc[table["density"] == 0, "log10_compression"]
    return float(emptied.min()) if len(emptied) else math.inf
