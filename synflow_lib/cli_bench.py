"""The command `bench`: its options, the runs that they name, and what it does.

The library is imported when a command runs, so that `synflow --help` answers at once.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from synflow_lib import panels
from synflow_lib.cli_results import PAIR, PANELS_HELP, SHOWN, check_recipes, records_in, show_status, with_options
from synflow_lib.errors import InputError, lookup

if TYPE_CHECKING:
    from synflow_lib.benchmark import Run

# What a grid is made of unless told otherwise; None in the parser, so that an option that was given can be told apart.
AXES = {name: [default] for name, default in PAIR.items()}
AXES |= {"pruner": ["synflow"], "compression": [10.0], "seed": [0]}
OPTIONS = {"width": 1.0, "iterations": None, "schedule": "exponential", "scope": "global", "train_mode": False}
OPTIONS |= {"invert": False, "shuffle": False, "reinitialise": False, "cycles": 0, "no_rewind": False}
OPTIONS |= {"isometry": False, "loss": "supervised", "source": ""}
RECIPE_HELP = "published, described, fast (default), page or smoke; with other values as in fast:epochs=10,crop=3"


def define_bench(sub: argparse.ArgumentParser) -> None:
    """The options of `synflow bench`."""
    what = sub.add_argument_group("what is run")
    several = {"nargs": "+"}
    what.add_argument(
        *("--panels",),
        **several,
        metavar="WHICH",
        help=f"the whole published grid (5 pruners, 13 compressions, 3 seeds) of {PANELS_HELP}",
    )
    what.add_argument("--dataset", **several, help="default: digits")
    what.add_argument("--model", **several, help="default: vgg11")
    what.add_argument("--pruner", **several, help="default: synflow")
    what.add_argument("--compression", **several, type=float, help="weights before / after (default: 10)")
    what.add_argument("--seed", **several, type=int, help="default: 0")
    what.add_argument("--recipe", **several, default=["fast"], help=RECIPE_HELP)
    what.add_argument("--width", type=float, help="factor on the channels of every layer (default: 1)")
    what.add_argument("--iterations", type=int, help="scoring rounds (default: the method's own)")
    what.add_argument("--schedule", help="exponential (default) or linear")
    what.add_argument("--scope", help="rank all weights together (global, default) or each layer's (layer)")
    what.add_argument("--train-mode", action="store_true", default=None, help="score with BatchNorm's batch statistics")
    what.add_argument("--invert", action="store_true", default=None, help="keep the lowest scores")
    what.add_argument("--shuffle", action="store_true", default=None, help="permute each layer's mask")
    what.add_argument("--reinitialise", action="store_true", default=None, help="draw new weights after pruning")
    what.add_argument("--isometry", action="store_true", default=None, help="bring the kept weights near to isometry")
    what.add_argument("--loss", help="that snip and grasp score by: supervised (default), uniform, entropy, ...")
    what.add_argument("--source", help="data set that snip and grasp score on (default: the one that is trained on)")
    what.add_argument("--cycles", type=int, help="train and prune so often before the final training (default: 0)")
    what.add_argument("--no-rewind", action="store_true", default=None, help="do not put weights back between cycles")
    where = sub.add_argument_group("where and how")
    where.add_argument("--estimate", action="store_true", help="say how long it would take here, and run nothing")
    where.add_argument("--engine", default="processes", help="processes (default), serial or ray")
    where.add_argument("--address", help="of a Ray cluster: auto or HOST:PORT (default: Ray on this computer)")
    where.add_argument("--workers", type=int, help="runs side by side (default: as fit on the cores or GPUs)")
    where.add_argument("--runs-per-gpu", type=int, default=1, metavar="N", help="runs that share a GPU (default: 1)")
    where.add_argument("--threads", type=int, default=1, help="CPU threads of each run (default: 1)")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    names = "bfloat16, channels-last, fused, graphs, compile, skip-biases, compact, skip-disconnected, share-cycles"
    where.add_argument("--with", **several, default=[], dest="on", metavar="FEATURE", help=f"switch on: {names}")
    where.add_argument("--without", **several, default=[], dest="off", metavar="FEATURE", help="switch off, likewise")
    where.add_argument("--records", type=Path, metavar="DIR", help="folder of the records (default: data/records)")


def bench(arguments: argparse.Namespace) -> int:
    """Do the runs and print what came out, or with --estimate how long they would take; 1 where one failed."""
    from synflow_lib import benchmark, paths

    runs, speed = runs_of(arguments), speed_of(arguments)
    check_how(arguments)
    with records_in(arguments.records):
        if arguments.estimate:
            return estimate(arguments, runs, speed)
        table = benchmark.run_all(
            *(runs, arguments.engine, arguments.workers, arguments.device),
            threads=arguments.threads,
            speed=speed,
            runs_per_gpu=arguments.runs_per_gpu,
            address=arguments.address,
        )
        if arguments.panels:
            show_status(panels.chosen(arguments.panels), arguments.recipe)
        else:
            shown = with_options(table)[[*SHOWN, "connected", "key"]]
            print(shown.to_string(index=False, float_format="{:.2f}".format))
        print(f"records in {paths.shown(paths.records())}")
        for run in table.loc[table["status"] == "failed"].itertuples():
            print(f"{run.key} failed: {run.error}", file=sys.stderr)
    return int((table["status"] == "failed").any())


def runs_of(arguments: argparse.Namespace) -> "list[Run]":
    """The runs that the options of `bench` name; InputError where they contradict each other or are no runs."""
    from synflow_lib import benchmark

    if arguments.panels:
        given = [name for name in (*AXES, *OPTIONS) if getattr(arguments, name) is not None]
        if given:
            option = given[0].replace("_", "-")
            raise InputError(f"--panels runs the whole published grid of its panels: leave out --{option}")
        chosen = panels.chosen(arguments.panels)
        check_recipes(arguments.recipe, chosen)
        return [run for name in arguments.recipe for run in benchmark.published_grid(name, chosen)]
    axes = {name: default if (given := getattr(arguments, name)) is None else given for name, default in AXES.items()}
    options = {name: d if (given := getattr(arguments, name)) is None else given for name, d in OPTIONS.items()}
    compressions = axes.pop("compression")
    if wrong := [compression for compression in compressions if not 0 < compression < math.inf]:
        raise InputError(f"--compression is a ratio of at least 1, not {wrong[0]:g}")
    rewind = not options.pop("no_rewind")
    if not rewind and not options["cycles"]:
        raise InputError("--no-rewind is about what happens between cycles: give --cycles too, or leave it out")
    runs = benchmark.grid(
        *(axes["dataset"], axes["model"], axes["pruner"], map(math.log10, compressions)),
        *(axes["seed"], arguments.recipe),
        **options,
        rewind=rewind,
    )
    if options["schedule"] != OPTIONS["schedule"] and all(
        (run.validate().iterations or rounds(run)) == 1 for run in runs
    ):
        raise InputError("--schedule spreads over several rounds, and these runs have one: give --iterations too")
    return runs


def rounds(run: "Run") -> int:
    """How often the run's method scores."""
    from synflow_lib.pruning.prune import default_iterations

    return run.iterations or default_iterations(run.pruner)


