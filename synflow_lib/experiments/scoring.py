"""SNIP and GraSP as one may score them, and which way made the published curves: VGG-16 on CIFAR-100, by layer.

Two choices are silent in the paper: whether BatchNorm normalises with its running statistics (eval mode) or with those
of the batch (train mode), and which end of GraSP's scores stays. The densities of layers tell them apart. Theirs are
in data/reference/vgg16_scoring_density.csv: GraSP's of the first convolution, and five of SNIP's of which it is
inferred that they are the first five layers at 10^0.5, where alone both modes give what was reported of them.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from synflow_lib.pruning import ranked_densities
from synflow_lib.pruning.saliency import Scores

CIFAR = ((3, 32, 32), 100)
BATCH = 250  # images; the authors' 256, made to divide a thousand
COMPRESSIONS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # log10, of the authors' 0 to 6


def both_signs(pruner: str, scores: Scores) -> dict[str, Scores]:
    """The scores by `sign`: "own", and for GraSP "published" too, in which those that are lowest are highest."""
    if pruner != "grasp":
        return {"own": scores}
    return {"own": scores, "published": {name: -score for name, score in scores.items()}}


def densities(signed: Mapping[str, Scores], log10_compressions: Sequence[float]) -> pd.DataFrame:
    """`ranked_densities` of scores by sign, with columns `sign` and `layer`, which is counted from 0."""
    tables = [ranked_densities(scores, log10_compressions).assign(sign=sign) for sign, scores in signed.items()]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(layer=table.groupby(["sign", "log10_compression"]).cumcount())


def variants(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The `densities` of all networks and ways as one table, SNIP first."""
    columns = ["pruner", "mode", "sign", "images", "seed", "log10_compression", "layer", "size", "density"]
    table = pd.concat(tables, ignore_index=True)[columns]
    return table.sort_values(["pruner", "mode", "sign"], ascending=[False, True, True], kind="stable")
