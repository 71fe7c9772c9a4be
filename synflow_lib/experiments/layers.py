"""Mean score of every layer of VGG-19 at ImageNet size against the inverse of its size (figure 4)."""

from collections.abc import Sequence

import pandas as pd
import torch

from synflow_lib.experiments import pool, vgg19
from synflow_lib.pruning.saliency import SALIENCIES, prunable
from synflow_lib.theory import conservation


def vgg19_layer_scores(
    width: float = 1.0, input_shape: Sequence[int] = vgg19.SHAPE, images: int | None = None
) -> pd.DataFrame:
    """Figure 4: the mean score of each of the 19 layers by each of the five pruners, at initialisation.

    Columns: `pruner`, `layer` (from 0, as in data/reference), `inverse_size` (1 / number of weights; the authors count
    the biases too, which are at most 4 % more), `average_score`, `images` (how many SNIP and GraSP saw and of
    what, "none" for the others). Scores are in single precision, SynFlow's in double.
    """
    small = {"width": width, "input_shape": tuple(input_shape)}
    tables = {}
    # SynFlow's 6.6 GB and GraSP's 6 would be more than 12: in two rounds they never meet.
    for turns in (("synflow", "magnitude", "random"), ("grasp", "snip")):
        parts = [{"pruner": pruner, "images": images, **small} for pruner in turns]
        tables |= zip(turns, pool.each(means, parts, "VGG-19's layers"), strict=True)
    return pd.concat([tables[pruner] for pruner in SALIENCIES], ignore_index=True)


def means(pruner: str, **options) -> pd.DataFrame:
    """One pruner's rows of the table; `options` are those of `vgg19.scored`."""
    dtype = torch.float64 if pruner == "synflow" else torch.float32
    network, scores, seen = vgg19.scored(pruner, dtype, **options)
    table = conservation.layer_means({name: scores[name] for name in prunable(network)})
    table = table.assign(layer=range(len(table)), images=seen or "none")
    table.insert(0, "pruner", pruner)
    return table
