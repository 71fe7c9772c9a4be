"""How surely SynFlow reaches the highest compressions, where a layer has a few weights or one: n = 100, at full size.

Theorem 3 promises rho_max when less than a whole layer's score goes between two scorings, as one weight at a time does.
Of a hundred iterations the last remove more, and may take the last weights of a layer. Which weights are left then
hangs on the last digits of the scores.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch

from synflow_lib import models
from synflow_lib.experiments import pool
from synflow_lib.pruning import prune, rho_max

CIFAR, IMAGENET = ((3, 32, 32), 100), ((3, 224, 224), 1000)
BELOW = (1.0, 0.75, 0.5, 0.25, 0.0)  # log10 of rho_max over the compression
PRECISIONS = ("float32", "float64")


def synflow_near_rho_max(
    seeds: Sequence[int] = tuple(range(8)), below: Sequence[float] = BELOW, width: float = 1.0, vgg19: bool = True
) -> pd.DataFrame:
    """Layers that SynFlow (n = 100) leaves without a weight up to rho_max: VGG-16 on CIFAR-100, one network per seed.

    With `vgg19` also one network of VGG-19 at ImageNet size, at rho_max alone. `precision` is that of the scores.
    Columns: network, seed, precision, below (log10 of rho_max over the compression), log10_compression, layers, kept
    (weights), empty (layers).
    """
    parts = [{"network": "vgg19", "size": IMAGENET, "seed": 0, "below": (0.0,)}] if vgg19 else []
    parts += [{"network": "vgg16", "size": CIFAR, "seed": seed, "below": tuple(below)} for seed in seeds]
    parts = [part | {"precision": precision, "width": width} for part in parts for precision in PRECISIONS[::-1]]
    table = pd.concat(pool.each(_emptied, parts, "networks"), ignore_index=True)
    return table.sort_values(["network", "precision", "below", "seed"], ascending=[True, True, False, True])


def _emptied(
    network: str, size: tuple, seed: int, below: Sequence[float], precision: str, width: float
) -> pd.DataFrame:
    model = models.build(network, size, width, seed).to(getattr(torch, precision))
    top, rows = math.log10(rho_max(model)), []
    for distance in below:
        masks = prune(model, "synflow", 10 ** (top - distance), input_shape=size[0])
        rows.append((distance, top - distance, len(masks), masks.kept, len(masks.collapsed())))
    found = pd.DataFrame(rows, columns=["below", "log10_compression", "layers", "kept", "empty"])
    for place, (name, value) in enumerate((("network", network), ("seed", seed), ("precision", precision))):
        found.insert(place, name, value)
    return found
