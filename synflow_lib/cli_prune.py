"""What `synflow prune` does: make or read masks, show what they leave, write them and the smaller network.

Whatever can be refused is refused before anything is scored or written.
"""

import argparse
import sys
from pathlib import Path

from synflow_lib import paths, pruning
from synflow_lib.cli_network import Network, batches, network
from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning import Masks
from synflow_lib.pruning.compact import check_compactable
from synflow_lib.pruning.export import check_export_path, export

NAMED = 8  # layers in a warning; the table has them all


def prune(arguments: argparse.Namespace) -> int:
    """Prune a network or read its masks, print what is left of each layer, write what was asked for."""
    check(arguments)
    chosen = network(arguments) if arguments.model is not None else None
    if arguments.compact is not None:
        require_compactable(chosen)
    if arguments.inspect is not None:
        masks = Masks.load(arguments.inspect)
        if not masks:
            raise InputError(f"{paths.shown(arguments.inspect)} holds the masks of no layer: make it again")
        made_by = "pruning"
    else:
        masks, made_by = make_masks(arguments, chosen), arguments.method
    joined = None if chosen is None else pruning.connected(chosen.model, masks, chosen.input_shape)
    show(masks, joined)
    if arguments.out is not None:
        print(f"masks in {paths.shown(masks.save(arguments.out))}")
    if masks.collapsed() or joined is False:
        print(f"synflow: warning: {collapse(masks, joined, made_by, remedies(arguments))}", file=sys.stderr)
    if arguments.compact is not None:
        write_compact(arguments.compact, chosen, masks)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise InputError for options that contradict each other or name nothing, before a network is built."""
    if arguments.inspect is not None:
        unused = [name for name in ("compression", "out", "data") if getattr(arguments, name) is not None]
        if unused:
            raise InputError(f"--inspect shows masks that exist and prunes nothing: leave out --{unused[0]}")
        needing = [name for name in ("compact", "weights") if getattr(arguments, name) is not None]
        if needing and arguments.model is None:
            raise InputError(f"--{needing[0]} needs a network: name it first, e.g. synflow prune vgg16 --inspect FILE")
    elif arguments.model is None:
        raise InputError("name the network to prune, e.g. synflow prune vgg16 --compression 100 (see --help)")
    elif arguments.compression is None:
        raise InputError("say how far to prune: --compression 100 keeps 1 % of the weights")
    lookup(pruning.SALIENCIES, arguments.method, "pruning method")
    lookup(pruning.SCHEDULES, arguments.schedule, "schedule")
    lookup(dict.fromkeys(pruning.SCOPES), arguments.scope, "scope")
    if arguments.data is not None and arguments.method not in pruning.NEEDS_DATA:
        raise InputError(f"{arguments.method} scores weights without data: leave out --data, or choose snip or grasp")
    if arguments.out is not None and arguments.out.is_dir():
        raise InputError(f"cannot write the masks to {paths.shown(arguments.out)}: it is a folder; name a file in it")
    if arguments.compact is not None:
        check_export_path(arguments.compact)
        if arguments.out is not None and arguments.out.absolute() == arguments.compact.absolute():
            raise InputError(f"--out and --compact both name {paths.shown(arguments.out)}: give them different files")
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed must be from 0 to 2**63 - 1, not {arguments.seed}")


def require_compactable(chosen: Network) -> None:
    """Raise InputError for a network out of which no units can be cut."""
    try:
        check_compactable(chosen.model, chosen.input_shape)
    except InputError as error:
        raise InputError(f"--compact cannot make {chosen.name} smaller: {error}") from error


def make_masks(arguments: argparse.Namespace, chosen: Network) -> Masks:
    """Prune as asked; whatever can be refused is refused before data are fetched or weights scored."""
    pruning.check_compression(arguments.compression, pruning.rho_max(chosen.model))
    for file in (arguments.out, arguments.compact):
        if file is not None:
            paths.require_writable(file.absolute().parent)
    names = ("iterations", "schedule", "scope", "train_mode", "seed")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.bypass_norm:
        options["bypass_norm"] = True
    if arguments.method in pruning.NEEDS_DATA:
        options["batches"] = batches(arguments, chosen)
    return pruning.prune(
        chosen.model, arguments.method, arguments.compression, input_shape=chosen.input_shape, **options
    )


def show(masks: Masks, joined: bool | None) -> None:
    """Print a line for each layer, the totals, and whether the network is still one (None: not known)."""
    layers = masks.layers()
    rows = [("layer", "size", "kept", "density")]
    counts = [*layers[["layer", "size", "kept"]].itertuples(index=False), ("total", masks.total, masks.kept)]
    rows += [(name, f"{size:,}", f"{kept:,}", f"{100 * kept / size:.3f} %") for name, size, kept in counts]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        numbers = "".join(f"{text:>{width + 2}}" for text, width in zip(row[1:], others, strict=True))
        print(f"{row[0]:<{first}}{numbers}")
    print(f"compression {masks.compression:.6g}: {masks.kept:,} of {masks.total:,} weights kept")
    if joined is not None:
        print("input and output stay connected" if joined else "input and output are cut apart")


def collapse(masks: Masks, joined: bool | None, made_by: str, remedies: str) -> str:
    """Say which layers lost all their weights, what that means, and what helps where anything is lost by it."""
    empty = masks.collapsed()
    more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
    layers = f"{len(empty)} layer{'s' * (len(empty) != 1)} ({', '.join(empty[:NAMED])}{more})"
    lost = f"{made_by} emptied {layers}" if empty else f"{made_by} left no path through the network"
    if joined:
        return f"{lost}, though input and output stay connected: other branches carry the signal"
    return f"{lost}{': the output no longer depends on the input' if joined is False else ''}; try {remedies}"


def remedies(arguments: argparse.Namespace) -> str:
    """What keeps layers alive: SynFlow with all its rounds (Tanaka et al. 2020, theorem 3), or less compression."""
    if arguments.inspect is not None:
        return "a lower --compression, or --method synflow where it was another"
    if arguments.method != "synflow":
        return "--method synflow or a lower --compression"
    few = arguments.iterations is not None and arguments.iterations < 100
    return "more --iterations or a lower --compression" if few else "a lower --compression"


def write_compact(file: Path, chosen: Network, masks: Masks) -> None:
    """Write the smaller network and say how much smaller it is."""
    small = pruning.compact(chosen.model, masks, chosen.input_shape)
    export(small.model, file, chosen.input_shape)
    print(
        f"compact network in {paths.shown(file)}: {small.weights_before:,} weights before, {small.masks.total:,} after "
        f"({100 * small.share:.3g} %), {file.stat().st_size / 1e6:,.2f} MB"
    )
