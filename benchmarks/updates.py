"""What the repeated updates of `published` cost: a training step with them beside one with plain SGD, in turn.

    python benchmarks/updates.py                                  # VGG-11 and ResNet-18 on the GPU, else on one core
    python benchmarks/updates.py --models vgg16 --batch-size 32

Both optimisers update the same network by the same gradients. A step is forward, backward and the update, as `train`
does it on this device; the update is timed alone as well, and the medians of all turns are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import synflow_lib as sf
from synflow_lib import devices, provenance, training
from synflow_lib.benchmark.measurement import random_images
from synflow_lib.devices import Speed
from synflow_lib.training.optim import sgd
from synflow_lib.training.train import logits


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes on `device`."""
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finish()
    began = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - began


def measured(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """The median seconds of a pass, and of an update by either recipe; the learning rate is 0, so all is alike."""
    speed = Speed.auto(device)
    model = sf.models.build(name, "cifar10", width=arguments.width).to(device)
    model = model.to(memory_format=speed.memory_format(*model.parameters())).train()
    dataset = random_images("cifar10", arguments.batch_size, 1, device)
    images, labels = sf.data.normalise(dataset.train_images, dataset.spec), dataset.train_labels
    recipes = {r: training.recipe(r, "cifar10", name).without_learning() for r in ("described", "published")}
    optimisers = {r: sgd(model, recipe, speed) for r, recipe in recipes.items()}

    def passed() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits(model, images, speed, torch.float32), labels).backward()

    times: dict[str, list[float]] = {"pass": [], **{r: [] for r in recipes}}
    for _ in range(arguments.turns + 1):
        times["pass"].append(seconds(passed, device))
        for r, optimiser in optimisers.items():
            times[r].append(seconds(optimiser.step, device))
    return {what: statistics.median(values[1:]) for what, values in times.items()}  # the first turn warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg11", "resnet18"])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = devices.resolve(arguments.device)
    torch.set_num_threads(1)
    print(f"{provenance.device_name(str(device))}, batches of {arguments.batch_size}, torch {torch.__version__}")
    print(f"{'':<16}{'pass ms':>10}{'SGD ms':>10}{'repeated ms':>13}{'step with it / without':>24}")
    for name in arguments.models:
        found = measured(name, arguments, device)
        ratio = (found["pass"] + found["published"]) / (found["pass"] + found["described"])
        shown = [1000 * found[what] for what in ("pass", "described", "published")]
        print(f"{name:<16}{shown[0]:>10.1f}{shown[1]:>10.2f}{shown[2]:>13.2f}{ratio:>23.3f}x")


if __name__ == "__main__":
    main()
