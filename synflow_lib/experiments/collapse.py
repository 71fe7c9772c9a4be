"""Where networks of the paper's size break: VGG-19 layer by layer (figure 2), VGG-16 on CIFAR-100 (figure 1)."""

import math
from collections.abc import Sequence

import pandas as pd

from synflow_lib import models
from synflow_lib.experiments import pool, scoring
from synflow_lib.experiments.scoring import BATCH, CIFAR, COMPRESSIONS, both_signs
from synflow_lib.experiments.vgg19 import pictures, whole
from synflow_lib.pruning import (
    NEEDS_DATA,
    SALIENCIES,
    critical_compressions,
    layer_densities,
    ranked_densities,
    rho_max,
)

IMAGENET = ((3, 224, 224), 1000)
AT_ONCE = 5  # enlarged images: GraSP differentiates twice, and ten of them would take another 4 GB
DATA_FREE = ("random", "magnitude")  # and what they give a weight does not depend on the others


def vgg19_layer_density(
    width: float = 1.0, network: tuple = IMAGENET, images: int = 50, doublings: int = 24
) -> pd.DataFrame:
    """Density of every layer of VGG-19 over the compression 2^index, for the five pruners (the paper's figure 2).

    SynFlow, in 100 iterations, at 2^0, 2^1, ... and at rho_max itself (index 22.85): beyond it there are fewer weights
    than layers, so that any pruner empties one. The others, at once, at all of the authors' 2^0 to 2^24. SNIP and
    GraSP score `images` enlarged training images; the column of that name says how many of what. `sign` "published"
    is GraSP with the lowest scores kept, as for the authors' curves.
    Columns: pruner, sign, iterations, images, index, log10_compression, layer (from 0), module, size, density.
    """
    common = {"width": width, "network": network, "images": images}
    highest = math.log2(rho_max(models.build("vgg19", network, width)))
    every, below = list(range(doublings + 1)), [*range(math.floor(highest) + 1), highest]
    parts = [{"pruner": pruner, "indices": every} for pruner in ("grasp", "snip")]
    parts += [{"pruner": "synflow", "indices": [index]} for index in below]  # the lowest take longest
    parts += [{"pruner": pruner, "indices": every} for pruner in DATA_FREE]
    table = pd.concat(pool.each(_densities, [part | common for part in parts], "VGG-19"), ignore_index=True)
    columns = ["pruner", "sign", "iterations", "images", "index", "log10_compression", "layer", "module", "size"]
    return in_order(table)[[*columns, "density"]]