def check_how(arguments: argparse.Namespace) -> None:
    """Raise InputError for an engine that is none, numbers that none can use, and options that it would not look at."""
    from synflow_lib.benchmark import engines

    lookup(engines.ENGINES, arguments.engine, "engine")
    engines.Means(arguments.workers, threads=arguments.threads, runs_per_gpu=arguments.runs_per_gpu)
    if arguments.address is not None and arguments.engine != "ray":
        raise InputError("--address is of a Ray cluster: give --engine ray too, or leave it out")
    if arguments.workers is not None and arguments.engine == "serial":
        raise InputError("--engine serial does one run after another: leave out --workers")
    if arguments.estimate and arguments.address is not None:
        raise InputError("--estimate tells of this computer, not of a cluster: leave out --address")


def speed_of(arguments: argparse.Namespace) -> dict[str, bool] | None:
    """What --with and --without change of the fastest choice for the device that does a run; None without them."""
    from dataclasses import fields

    from synflow_lib import devices

    known = {field.name.replace("_", "-"): field.name for field in fields(devices.Speed)}
    changes = {}
    for names, value in ((arguments.on, True), (arguments.off, False)):
        changes |= {lookup(known, name, "speed feature"): value for name in names}
    if both := set(arguments.on) & set(arguments.off):
        raise InputError(f"{min(both)} is switched on and off: leave out one of --with and --without")
    return changes or None


def estimate(arguments: argparse.Namespace, runs: "list[Run]", changes: dict[str, bool] | None) -> int:
    """Print how long the runs would take on this kind of device."""
    from synflow_lib import devices
    from synflow_lib.benchmark import engines, estimate

    device = devices.resolve(arguments.device)
    where = {"device": device, "threads": arguments.threads, "speed": engines.speed_on(device, changes)}
    table = estimate.estimate(runs, **where, tell=lambda sentence: print(sentence, file=sys.stderr))
    workers = 1 if arguments.engine == "serial" else arguments.workers
    print(estimate.report(table, arguments.device, workers, arguments.runs_per_gpu, arguments.threads))
    return 0
