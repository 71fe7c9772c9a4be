"""SNIP and GraSP as one may score them, and which way made the published curves: VGG-16 on CIFAR-100, by layer.

Two choices are silent in the paper: whether BatchNorm normalises with its running statistics (eval mode) or with those
of the batch (train mode), and which end of GraSP's scores stays. The densities of layers tell them apart. Theirs are
in data/reference/vgg16_scoring_density.csv: GraSP's of the first convolution, and five of SNIP's of which it is
inferred that they are the first five layers at 10^0.5, where alone both modes give what was reported of them.
"""

from collections.abc import Sequence

import pandas as pd

from synflow_lib import models
from synflow_lib.experiments import pool
from synflow_lib.experiments.vgg19 import pictures
from synflow_lib.pruning import SALIENCIES, ranked_densities
from synflow_lib.pruning.saliency import Scores

CIFAR = ((3, 32, 32), 100)
BATCH = 250  # images; the authors' 256, made to divide a thousand
VARIANTS = (("grasp", "eval"), ("grasp", "train"), ("snip", "eval"), ("snip", "train"))


def vgg16_scoring_variants(
    width: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    images: int = 1000,
    log10_compressions: Sequence[float] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
) -> pd.DataFrame:
    """Density of every layer of VGG-16 on CIFAR-100 under SNIP and GraSP, by mode of BatchNorm and by sign.

    `mode` is "eval" or "train"; `sign` is "own", or "published" for GraSP with the lowest scores kept. Each network,
    one per seed, is scored on `images` training images of its own, the authors' 10 per class; the column of that
    name says how many of what they were.
    Columns: pruner, mode, sign, images, seed, log10_compression, layer (from 0), size, density.
    """
    common = {"width": width, "images": images, "log10_compressions": log10_compressions}
    parts = [{"pruner": p, "mode": mode, "seed": seed} | common for p, mode in VARIANTS for seed in seeds]
    table = pd.concat(pool.each(_variant, parts, "ways to score"), ignore_index=True)
    table["layer"] = table.groupby(["pruner", "mode", "sign", "seed", "log10_compression"]).cumcount()
    columns = ["pruner", "mode", "sign", "images", "seed", "log10_compression", "layer", "size", "density"]
    return table[columns].sort_values(["pruner", "mode", "sign"], ascending=[False, True, True], kind="stable")


def _variant(
    pruner: str, mode: str, seed: int, width: float, images: int, log10_compressions: Sequence[float]
) -> pd.DataFrame:
    model = models.build("vgg16", CIFAR, width, seed)
    batches, seen = pictures(images, CIFAR[0], BATCH, seed)
    scores = both_signs(pruner, SALIENCIES[pruner](model, batches=batches, train_mode=mode == "train"))
    tables = [ranked_densities(s, log10_compressions).assign(sign=sign) for sign, s in scores.items()]
    return pd.concat(tables).assign(pruner=pruner, mode=mode, images=seen, seed=seed)


def both_signs(pruner: str, scores: Scores) -> dict[str, Scores]:
    """The scores by `sign`: "own", and for GraSP "published" too, in which those that are lowest are highest."""
    if pruner != "grasp":
        return {"own": scores}
    return {"own": scores, "published": {name: -score for name, score in scores.items()}}