def _densities(pruner: str, indices: Sequence[float], width: float, network: tuple, images: int) -> pd.DataFrame:
    model, steps, batches, seen = whole(width, *network), [i * math.log10(2) for i in indices], None, ""
    if pruner == "synflow":
        table = layer_densities(model, ["synflow"], steps, input_shape=network[0]).assign(sign="own", iterations=100)
    else:
        if pruner in NEEDS_DATA:
            batches, seen = pictures(images, network[0], AT_ONCE)
        scores = SALIENCIES[pruner](model, batches=batches)
        tables = [ranked_densities(s, steps).assign(sign=sign) for sign, s in both_signs(pruner, scores).items()]
        table = pd.concat(tables, ignore_index=True).assign(iterations=1)
    table = table.rename(columns={"layer": "module"})
    layers = {module: place for place, module in enumerate(dict.fromkeys(table["module"]))}
    index = table["log10_compression"] / math.log10(2)
    return table.assign(pruner=pruner, images=seen, layer=table["module"].map(layers), index=index)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by pruner, in the usual order."""
    return table.sort_values("pruner", key=lambda names: names.map(list(SALIENCIES).index), kind="stable")


def vgg16_tables(
    width: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    images: int = 1000,
    images_iterated: int = 50,
    tolerance: float = 0.02,
    tolerance_iterated: float = 0.1,
    log10_compressions: Sequence[float] = COMPRESSIONS,
) -> dict[str, pd.DataFrame]:
    """VGG-16 on CIFAR-100, one network per seed, in two tables: to score by SNIP and GraSP is most of the work of both.

    SNIP and GraSP score `images` training images of the network's own, the authors' 10 per class, with BatchNorm in
    eval and in train mode, GraSP with its own and the published sign ("published": the lowest scores kept). The column
    `images` says how many of what they were.

    "vgg16_critical_compression": log10 rho_cr for the five pruners, with and without iteration. By bisection to
    `tolerance`, and by both criteria: "layer" (none is empty, the paper's definition) and "signal" (a path leads from
    input to output). Iterated means 100 times for SynFlow; for SNIP and GraSP, in eval mode, 10 times on fewer images
    and to a coarser tolerance, for these cost. Random and magnitude give a weight what does not depend on the others,
    so that scoring the survivors again ranks them as before: their rows with 100 iterations repeat the others. SynFlow
    scores in double precision: in single, rounding decides whether it reaches rho_max (`limit.synflow_near_rho_max`).
    Columns: pruner, mode, sign, iterations, images, seed, criterion, log10_compression.

    "vgg16_scoring_variants": density of every layer under SNIP and GraSP without iteration.
    Columns: pruner, mode, sign, images, seed, log10_compression, layer (from 0), size, density.
    """
    once = {"iterations": 1, "images": images, "tolerance": tolerance}
    often = {"iterations": 10, "images": images_iterated, "tolerance": tolerance_iterated}
    plans = [{"pruner": pruner, **often} for pruner in ("grasp", "snip")]
    plans += [{"pruner": pruner, "mode": mode, **once} for pruner in ("grasp", "snip") for mode in ("eval", "train")]
    plans += [{"pruner": "synflow", **once, "iterations": n} for n in (100, 1)]
    plans += [{"pruner": pruner, **once} for pruner in DATA_FREE]
    common = {"width": width, "log10_compressions": log10_compressions}
    parts = [plan | common | {"seed": seed} for plan in plans for seed in seeds]
    critical, densities = zip(*pool.each(_vgg16, parts, "VGG-16"), strict=True)
    table = pd.concat(critical, ignore_index=True)
    table = pd.concat([table, table[table["pruner"].isin(DATA_FREE)].assign(iterations=100)], ignore_index=True)
    keys = ["pruner", "mode", "sign", "iterations", "images", "seed", "criterion"]
    return {
        "vgg16_critical_compression": in_order(table.sort_values(keys, kind="stable"))[[*keys, "log10_compression"]],
        "vgg16_scoring_variants": scoring.variants(found for found in densities if found is not None),
    }


def _vgg16(
    pruner: str,
    iterations: int,
    images: int,
    tolerance: float,
    width: float,
    log10_compressions: Sequence[float],
    seed: int,
    mode: str = "eval",
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The critical compressions, and of single-shot SNIP and GraSP the densities."""
    model, batches, densities = models.build("vgg16", CIFAR, width, seed), None, None
    if pruner == "synflow":
        model = model.double()
    how = {"pruner": pruner, "mode": mode, "images": "", "seed": seed}
    if pruner in NEEDS_DATA:
        batches, how["images"] = pictures(images, CIFAR[0], BATCH, seed)
    options = {"batches": batches, "train_mode": mode == "train", "seed": seed, "input_shape": CIFAR[0]}
    if iterations > 1:
        methods = {"own": pruner}
    else:
        scores = both_signs(pruner, SALIENCIES[pruner](model, **options))
        methods = {sign: lambda *_, found=found, **__: found for sign, found in scores.items()}
        if pruner in NEEDS_DATA:
            densities = scoring.densities(scores, log10_compressions).assign(**how)
    rows = []
    for sign, method in methods.items():
        found = critical_compressions(model, method, iterations=iterations, tolerance=tolerance, **options)
        rows += [(sign, criterion, math.log10(compression)) for criterion, compression in found.items()]
    table = pd.DataFrame(rows, columns=["sign", "criterion", "log10_compression"])
    return table.assign(iterations=iterations, **how), densities
