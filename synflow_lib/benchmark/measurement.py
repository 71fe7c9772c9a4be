"""A few training steps, test batches and prunings on random images, timed: speeds for an estimate, without data."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch

from synflow_lib import data, devices, models
from synflow_lib.benchmark.grid import SAME_NETWORK, Run
from synflow_lib.data import DATASETS, Dataset
from synflow_lib.devices import Speed
from synflow_lib.pruning import NEEDS_DATA, prune, rho_max
from synflow_lib.theory import approximate_isometry
from synflow_lib.training import Recipe, evaluate, recipe, train

PER_CLASS = 10  # images that snip and grasp score on: the default of `data.scoring_batches`
SCORING_BATCH = 256  # that of `data.scoring_batches`
PRUNED_TO = 100.0  # the compression at which pruning is timed


@dataclass(frozen=True)
class Sample:
    """How many images are timed: in a batch and for scoring (None: as many as will be), steps, test images.

    A GPU needs whole batches to be as busy as it will be. On a CPU time is in proportion to images, so fewer do; what
    a step does beside them (the optimiser) is then counted more often than it will occur.
    """

    batch: int | None = 64
    steps: int = 1
    test: int = 64
    scoring: int | None = 8

    @staticmethod
    def of(device: torch.device) -> "Sample":
        """What tells enough on `device`."""
        return Sample() if device.type == "cpu" else Sample(batch=None, steps=200, test=4_000, scoring=None)


@dataclass(frozen=True)
class Here:
    """Where the runs would be done, and how a speed is measured there; `tell` is called before each measurement."""

    device: torch.device
    threads: int
    speed: Speed
    sample: Sample
    tell: Callable[[str], None]


class Measurements:
    """Seconds of runs by measurements here, each made once for all data sets and runs that it holds for."""

    def __init__(self, here: Here):
        self.here = here
        self.known: dict[tuple, Any] = {}

    def seconds(self, run: Run) -> float:
        """All trainings of the run, its pruning and its isometry."""
        epochs = recipe(run.recipe, run.dataset, run.model).epochs
        return (run.cycles + 1) * epochs * self.epoch(run) + self.pruning(run) * max(run.cycles, 1) + self.isometry(run)

    def epoch(self, run: Run) -> float:
        """One epoch with its evaluation, of the dense network on data of the run's size."""
        settings, spec = recipe(run.recipe, run.dataset, run.model), DATASETS[run.dataset]
        step, test = self._once(run, settings, lambda: step_and_test(run, settings, self.here))
        images = spec.train_size
        if settings.max_steps:
            images = min(images, settings.max_steps * settings.batch_size)
        return step * images + test * spec.test_size

    def pruning(self, run: Run) -> float:
        """Pruning by the run's method; that of snip and grasp in proportion to the images they score on."""
        if run.log10_compression == 0 and not run.cycles:
            return 0.0
        seconds = self._once(run, (run.pruner, run.iterations), lambda: pruning(run, self.here))
        return seconds * (PER_CLASS * DATASETS[run.dataset].classes if run.pruner in NEEDS_DATA else 1)

    def isometry(self, run: Run) -> float:
        """Approximate isometry, for random masks of the run's compression: no other masks leave as much to do."""
        what = ("isometry", run.log10_compression)
        return self._once(run, what, lambda: isometry(run, self.here)) if run.isometry else 0.0

    def _once(self, run: Run, what: Hashable, measure: Callable[[], Any]) -> Any:
        model, shape = SAME_NETWORK.get(run.model, run.model), DATASETS[run.dataset].input_shape
        if not any(known[:3] == (model, shape, run.width) for known in self.known):
            self.here.tell(f"measuring {model} on images of {shape[1]}x{shape[2]} pixels ...")
        key = (model, shape, run.width, what)
        if key not in self.known:
            with devices.threads(self.here.threads):
                self.known[key] = measure()
        return self.known[key]


def step_and_test(run: Run, settings: Recipe, here: Here) -> tuple[float, float]:
    """Seconds per image of a training step and of an evaluation: the better of two epochs after a first one.

    The learning rate is 0, so that the weights, hence the work, stay what they are. These epochs test one image alone:
    on a GPU an evaluation begins while the last steps are still computed, so what it takes by itself cannot be
    taken off an epoch.
    """
    sample, model = here.sample, network(run)
    if settings.identity_scales:
        models.add_identity_scales(model)
    batch = min(sample.batch or settings.batch_size, settings.batch_size)
    images = random_images(run.dataset, batch * sample.steps, sample.test, here.device)
    one = replace(images, test_images=images.test_images[:1], test_labels=images.test_labels[:1])
    short = settings.without_learning(epochs=3, batch_size=batch)
    clock = [row["seconds"] for row in train(model, one, short, device=here.device, speed=here.speed).curve]
    evaluate(model, images, here.speed)
    began = time.perf_counter()
    evaluate(model, images, here.speed)
    tested = time.perf_counter() - began
    return min(clock[2] - clock[1], clock[3] - clock[2]) / (batch * sample.steps), tested / sample.test


def pruning(run: Run, here: Here) -> float:
    """Seconds of pruning by the run's method; for snip and grasp, seconds per image that they score on."""
    model = network(run).to(here.device)
    needed = PER_CLASS * DATASETS[run.dataset].classes
    count = min(here.sample.scoring or needed, needed)
    batches = None
    if run.pruner in NEEDS_DATA:
        images = random_images(run.dataset, count, 1, here.device)
        batches = list(data.train_batches(images, SCORING_BATCH, torch.Generator(here.device)))
    began = time.perf_counter()
    masks = prune(
        *(model, run.pruner, min(PRUNED_TO, rho_max(model))),
        input_shape=DATASETS[run.dataset].input_shape,
        batches=batches,
        iterations=run.iterations,
    )
    masks.kept  # noqa: B018 - a number, so the device has finished
    seconds = time.perf_counter() - began
    return seconds / count if batches else seconds


def isometry(run: Run, here: Here) -> float:
    """Seconds of approximate isometry of the network, randomly pruned to the run's compression."""
    model = network(run).to(here.device)
    masks = prune(model, "random", run.compression).to(here.device)
    began = time.perf_counter()
    approximate_isometry(model, masks)
    return time.perf_counter() - began


def network(run: Run) -> torch.nn.Module:
    """The network that the run trains, on the CPU."""
    return models.build(run.model, run.dataset, width=run.width)


def random_images(name: str, train_size: int, test_size: int, device: torch.device) -> Dataset:
    """A data set of the shape of `name` with random images and labels, so few of them as are timed."""
    spec = DATASETS[name]
    random = {"generator": torch.Generator(device).manual_seed(0), "device": device}

    def part(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(256, (size, *spec.input_shape), dtype=torch.uint8, **random)
        return images, torch.randint(spec.classes, (size,), **random)

    return Dataset(spec, *part(train_size), *part(test_size), fingerprint="", official=False)
