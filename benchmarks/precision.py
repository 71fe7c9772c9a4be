"""What bfloat16 costs in accuracy: the same runs with and without it, set against the spread between seeds.

    python benchmarks/precision.py                                              # the digits, minutes on one core
    python benchmarks/precision.py --dataset cifar10 --width 1 --device cuda    # the full network, on a GPU
    python benchmarks/precision.py --recipe described --seeds 0 1 2

A cell is a compression. Both sides train the same masks from the same weights with the same batches, once with
products in bfloat16 (autocast) and once all in float32; every other speed feature is the same. Are the two sets of
accuracies drawn from distributions with one mean? Welch's t-test asks, which does not assume equal variances; its 95 %
interval says how large a difference these seeds leave possible. Runs are records in a folder of their own for each
side, so that a run that was interrupted goes on, and one more seed costs one more run.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path

from scipy import stats

from synflow_lib import devices, paths
from synflow_lib.benchmark import Run, grid, run
from synflow_lib.data import DATASETS
from synflow_lib.devices import Speed
from synflow_lib.models import MODELS
from synflow_lib.training import RECIPES

SIDES = {"bfloat16": True, "float32": False}
LEVEL = 0.05  # two-sided


def accuracy(spec: Run, side: str, folder: Path, device: str) -> float:
    """Last test accuracy of `spec` in percent, on one `side`, from its record or trained now."""
    os.environ["SYNFLOW_RECORDS"] = str(folder / side)
    where = devices.resolve(device)
    return run(spec, where, replace(Speed.auto(where), bfloat16=SIDES[side]))["accuracy_last"]


def compared(bfloat16: list[float], float32: list[float]) -> dict:
    """Means and deviations in percent, the difference with its 95 % interval, and Welch's two-sided p."""
    row = {"bfloat16": statistics.mean(bfloat16), "float32": statistics.mean(float32)}
    row["difference"] = row["bfloat16"] - row["float32"]
    row["deviations"] = statistics.stdev(bfloat16), statistics.stdev(float32)
    if not any(row["deviations"]):  # no spread at all: the test would divide by it
        return row | {"interval": (row["difference"],) * 2, "p": float(row["difference"] == 0)}
    test = stats.ttest_ind(bfloat16, float32, equal_var=False)
    return row | {"interval": tuple(map(float, test.confidence_interval(1 - LEVEL))), "p": float(test.pvalue)}


HEAD = "alpha  bfloat16        float32         difference  95 % interval    p     within seed noise"


def shown(alpha: float, row: dict) -> str:
    """A line of the table."""
    (ours, theirs), (low, high) = row["deviations"], row["interval"]
    return (
        f"{alpha:5g}  {row['bfloat16']:6.2f} ± {ours:4.2f}   {row['float32']:6.2f} ± {theirs:4.2f}   "
        f"{row['difference']:+10.2f}  {low:+6.2f} {high:+6.2f}  {row['p']:5.2f}  {'yes' if row['p'] > LEVEL else 'NO'}"
    )


def main() -> None:
    """Do the runs that have no record yet, a pair after the other, and print a row per compression."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="digits")
    parser.add_argument("--model", choices=sorted(MODELS), default="vgg11")
    parser.add_argument("--width", type=float, default=0.25, help="factor for the channels of every layer")
    parser.add_argument("--pruner", default="synflow")
    parser.add_argument("--compression", nargs="+", type=float, default=[0, 1, 2], help="alpha, log10 of rho")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="fast")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--records", type=Path, help="folder for the records (default: precision in the build folder)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a row instead of the table")
    arguments = parser.parse_args()
    if len(set(arguments.seeds)) < 2:
        parser.error("a spread needs at least two seeds")
    folder = (arguments.records or paths.build() / "precision").absolute()
    if not arguments.json:
        print(f"last accuracy in percent, mean ± deviation of {len(arguments.seeds)} seeds\n{HEAD}")
    for alpha in arguments.compression:
        results: dict[str, list[float]] = {side: [] for side in SIDES}
        options = {"recipes": arguments.recipe, "width": arguments.width}
        for spec in grid(arguments.dataset, arguments.model, arguments.pruner, alpha, arguments.seeds, **options):
            for side in SIDES:
                results[side].append(accuracy(spec, side, folder, arguments.device))
        row = compared(**results)
        print(json.dumps({"alpha": alpha, **row}) if arguments.json else shown(alpha, row), flush=True)


if __name__ == "__main__":
    main()
