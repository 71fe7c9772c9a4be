"""What the iterations of Algorithm 1 do at full size: the paper's figure 7, and the weights each layer ends with."""

from collections.abc import Sequence

import pandas as pd

from synflow_lib import models
from synflow_lib.experiments import pool
from synflow_lib.experiments.vgg19 import whole
from synflow_lib.pruning import SCHEDULES, connected, prune, pruned_to_flow

CIFAR = ((3, 32, 32), 10)
PLANS = ((100, "linear"), (100, "exponential"), (10, "exponential"), (5, "exponential"), (1, "exponential"))
COMPRESSIONS = tuple(half / 2 for half in range(7))
ITERATIONS = (1, 10, 20, 50, 70, 100)  # of the authors' 1, 10, 20, ..., 100
SHORTCUTS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)


def vgg11_iterations(log10_compression: float = 4.0, width: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Weights that SynFlow leaves in each layer of CIFAR's VGG-11 after 1 to 100 iterations, scored in float64.

    Columns: iterations, schedule, layer, size, kept.
    """
    parts = [{"plan": plan, "log10_compression": log10_compression, "width": width, "seed": seed} for plan in PLANS]
    return pd.concat(reversed(pool.each(_layers_after, parts, "plans")), ignore_index=True)


def _layers_after(plan: tuple[int, str], log10_compression: float, width: float, seed: int) -> pd.DataFrame:
    iterations, schedule = plan
    model = models.build("vgg11", CIFAR, width, seed).double()
    masks = prune(
        model, "synflow", 10**log10_compression, input_shape=CIFAR[0], iterations=iterations, schedule=schedule
    )
    kept = masks.layers()[["layer", "size", "kept"]]
    kept.insert(0, "iterations", iterations)
    kept.insert(1, "schedule", schedule)
    return kept


def vgg19_schedule(
    width: float = 1.0,
    input_shape: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    log10_compressions: Sequence[float] = COMPRESSIONS,
    iterations: Sequence[int] = ITERATIONS,
) -> pd.DataFrame:
    """The largest ratio of removed score to flow over all iterations: the paper's figure 7, for VGG-19 on ImageNet.

    That the figure is of this network is inferred from its single-shot ratios, which no other candidate gives.
    Columns: schedule, log10_compression, iterations, ratio. Scores are in float32, within range and as shares of R.
    """
    plans = [(s, a, n) for s in SCHEDULES for a in log10_compressions for n in iterations]
    longest: dict[tuple, tuple[str, float, int]] = {}
    for plan in sorted(plans, key=lambda plan: plan[2]):
        longest[_run(*plan)] = plan
    runs = sorted(longest, key=lambda run: -longest[run][2])
    size = {"width": width, "input_shape": input_shape, "classes": classes}
    parts = [dict(zip(("schedule", "log10_compression", "iterations"), longest[run], strict=True)) for run in runs]
    ratios = dict(zip(runs, pool.each(_ratios, [part | size for part in parts], "runs of Algorithm 1"), strict=True))
    rows = [(*plan, max(ratios[_run(*plan)][: plan[2]])) for plan in plans]
    return pd.DataFrame(rows, columns=["schedule", "log10_compression", "iterations", "ratio"])


def _run(schedule: str, log10_compression: float, iterations: int) -> tuple:
    """What the first iterations of a plan depend on: with rho^(-k/n) plans of equal log10(rho)/n begin alike."""
    if schedule == "exponential":
        return schedule, round(log10_compression / iterations, 9)
    return schedule, log10_compression, iterations


def _ratios(
    schedule: str, log10_compression: float, iterations: int, width: float, input_shape: tuple, classes: int
) -> list[float]:
    model = whole(width, input_shape, classes)
    return pruned_to_flow(
        model, 10**log10_compression, input_shape=input_shape, iterations=iterations, schedule=schedule
    )


def resnet18_shortcuts(
    log10_compressions: Sequence[float] = SHORTCUTS, width: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Weights that SynFlow (n = 100, float64) leaves in each layer of CIFAR's ResNet-18, and whether signal passes.

    Columns: log10_compression, layer, size, kept, shortcut (whether it is a 1x1 shortcut convolution), connected.
    """
    parts = [{"log10_compression": a, "width": width, "seed": seed} for a in log10_compressions]
    return pd.concat(pool.each(_shortcuts_at, parts, "compressions"), ignore_index=True)


def _shortcuts_at(log10_compression: float, width: float, seed: int) -> pd.DataFrame:
    model = models.build("resnet18", CIFAR, width, seed).double()
    masks = prune(model, "synflow", 10**log10_compression, input_shape=CIFAR[0])
    kept = masks.layers()[["layer", "size", "kept"]]
    kept.insert(0, "log10_compression", log10_compression)
    return kept.assign(shortcut=kept["layer"].str.contains("shortcut"), connected=connected(model, masks, CIFAR[0]))
