"""The command `synflow`: reproduce, bench, status, data, prune.

A user's mistake is one line on standard error and exit status 2; anything else that goes wrong is a bug and keeps its
traceback. The library is imported when a command needs it, so that `synflow --help` answers at once.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from synflow_lib.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except InputError as error:
        print(f"synflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synflow: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="synflow", description="SynFlow (Tanaka et al. 2020), checked by running it.")
    commands = top.add_subparsers(required=True, metavar="command")
    for define in (define_reproduce, define_bench, define_status, define_data, define_prune):
        define(commands)
    return top


def command(commands, name: str, function, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with an example."""
    sub = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=function)
    return sub


def define_reproduce(commands) -> None:
    sub = command(
        *(commands, "reproduce", reproduce, "execute the chapters and index them for reading"),
        "synflow reproduce --only 03 06",
    )
    sub.add_argument("--only", nargs="+", metavar="NN", help="chapters by their number (default: all)")
    sub.add_argument("--force", action="store_true", help="execute again what is up to date")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where the executed chapters go")
    sub.add_argument(
        "--panels",
        metavar="WHICH",
        help="chapter 07 for each panel of figure 6: all, or a data set, a model or a pair such as cifar10_vgg16",
    )
    sub.add_argument("--recipe", help="how networks are trained, in the chapters that train")


def define_bench(commands) -> None:
    sub = command(
        *(commands, "bench", bench, "prune and train networks; a run whose record exists is not run again"),
        "synflow bench --dataset cifar10 --model vgg11 --width 0.25 --pruner synflow snip --compression 10 100 "
        "--recipe smoke",
    )
    several = {"nargs": "+"}
    sub.add_argument("--dataset", **several, default=["digits"])
    sub.add_argument("--model", **several, default=["vgg11"])
    sub.add_argument("--pruner", **several, default=["synflow"])
    sub.add_argument("--compression", **several, type=float, default=[10.0], help="weights before / after")
    sub.add_argument("--seed", **several, type=int, default=[0])
    sub.add_argument("--recipe", **several, default=["fast"])
    sub.add_argument("--width", type=float, default=1.0, help="factor on the channels of every layer")
    sub.add_argument("--iterations", type=int, help="scoring rounds (default: the method's own)")
    sub.add_argument("--schedule", default="exponential", help="exponential or linear")
    sub.add_argument("--scope", default="global", help="rank all weights together (global) or each layer's (layer)")
    sub.add_argument("--train-mode", action="store_true", help="score with BatchNorm's batch statistics")
    sub.add_argument("--invert", action="store_true", help="keep the lowest scores")
    sub.add_argument("--shuffle", action="store_true", help="permute each layer's mask")
    sub.add_argument("--reinitialise", action="store_true", help="draw new weights after pruning")
    sub.add_argument("--cycles", type=int, default=0, help="train and prune so often before the final training")
    sub.add_argument("--no-rewind", action="store_true", help="do not put weights back between cycles")
    sub.add_argument("--engine", default="processes", help="processes or serial")
    sub.add_argument("--workers", type=int, help="how many processes (default: one a core, or one a GPU)")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: 1)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    sub.add_argument("--records", type=Path, metavar="DIR", help="folder of the records (default: data/records)")


def define_status(commands) -> None:
    sub = command(
        *(commands, "status", status, "count the recorded runs of each panel"),
        "synflow status --records data/records",
    )
    sub.add_argument("--records", type=Path, metavar="DIR", help="folder of the records (default: data/records)")


def define_data(commands) -> None:
    sub = command(
        *(commands, "data", data, "list the data sets, or make the named ones ready"),
        "synflow data cifar10 cifar100",
    )
    sub.add_argument("names", nargs="*", metavar="name", help="digits, cifar10, cifar100 or tiny-imagenet")


def define_prune(commands) -> None:
    sub = command(
        *(commands, "prune", prune, "prune a network and show what is left of each layer"),
        "synflow prune --model torchvision:resnet18 --input-shape 3 224 224 --method synflow --compression 100 "
        "--out masks.safetensors",
    )
    sub.add_argument("--model", required=True, help="one of ours, or torchvision:NAME for a classifier of torchvision")
    sub.add_argument("--dataset", help="decides input and classes (default: digits), and what snip and grasp see")
    sub.add_argument("--input-shape", type=int, nargs=3, metavar=("C", "H", "W"), help="of an image, for torchvision's")
    sub.add_argument("--method", default="synflow")
    sub.add_argument("--compression", type=float, required=True, help="weights before / after: 100 keeps 1 %%")
    sub.add_argument("--iterations", type=int, help="scoring rounds (default: the method's own)")
    sub.add_argument("--schedule", default="exponential", help="exponential or linear")
    sub.add_argument("--scope", default="global", help="rank all weights together (global) or each layer's (layer)")
    sub.add_argument("--train-mode", action="store_true", help="score with BatchNorm's batch statistics")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--width", type=float, default=1.0, help="factor on the channels of every layer (ours)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the masks there")


def reproduce(arguments: argparse.Namespace) -> int:
    """Execute the chapters."""
    from synflow_lib.reproduce import reproduce

    options = {name: getattr(arguments, name) for name in ("only", "out", "force", "panels", "recipe")}
    return reproduce(**options)


