"""The command `synflow`: reproduce, bench, status, results, data, prune, audit.

A user's mistake is one line on standard error and exit status 2, a warning one line too; anything else that goes wrong
is a bug and keeps its traceback. The library is imported when a command needs it, so that `synflow --help` answers at
once. What `bench` does is in `cli_bench`, `status` and `results` in `cli_results`, `prune` in `cli_prune` and
`cli_network`.
"""

import argparse
import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from synflow_lib import cli_bench, cli_results
from synflow_lib.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted, 141 cut."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as some daemons start their programs
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    arguments = parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = told
            status = arguments.command(arguments)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # who read our output has seen enough, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more when it ends
        return 141
    except InputError as error:
        print(f"synflow: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        with contextlib.suppress(OSError):  # files of ours say their name: this is where the output goes
            print(f"synflow: cannot write the output: {error.strerror}; what was finished is kept", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more when it ends
        return 1
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
    for define in (
        define_reproduce,
        define_bench,
        define_status,
        define_results,
        define_data,
        define_prune,
        define_audit,
    ):
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
    """`synflow reproduce` and its options."""
    sub = command(
        *(commands, "reproduce", reproduce, "execute the chapters and index them for reading"),
        "synflow reproduce --only 07 --panels all --recipe fast",
    )
    sub.add_argument("--only", nargs="+", metavar="NN", help="chapters by their number (default: all)")
    sub.add_argument("--force", action="store_true", help="execute again what is up to date")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where the executed chapters go")
    sub.add_argument(
        *("--panels",),
        nargs="+",
        metavar="WHICH",
        help=f"chapter 07 for {cli_results.PANELS_HELP}, at the published compressions and seeds, in place of chapter "
        "07 as it stands and of all others that --only does not name; each is kept as a notebook and a page",
    )
    sub.add_argument("--recipe", help="how networks are trained, in the chapters that train")
    sub.add_argument(
        *("--scale",),
        help="small (default) or paper: then chapters 01 to 06 compute what they show at the paper's size again, and "
        "write it to data/results",
    )


def define_bench(commands) -> None:
    """`synflow bench` and its options."""
    sub = command(
        *(commands, "bench", cli_bench.bench, "prune and train networks; a run whose record exists is not run again"),
        "synflow bench --dataset cifar10 --model vgg11 --width 0.25 --pruner synflow snip --compression 10 100 "
        "--recipe smoke",
    )
    cli_bench.define_bench(sub)


def define_status(commands) -> None:
    """`synflow status` and its options."""
    sub = command(
        *(commands, "status", cli_results.status, "show which runs of each panel are done, running, missing or failed"),
        "synflow status --panels cifar10 --recipe fast",
    )
    cli_results.define_status(sub)


def define_results(commands) -> None:
    """`synflow results` and its options."""
    sub = command(
        *(commands, "results", cli_results.results, "write finished runs as a small CSV file, one row each"),
        "synflow results --dataset cifar10 --model vgg11 --recipe fast --out data/results/mine.csv",
    )
    cli_results.define_results(sub)


def define_data(commands) -> None:
    """`synflow data` and its options."""
    sub = command(
        *(commands, "data", data, "list the data sets, or make the named ones ready"),
        "synflow data cifar10 cifar100",
    )
    sub.add_argument("names", nargs="*", metavar="name", help="digits, cifar10, cifar100 or tiny-imagenet")


def define_prune(commands) -> None:
    """`synflow prune` and its options."""
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
        *("model",),
        nargs="?",
        help="one of ours such as vgg16, torchvision:NAME for a classifier of torchvision, or FILE.py:NAME for one of "
        "your own: what that function or class gives without arguments",
    )
    network = sub.add_argument_group("the network")
    network.add_argument("--dataset", help="decides input and classes (for ours: digits), and what snip and grasp see")
    network.add_argument(
        *("--input-shape",),
        type=int,
        nargs="+",
        metavar="N",
        help="of one input, as C H W of an image, for torchvision's and yours (default: that of --dataset or --data, "
        "else for torchvision's 3 channels at the size of its own weights, 3 224 224 for most)",
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


def define_audit(commands) -> None:
    """`synflow audit` and its options."""
    sub = command(
        *(commands, "audit", audit, "print the numbers behind the findings of ERRATA.md, from the authors' own tables"),
        "synflow audit 3 8",
    )
    sub.add_argument("findings", nargs="*", metavar="finding", help="their numbers in ERRATA.md (default: all)")


def reproduce(arguments: argparse.Namespace) -> int:
    """Execute the chapters."""
    from synflow_lib.reproduce import reproduce

    options = {name: getattr(arguments, name) for name in ("only", "out", "force", "panels", "recipe", "scale")}
    return reproduce(**options)


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


def audit(arguments: argparse.Namespace) -> int:
    """Print what was found, one table or two for each finding."""
    from synflow_lib import audit

    print("\n\n".join([audit.show(number) for number in arguments.findings or audit.FINDINGS]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
