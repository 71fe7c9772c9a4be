"""What a training step costs: ours beside a plain implementation, in turn, in one run.

    python benchmarks/training.py                                     # four networks on the GPU, else on one core
    python benchmarks/training.py --models vgg11 --compact            # one, and the compact network beside it
    python benchmarks/training.py --device cuda --runs-at-once 4      # several of ours on one GPU as well
    python benchmarks/training.py --device cuda --compile --together  # and compiled; all networks started at once
    python benchmarks/training.py --evaluate                          # turns that are epochs in small

The plain side (`plain_training.py`) is what most people would write: a DataLoader with 4 workers, torchvision's
transforms on PIL images, float32, the mask multiplied into the weight in every forward pass, `torch.optim.SGD`,
`loss.item()` after each step. Ours is `training.train` itself with `Speed.auto`, but for the compact network, which
has a row of its own; others can show it without CUDA graphs ("eager") and with `torch.compile` besides ("compiled").
Both train the same network with the same SynFlow masks, at a learning rate of 0, which does all the work of a step
and leaves the arithmetic what it is.

Each side is a process with one thread. They take turns of some steps, so that all meet the same state of the machine;
the first turn warms up. Images per second are those of the median turn, and of the fastest; ratios are of medians.
CPU seconds are those of the process and of its DataLoader workers, which may use other cores: the ratio "per core" is
that of CPU seconds per image. (The workers begin to fetch before a turn begins, 8 batches at most. In the short turns
of a CPU the plain side's images per second thus have most of their work for nothing; its CPU seconds do not.) A step
counts as 3 forward passes of the dense network, as FLOPs of convolutions and matrix products, and is set against a
large matrix product in the type that our side computes in, measured between the turns; on a CPU both by CPU seconds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import plain_training as plain
import torch
from torch import nn
from torch.utils.data import DataLoader

import synflow_lib as sf
from synflow_lib import devices, paths, provenance, training
from synflow_lib.benchmark.measurement import random_images
from synflow_lib.data import DATASETS, Dataset
from synflow_lib.devices import Speed
from synflow_lib.pruning import Masks, compact
from synflow_lib.training import Recipe

MODELS = ("vgg11", "vgg16", "resnet18", "wide_resnet18")


class Turns:
    """The side's end of the conversation: say that it is ready, wait for the driver's word, answer with the seconds."""

    def __init__(self):
        print("ready", flush=True)

    def begin(self) -> None:
        if not sys.stdin.readline():
            sys.exit("the driver is gone")
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self, workers: float = 0.0) -> None:
        cpu = time.process_time() - self.cpu + workers
        print(json.dumps({"wall": time.perf_counter() - self.wall, "cpu": cpu}), flush=True)


def serve_plain(network: nn.Module, masks: Masks, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
    """Train the plain way, a turn whenever told."""
    network = plain.masked(network, masks).to(device).train()
    optimiser, turns = plain.sgd(network, recipe), Turns()
    batches = plain.loader(dataset, recipe.batch_size, recipe.epochs * recipe.max_steps, device)
    test_images = plain.Images(dataset.test_images, dataset.test_labels, dataset.spec, augment=False)
    for _ in range(recipe.epochs):
        turns.begin()
        loss = workers = 0.0
        for _ in range(recipe.max_steps):
            (images, labels), seconds = next(batches)
            loss += plain.step(network, optimiser, images.to(device), labels.to(device), recipe)
            workers += seconds
        if len(test_images) > 1:
            plain.accuracy(network, DataLoader(test_images, 256), device)
        if not math.isfinite(loss):
            sys.exit("the plain side diverged")
        turns.end(workers)


def serve_ours(
    network: nn.Module, masks: Masks, dataset: Dataset, recipe: Recipe, device: torch.device, speed: Speed
) -> None:
    """Train our way: an epoch of `train` is a turn, and between epochs it waits."""
    turns = Turns()

    def on_epoch(epoch: int, model: nn.Module) -> None:
        if epoch:
            turns.end()
        if epoch < recipe.epochs:
            turns.begin()

    training.train(network, dataset, recipe, masks, device=device, on_epoch=on_epoch, speed=speed)


def our_speed(device: torch.device, side: str = "ours") -> Speed:
    """What `train` does when not asked otherwise, but for `side`; the compact network is another row."""
    usual = replace(Speed.auto(device), compact=False)
    return replace(usual, graphs=usual.graphs and side != "eager", compile=side == "compiled")


def images_of(name: str, steps: int, batch_size: int, evaluate: bool) -> tuple[Dataset, bool]:
    """The data set where its file is there, else as many random images, and whether it is the real one.

    Its test images are a fifth of those a turn trains on, as an epoch of CIFAR has them, or just one.
    """
    tested = math.ceil(steps * batch_size / 5) if evaluate else 1
    if (paths.data() / f"{name}.safetensors").exists() or not DATASETS[name].download_bytes:
        real = sf.data.load(name, download=False)
        if steps * batch_size > len(real.train_labels):
            sys.exit(f"a turn of {steps} x {batch_size} images is more than the {len(real.train_labels):,} of {name}")
        return replace(real, test_images=real.test_images[:tested], test_labels=real.test_labels[:tested]), True
    return random_images(name, steps * batch_size, tested, torch.device("cpu")), False


def serve(arguments: argparse.Namespace) -> None:
    """Be one side of one network and take turns."""
    side, name, file = arguments.serve
    torch.set_num_threads(1)
    device = devices.resolve(arguments.device)
    dataset, _ = images_of(arguments.dataset, arguments.steps, arguments.batch_size, arguments.evaluate)
    network, masks = sf.models.build(name, arguments.dataset, width=arguments.width), Masks.load(file)
    if side == "compact":
        smaller = compact(network, masks, dataset.input_shape)
        network, masks = smaller.model, smaller.masks
    recipe = turn_recipe(arguments, name)
    if side == "plain":
        serve_plain(network, masks, dataset, recipe, device)
    else:
        serve_ours(network, masks.to(device), dataset, recipe, device, our_speed(device, side))


def turn_recipe(arguments: argparse.Namespace, name: str) -> Recipe:
    """The recipe with a turn for an epoch, and a learning rate that changes nothing."""
    known = training.recipe(arguments.recipe, arguments.dataset, name)
    turns = {"epochs": arguments.turns + 1, "max_steps": arguments.steps, "batch_size": arguments.batch_size}
    return known.without_learning(**turns)


class Side:
    """The driver's end: a process that takes a turn when told."""

    def __init__(self, side: str, name: str, file: Path):
        command = [sys.executable, __file__, *sys.argv[1:], "--serve", side, name, str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> None:
        """Until it is ready: sides start beside each other, but do not take turns before all have started."""
        self._line()

    def tell(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        return json.loads(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a side ended before its time; what it said is above")
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def started(side: str, name: str, file: Path) -> Iterator[Side]:
    """A side, ended with the block."""
    process = Side(side, name, file)
    try:
        yield process
    finally:
        process.close()


def turn(sides: list[Side]) -> dict:
    """Let `sides` take a turn at once; return wall seconds until the last is done, and all their CPU seconds."""
    began = time.perf_counter()
    for side in sides:
        side.tell()
    answers = [side.answer() for side in sides]
    wall = time.perf_counter() - began if len(sides) > 1 else answers[0]["wall"]
    return {"wall": wall, "cpu": sum(answer["cpu"] for answer in answers)}


def matrix_rate(device: torch.device, speed: Speed) -> float:
    """FLOP/s of a large square matrix product on `device`, the fastest of three; of one thread's CPU time on a CPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    size, dtype = 8192 if device.type == "cuda" else 2048, torch.bfloat16 if speed.bfloat16 else torch.float32
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    seconds = []
    for _ in range(4):  # the first is not counted
        began = clock()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(clock() - began)
    return 2 * size**3 / min(seconds[1:])


@dataclass
class Rows:
    """The rows of one network: their sides, and of each row forward FLOPs, share of the weights and number of runs."""

    sides: dict[str, list[Side]]
    about: dict[str, dict]

    def ready(self) -> None:
        """Wait for all sides: they start beside each other, but do not take turns before all have started."""
        for side in chain(*self.sides.values()):
            side.wait()

    def turns(self, number: int, device: torch.device) -> tuple[dict[str, list[dict]], float]:
        """All turns of each row, the first of which warms up, and the matrix rate."""
        rates: list[float] = []
        turns: dict[str, list[dict]] = {row: [] for row in self.about}
        for _ in range(number + 1):
            rates.append(matrix_rate(device, our_speed(device)))
            for row, sides in self.sides.items():
                turns[row].append(turn(sides))
        return turns, max(rates)


def start(arguments: argparse.Namespace, name: str, device: torch.device, stack: ExitStack) -> Rows:
    """Start all sides of one network; they end with `stack`."""
    network = sf.models.build(name, arguments.dataset, width=arguments.width).to(device)
    shape = DATASETS[arguments.dataset].input_shape
    masks = sf.prune(network, "synflow", arguments.compression, input_shape=shape)
    full = {"flops": training.flops(network, shape), "share": 1.0, "runs": 1}
    about = {"plain": full, "ours": full}
    if arguments.compact:
        smaller = compact(network, masks, shape)
        about["compact"] = {"flops": training.flops(smaller.model, shape), "share": smaller.share, "runs": 1}
    about |= {row: full for row in ("eager", "compiled") if getattr(arguments, row)}
    if arguments.runs_at_once > 1:
        several = "compiled" if arguments.compiled else "ours"
        about[f"{several} x{arguments.runs_at_once}"] = {**full, "runs": arguments.runs_at_once}
    file = masks.save(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "masks.safetensors")
    sides = {
        row: [stack.enter_context(started(row.split()[0], name, file)) for _ in range(it["runs"])]
        for row, it in about.items()
    }
    return Rows(sides, about)


def measured(
    arguments: argparse.Namespace, device: torch.device
) -> Iterator[tuple[str, Rows, dict[str, list[dict]], float]]:
    """Let all sides of every network take turns, network by network."""
    with ExitStack() as whole:
        early = {name: start(arguments, name, device, whole) for name in arguments.models if arguments.together}
        for rows in early.values():
            rows.ready()
        for name in arguments.models:
            with ExitStack() as stack:
                rows = early.get(name) or start(arguments, name, device, stack)
                if name not in early:
                    rows.ready()
                yield name, rows, *rows.turns(arguments.turns, device)


def rows_of(
    turns: dict[str, list[dict]], about: dict, rate: float, images: int, clock: str, passes: float
) -> list[dict]:
    """A row of numbers for each side, from its turns of `images` images a run, the first turn apart.

    FLOP/s are those of `clock`, "wall" or "cpu", at `passes` forward passes for each image.
    """
    rows = []
    for side, taken in turns.items():
        warm_up, *taken = taken
        trained = images * about[side]["runs"]
        wall = statistics.median(turn["wall"] for turn in taken)
        row = {
            "side": side,
            "images_per_second": trained / wall,
            "fastest": trained / min(turn["wall"] for turn in taken),
            "cpu_ms": 1000 * statistics.median(turn["cpu"] for turn in taken) / trained,
            "flops_per_second": passes
            * about[side]["flops"]
            * trained
            / statistics.median(turn[clock] for turn in taken),
            "share": about[side]["share"],
            "warm_up": warm_up["wall"] - wall,
        }
        row["of_rate"] = row["flops_per_second"] / rate
        rows.append(row)
        row["ratio"] = row["images_per_second"] / rows[0]["images_per_second"]
        row["ratio_per_core"] = rows[0]["cpu_ms"] / row["cpu_ms"]
    return rows


HEAD = (
    "model          side         images/s  fastest  CPU ms/image  GFLOP/s  of matrix rate  ratio  per core  warm-up s"
)


def shown(name: str, row: dict) -> str:
    """A line of the table."""
    ratio = f"{row['ratio']:5.2f}x {row['ratio_per_core']:8.2f}x" if row["side"] != "plain" else " " * 16
    share = f"  ({100 * row['share']:.1f} % of the weights)" if row["side"] == "compact" else ""
    return (
        f"{name:<14} {row['side']:<11} {row['images_per_second']:9.0f} {row['fastest']:8.0f} {row['cpu_ms']:13.3f} "
        f"{row['flops_per_second'] / 1e9:8.0f} {100 * row['of_rate']:13.1f} % {ratio} {row['warm_up']:9.1f}{share}"
    )


def main() -> None:
    """Let all sides of every network take turns, print the table and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(sf.models.MODELS), default=list(MODELS))
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="cifar10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="of a turn (default: 390 on a GPU, an epoch of CIFAR; 2 on a CPU)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--compression", type=float, default=10.0, help="of SynFlow's masks, on all sides")
    parser.add_argument("--recipe", choices=sorted(training.RECIPES), default="described")
    parser.add_argument("--width", type=float, default=1.0, help="factor for the channels of every layer")
    parser.add_argument("--runs-at-once", type=int, default=1, help="a row for so many of ours beside each other")
    parser.add_argument("--compact", action="store_true", help="a row for the compact network that the masks leave")
    parser.add_argument("--eager", action="store_true", help="a row for ours without CUDA graphs")
    parser.add_argument(
        "--compile",
        dest="compiled",
        action="store_true",
        help="a row for ours with torch.compile, and what --runs-at-once is of",
    )
    parser.add_argument("--together", action="store_true", help="start all networks first: quicker, more memory")
    parser.add_argument("--evaluate", action="store_true", help="a turn also tests a fifth as many images")
    parser.add_argument("--json", action="store_true", help="print a JSON object a row instead of the table")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS, metavar=("SIDE", "MODEL", "MASKS"))
    arguments = parser.parse_args()
    device = devices.resolve(arguments.device)
    arguments.steps = arguments.steps or (390 if device.type == "cuda" else 2)
    if arguments.serve:
        serve(arguments)
        return
    torch.set_num_threads(1)
    say = (lambda *_: None) if arguments.json else print
    _, real = images_of(arguments.dataset, arguments.steps, arguments.batch_size, arguments.evaluate)
    kind = f"the real {arguments.dataset}" if real else f"random images in the shape of {arguments.dataset}"
    say(f"{provenance.device_name(str(device))}, torch {torch.__version__}, {kind}, batches of {arguments.batch_size}")
    say(f"ours: {our_speed(device)}\n{HEAD}")
    ratios: dict[str, list[tuple[float, float]]] = {}
    for name, rows, turns, rate in measured(arguments, device):
        clock = "cpu" if device.type == "cpu" else "wall"
        images, passes = arguments.steps * arguments.batch_size, 3.2 if arguments.evaluate else 3
        for row in rows_of(turns, rows.about, rate, images, clock, passes):
            ratios.setdefault(row["side"], []).append((row["ratio"], row["ratio_per_core"]))
            print(json.dumps({"model": name, **row}) if arguments.json else shown(name, row), flush=True)
        say(f"{name:<14} a matrix product runs at {rate / 1e9:,.0f} GFLOP/s")
    for side, pairs in list(ratios.items())[1:]:
        wall, core = (statistics.geometric_mean(column) for column in zip(*pairs, strict=True))
        say(f"geometric mean, {side} over plain: {wall:.2f}x images per second, {core:.2f}x per core")


if __name__ == "__main__":
    main()
