"""What does it cost that glibc gives freed memory back to the system?

    python benchmarks/allocator.py --recipes described published

trains VGG-11, pruned by SynFlow at compression 100, as a run of the benchmark does (the compact network; random images
in the shape of CIFAR-10), each side in processes of its own that take turns: "default", glibc as it is, and "kept",
after `devices.keep_freed_memory()`, as the engines do it. It prints the CPU time of a step, the system's share of it,
the page faults of a step and the ratio; it ends where the losses differ in one bit. Times are of the process, so other
work on the machine matters little.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import replace

from synflow_lib import devices, models, pruning
from synflow_lib.benchmark.measurement import random_images
from synflow_lib.devices import Speed
from synflow_lib.training import recipe, train

NETWORK = "cifar10", "vgg11"
SIDES = ("default", "kept")


def main() -> None:
    """Let the sides take turns and print the median of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["described", "published"])
    parser.add_argument("--steps", type=int, default=60, help="of each of the two epochs that are timed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of every layer")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.recipes[0], arguments.steps, arguments.width)))
        return
    print("recipe     side     CPU ms/step  system  page faults/step  peak memory  ratio")
    for name in arguments.recipes:
        turns = {side: [] for side in SIDES}
        for _ in range(arguments.turns):
            for side in SIDES:
                turns[side].append(elsewhere(side, name, arguments.steps, arguments.width))
        if len({turn["loss"] for found in turns.values() for turn in found}) > 1:
            sys.exit(f"{name}: the sides did not train alike, so there is nothing to compare")
        first = None
        for side, found in turns.items():
            median = {key: statistics.median(turn[key] for turn in found) for key in found[0]}
            first = first or median["cpu"]
            print(
                f"{name:10} {side:8} {1000 * median['cpu']:11.1f} {100 * median['system'] / median['cpu']:6.0f} %"
                f" {median['faults']:17,.0f} {median['peak'] / 2**20:8,.0f} MiB  {first / median['cpu']:.2f}x"
            )


def elsewhere(side: str, name: str, steps: int, width: float) -> dict[str, float]:
    """`measured`, in a process of its own."""
    options = ["--side", side, "--recipes", name, "--steps", f"{steps}", "--width", f"{width}"]
    command = [sys.executable, __file__, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def measured(side: str, name: str, steps: int, width: float) -> dict[str, float]:
    """CPU seconds, system seconds and page faults of a training step here, peak memory and the last epoch's loss.

    What happens before the training is what happens before it in a run; its first epoch is not counted.
    """
    if side == "kept" and not devices.keep_freed_memory():
        sys.exit("this C library is not glibc: there is nothing to compare")
    dataset, model = NETWORK
    cpu = devices.resolve("cpu")
    network = models.build(model, dataset, width=width)
    images = random_images(dataset, 50_000, 256, cpu)
    masks = pruning.prune(network, "synflow", compression=100, input_shape=images.input_shape)
    small = pruning.compact(network, masks, input_shape=images.input_shape)
    seen = {}

    def look(epoch: int, model: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seen[epoch] = {"cpu": used.ru_utime + used.ru_stime, "system": used.ru_stime, "faults": used.ru_minflt}

    settings = replace(recipe(name, dataset, model), epochs=3, max_steps=steps)
    how = {"device": cpu, "on_epoch": look, "speed": Speed.auto(cpu)}
    history = train(small.model, images, settings, small.masks, **how)
    per_step = {key: (seen[3][key] - seen[1][key]) / (2 * steps) for key in seen[1]}
    return {**per_step, "peak": devices.peak_memory(cpu), "loss": history.curve[-1]["train_loss"]}


if __name__ == "__main__":
    main()
