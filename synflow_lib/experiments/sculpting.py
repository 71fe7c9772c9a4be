"""Networks of several shapes, carved down to the size of one that was made by hand (Lee et al. 2020, chapter 10)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product

import pandas as pd
from torch import nn

from synflow_lib import models
from synflow_lib.experiments.signal_propagation import Setting
from synflow_lib.pruning import prunable, prune

BY_HAND = "by hand"
Plans = Mapping[str, Callable[[], nn.Module]]


def plans(input_shape: Sequence[int], classes: int) -> dict[str, Callable[[], nn.Module]]:
    """What can be built: a small plain network "by hand", a wide and a deep plain one, and a residual one.

    They halve images of `input_shape` first, for time.
    """
    plain = partial(stack, input_shape, classes)
    return {
        BY_HAND: partial(plain, (16, 32, 32)),
        "wide": partial(plain, (48, 96, 96)),
        "deep": partial(plain, (24,) * 10),
        "residual": lambda: nn.Sequential(
            nn.AvgPool2d(2), models.build("resnet18", (tuple(input_shape), classes), width=0.125)
        ),
    }


def stack(input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with `widths` channels and ReLU, the first two of stride 2, then one linear layer."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    for position, (before, after) in enumerate(pairwise((input_shape[0], *widths))):
        layers += [nn.Conv2d(before, after, 3, stride=2 if position < 2 else 1, padding=1), nn.ReLU()]
    size = (input_shape[1] // 8) * (input_shape[2] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * size, classes))


def carved(
    setting: Setting, plans: Plans, seeds: Sequence[int], methods: Sequence[str] = ("snip", "synflow")
) -> pd.DataFrame:
    """Every network of `plans` (He initialisation) pruned to the size of the one by hand, and trained.

    Columns: `network`, `before` (weights), `pruner` ("" for the one by hand, which keeps all), `after`, `seed` and
    `accuracy` (of the last epoch).
    """
    sizes = {name: sum(weight.numel() for weight in prunable(plan()).values()) for name, plan in plans.items()}
    ways = [(BY_HAND, ""), *product([name for name in plans if name != BY_HAND], methods)]
    rows = []
    for (name, method), seed in product(ways, seeds):
        model = models.initialise(plans[name](), "he", seed=seed)
        options = {"input_shape": setting.dataset.input_shape, "batches": setting.batches, "seed": seed}
        masks = prune(model, method or "random", sizes[name] / sizes[BY_HAND], **options)
        rows.append((name, sizes[name], method, masks.kept, seed, setting.train(model, masks, seed).accuracy_last))
    return pd.DataFrame(rows, columns=["network", "before", "pruner", "after", "seed", "accuracy"])
