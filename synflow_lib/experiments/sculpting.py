"""Networks of several shapes, carved down to the size of one that was made by hand (Lee et al. 2020, chapter 10)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product

import pandas as pd
from torch import nn

from synflow_lib import models
from synflow_lib.experiments import pool
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
        "residual": partial(residual, input_shape, classes),
    }


def residual(input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """A ResNet-18 of an eighth of the width."""
    return nn.Sequential(nn.AvgPool2d(2), models.build("resnet18", (tuple(input_shape), classes), width=0.125))


def stack(input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with `widths` channels and ReLU, the first two of stride 2, then one linear layer."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    for position, (before, after) in enumerate(pairwise((input_shape[0], *widths))):
        layers += [nn.Conv2d(before, after, 3, stride=2 if position < 2 else 1, padding=1), nn.ReLU()]
    size = (input_shape[1] // 8) * (input_shape[2] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * size, classes))


def carved(
    setting: Setting, own: Plans, seeds: Sequence[int], methods: Sequence[str] = ("snip", "synflow")
) -> pd.DataFrame:
    """Every network of `plans`, and of your `own`, (He initialisation) pruned to the size of the one by hand, and
    trained. Your own are made and trained in this process, so that they may be any functions.

    Columns: `network`, `before` (weights), `pruner` ("" for the one by hand, which keeps all), `after`, `seed` and
    `accuracy` (of the last epoch).
    """
    known = plans(setting.images.input_shape, setting.images.classes)
    budget = size(known[BY_HAND]())
    ways = {
        name: [
            {"setting": setting, "plan": plan, "method": method, "budget": budget, "seed": seed}
            for method, seed in product([""] if name == BY_HAND else methods, seeds)
        ]
        for name, plan in (known | dict(own)).items()
    }
    together = [part for name in known for part in ways[name]]
    rows = [*pool.each(_carve, together), *(_carve(**part) for name in own for part in ways[name])]
    names = [name for name, parts in ways.items() for _ in parts]
    return pd.DataFrame([{"network": name} | row for name, row in zip(names, rows, strict=True)])


def size(model: nn.Module) -> int:
    """How many weights could be pruned."""
    return sum(weight.numel() for weight in prunable(model).values())


def _carve(setting: Setting, plan: Callable[[], nn.Module], method: str, budget: int, seed: int) -> dict:
    model = models.initialise(plan(), "he", seed=seed)
    before = size(model)
    options = {"input_shape": setting.images.input_shape, "batches": setting.batches, "seed": seed}
    masks = prune(model, method or "random", before / budget, **options)
    accuracy = setting.train(model, masks, seed).accuracy_last
    return {"before": before, "pruner": method, "after": masks.kept, "seed": seed, "accuracy": accuracy}