def bench(arguments: argparse.Namespace) -> int:
    """Do the runs and print a table; 1 where one failed."""
    from synflow_lib import benchmark, paths

    if not all(0 < compression < math.inf for compression in arguments.compression):
        raise InputError(f"--compression is a ratio of at least 1, not {min(arguments.compression):g}")
    options = ("width", "iterations", "schedule", "scope", "train_mode", "invert", "shuffle", "reinitialise", "cycles")
    runs = benchmark.grid(
        *(arguments.dataset, arguments.model, arguments.pruner, map(math.log10, arguments.compression)),
        *(arguments.seed, arguments.recipe),
        **{name: getattr(arguments, name) for name in options},
        rewind=not arguments.no_rewind,
    )
    with records_in(arguments.records):
        table = benchmark.run_all(
            *(runs, arguments.engine, arguments.workers, arguments.device), threads=arguments.threads
        )
        columns = ["dataset", "model", "pruner", "compression", "seed", "recipe", "status", "accuracy_last"]
        shown = table[[*columns, "accuracy_best", "connected", "key"]]
        print(shown.to_string(index=False, float_format="{:.2f}".format))
        print(f"records in {paths.shown(paths.records())}")
        for run in table.loc[table["status"] == "failed"].itertuples():
            print(f"{run.key} failed: {run.error}", file=sys.stderr)
    return int((table["status"] == "failed").any())


@contextlib.contextmanager
def records_in(folder: Path | None) -> Iterator[None]:
    """Keep the records in `folder` for the block, in this process and the workers it starts."""
    before = os.environ.get("SYNFLOW_RECORDS")
    if folder is not None:
        os.environ["SYNFLOW_RECORDS"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("SYNFLOW_RECORDS")
            os.environ.update({} if before is None else {"SYNFLOW_RECORDS": before})


def status(arguments: argparse.Namespace) -> int:
    """Print how many runs of each panel are recorded, and what of the published grid is missing."""
    from synflow_lib import paths
    from synflow_lib.benchmark import records

    with records_in(arguments.records):
        if arguments.records is not None and not arguments.records.is_dir():
            raise InputError(f"there is no folder {paths.shown(arguments.records)}")
        panels = records.panels()
        print(panels.to_string(index=False) if len(panels) else "no runs are recorded")
        damaged = sorted(paths.records().glob("*.damaged"))
        print(f"records in {paths.shown(paths.records())}" + (f", {len(damaged)} damaged set aside" if damaged else ""))
    return 0


def data(arguments: argparse.Namespace) -> int:
    """Describe the data sets after making those that are named."""
    from synflow_lib.data import DATASETS, describe, prepare
    from synflow_lib.errors import lookup

    for name in arguments.names:
        lookup(DATASETS, name, "data set")
    for name in arguments.names:
        prepare(name)
        print(describe(name))
    if not arguments.names:
        print("\n".join(describe(name) for name in DATASETS))
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Prune a network, print the density of each layer, and write the masks."""
    from synflow_lib import paths, pruning
    from synflow_lib.data import load, scoring_batches
    from synflow_lib.errors import lookup

    lookup(pruning.SALIENCIES, arguments.method, "pruning method")
    if arguments.out is not None:
        paths.require_writable(arguments.out.absolute().parent)
    model, input_shape, dataset = network(arguments)
    batches = None
    if arguments.method in pruning.NEEDS_DATA:
        if dataset is None:
            raise InputError(f"{arguments.method} scores weights on data: give --dataset, for a model of ours")
        batches = scoring_batches(load(dataset), seed=arguments.seed)
    masks = pruning.prune(
        *(model, arguments.method, arguments.compression),
        input_shape=input_shape,
        batches=batches,
        **{name: getattr(arguments, name) for name in ("iterations", "schedule", "scope", "train_mode", "seed")},
    )
    print(masks.layers().to_string(index=False, float_format="{:.6f}".format))
    joined = "stay connected" if pruning.connected(model, masks, input_shape) else "are cut apart"
    print(f"{masks.kept:,} of {masks.total:,} weights kept, compression {masks.compression:.6g}")
    print(f"input and output {joined}")
    if arguments.out is not None:
        print(f"masks in {paths.shown(masks.save(arguments.out))}")
    return 0


def network(arguments: argparse.Namespace):
    """The model that `--model` names, its input shape, and the data set it is for (None for torchvision's)."""
    from synflow_lib import models
    from synflow_lib.data import DATASETS
    from synflow_lib.errors import lookup

    family, colon, name = arguments.model.partition(":")
    if not colon:
        dataset = arguments.dataset or "digits"
        input_shape = lookup(DATASETS, dataset, "data set").input_shape
        if arguments.input_shape is not None:
            raise InputError(f"--input-shape is for torchvision's models; for {arguments.model} give --dataset")
        return models.build(arguments.model, dataset, arguments.width, arguments.seed), input_shape, dataset
    if family != "torchvision":
        raise InputError(f"unknown collection {family!r} in --model {arguments.model} (known: torchvision)")
    import torch
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    lookup(dict.fromkeys(classifiers), name, "model of torchvision")
    if arguments.input_shape is None or min(arguments.input_shape) < 1:
        raise InputError("a model of torchvision needs --input-shape, e.g. --input-shape 3 224 224")
    if arguments.dataset is not None or arguments.width != 1.0:
        raise InputError("--dataset and --width are for the models of this library, not for torchvision's")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        return torchvision.models.get_model(name, weights=None), tuple(arguments.input_shape), None


if __name__ == "__main__":
    sys.exit(main())
