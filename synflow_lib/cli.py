"""The command `synflow`: reproduce, bench, status, data, prune.

A user's mistake is one line on standard error and exit status 2, a warning one line too; anything else that goes wrong
is a bug and keeps its traceback. The library is imported when a command needs it, so that `synflow --help` answers at
once. What `prune` does is in `cli_prune` and `cli_network`: it would be more than half of this file.
"""

import argparse
import contextlib
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from synflow_lib.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = told
            return arguments.command(arguments)
    except InputError as error:
        print(f"synflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synflow: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def told(message: Warning | str, *_: object) -> None:
    """Print a warning as one line, without Python's source lines."""
    print(f"synflow: warning: {' '.join(str(message).split())}", file=sys.stderr)


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
        *(
            commands,
            "prune",
            prune,
            "prune a network, show what is left of it, write its masks or the smaller network",
        ),
        "synflow prune torchvision:resnet50 --method synflow --compression 20 --out masks.safetensors "
        "--compact model.pt2",
    )
    sub.add_argument(
        *("model",), nargs="?", help="one of ours such as vgg16, or torchvision:NAME for a classifier of torchvision"
    )
    network = sub.add_argument_group("the network")
    network.add_argument("--dataset", help="decides input and classes (for ours: digits), and what snip and grasp see")
    network.add_argument(
        *("--input-shape",),
        type=int,
        nargs=3,
        metavar=("C", "H", "W"),
        help="of an image, for torchvision's (default: that of --dataset or --data, else 3 channels at the size of "
        "torchvision's own weights, 3 224 224 for most)",
    )
    network.add_argument("--classes", type=int, metavar="N", help="for torchvision's (default: --dataset's, else 1000)")
    network.add_argument("--width", type=float, default=1.0, help="factor on the channels of every layer (ours)")
    network.add_argument(
        "--weights", type=Path, metavar="FILE", help="its state dict: .safetensors or .pt (default: new ones)"
    )
    network.add_argument("--seed", type=int, default=0, help="of new weights, random scores and scoring examples")
    how = sub.add_argument_group("how it is pruned")
    how.add_argument("--method", default="synflow", help="random, magnitude, snip, grasp or synflow (default)")
    how.add_argument("--compression", type=float, help="weights before / after: 100 keeps 1 %%")
    how.add_argument("--iterations", type=int, help="scoring rounds (default: the method's own)")
    how.add_argument("--schedule", default="exponential", help="exponential or linear")
    how.add_argument("--scope", default="global", help="rank all weights together (global) or each layer's (layer)")
    how.add_argument("--train-mode", action="store_true", help="score with BatchNorm's batch statistics")
    how.add_argument("--bypass-norm", action="store_true", help="score with every BatchNorm as the identity")
    how.add_argument(
        *("--data",),
        type=Path,
        metavar="FILE",
        help="what snip and grasp see: safetensors of images, float [N, C, H, W], and labels, int64 [N]",
    )
    files = sub.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="FILE", help="write the masks there, as safetensors")
    files.add_argument(
        *("--compact",),
        type=Path,
        metavar="FILE",
        help="write the smaller network that the masks leave: .pt2 (torch.export) or .onnx, for a batch of any size",
    )
    files.add_argument("--inspect", type=Path, metavar="FILE", help="show these masks instead of pruning")


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
    """Prune a network, or show its masks."""
    from synflow_lib.cli_prune import prune

    return prune(arguments)


if __name__ == "__main__":
    sys.exit(main())
