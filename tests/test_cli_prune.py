"""`synflow prune`: what it prints is what the masks hold, and what it writes is the network that they leave."""

import re
from pathlib import Path

import pytest
import torch

import synflow_lib as sf
from synflow_lib import cli, pruning

SMALL = ["prune", "vgg11", "--width", "0.1"]


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    """Work in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small():
    """The network that `SMALL` names."""
    return sf.models.build("vgg11", "digits", width=0.1)


def refused(arguments, sentence, capsys):
    before = sorted(Path().rglob("*"))
    assert cli.main(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("synflow: ") and output.err.count("\n") == 1
    assert sentence in output.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("prune", "name the network to prune, e.g. synflow prune vgg16 --compression 100"),
        ("prune --compression 10", "name the network to prune"),
        ("prune vgg11", "say how far to prune: --compression 100 keeps 1 %"),
        ("prune vgg11 --compression 0.9", "compression must be a ratio from 1 to rho_max"),
        ("prune vgg11 --compression nan", "compression must be a ratio from 1 to rho_max"),
        ("prune mlp --compression 1e9", "compression must be a ratio from 1 to rho_max"),
        ("prune mlp --compression 10 --method magnitud", "did you mean 'magnitude'?"),
        ("prune mlp --compression 10 --schedule cubic", "unknown schedule 'cubic'"),
        ("prune mlp --compression 10 --scope all", "unknown scope 'all'"),
        ("prune mlp --compression 10 --iterations 0", "iterations must be at least 1"),
        ("prune mlp --compression 10 --seed -1", "--seed must be from 0 to 2**63 - 1, not -1"),
        ("prune mlp --compression 10 --out file/masks", "cannot write file"),
        ("prune mlp --compression 10 --out folder", "cannot write the masks to folder: it is a folder"),
        ("prune mlp --compression 10 --out a.pt2 --compact a.pt2", "--out and --compact both name a.pt2"),
        ("prune mlp --compression 10 --compact small.pth", "its name must end in .pt2 (torch.export) or .onnx"),
        ("prune mlp --compression 10 --compact file/small.pt2", "cannot write file"),
        (
            "prune torchvision:squeezenet1_1 --compression 10 --compact a.pt2",
            "cannot make torchvision:squeezenet1_1 sm",
        ),
        ("prune mlp --compression 10 --data file", "synflow scores weights without data: leave out --data"),
        ("prune --inspect nowhere", "there is no mask file nowhere"),
        ("prune --inspect file", "file is no mask file, or is damaged"),
        ("prune --inspect empty.safetensors", "empty.safetensors holds the masks of no layer"),
        ("prune --inspect masks.safetensors --out other", "prunes nothing: leave out --out"),
        ("prune --inspect masks.safetensors --compression 10", "prunes nothing: leave out --compression"),
        ("prune --inspect masks.safetensors --compact small.pt2", "--compact needs a network: name it first"),
        ("prune --inspect masks.safetensors --weights file", "--weights needs a network: name it first"),
        ("prune vgg11 --inspect masks.safetensors", "these masks belong to another model"),
    ],
)
def test_bad_input_is_one_sentence_status_2_and_no_file(arguments, sentence, capsys):
    Path("file").touch()
    Path("folder").mkdir()
    sf.Masks({}).save("empty.safetensors")
    sf.prune(sf.models.build("mlp", "digits", width=0.1), "magnitude", 10).save("masks.safetensors")
    refused(arguments, sentence, capsys)


def test_the_table_is_that_of_the_masks_and_the_masks_are_those_of_the_library(capsys, small):
    assert cli.main([*SMALL, "--compression", "100", "--iterations", "5", "--out", "masks.safetensors"]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    masks = sf.Masks.load("masks.safetensors")
    expected = sf.prune(small, "synflow", 100, input_shape=(3, 32, 32), iterations=5)
    assert all((masks[name] == expected[name]).all() for name in expected)
    assert header == ["layer", "size", "kept", "density"]
    for row, layer in zip(rows, masks.layers().itertuples(), strict=False):
        assert row == [layer.layer, f"{layer.size:,}", f"{layer.kept:,}", f"{100 * layer.density:.3f}", "%"]
    total, compression, joined, where = rows[len(masks) :]
    assert total == ["total", f"{masks.total:,}", f"{masks.kept:,}", f"{100 * masks.density:.3f}", "%"]
    assert " ".join(compression).startswith(f"compression {masks.compression:.6g}: {masks.kept:,} of {masks.total:,}")
    assert " ".join(joined) == "input and output stay connected" and where == ["masks", "in", "masks.safetensors"]


def test_the_columns_are_aligned(capsys):
    cli.main([*SMALL, "--compression", "10", "--method", "magnitude"])
    table = capsys.readouterr().out.splitlines()[: len(sf.prunable(sf.models.build("vgg11", "digits"))) + 2]
    assert len({len(line) for line in table}) == 1
    ends = [[match.end() for match in re.finditer(r"\S+", line.replace(" %", ""))] for line in table]
    assert len({(size, kept) for _, size, kept, _ in ends}) == 1


@pytest.mark.parametrize(
    ("options", "made_by", "remedy"),
    [
        ("--method magnitude", "magnitude", "--method synflow or a lower --compression"),
        ("--iterations 1", "synflow", "more --iterations or a lower --compression"),
    ],
)
def test_a_collapse_is_a_warning_that_names_the_layers_and_the_remedy(options, made_by, remedy, capsys, small):
    arguments = [*SMALL, "--compression", "1000", *options.split()]
    assert cli.main(arguments) == 0
    output = capsys.readouterr()
    single = {"iterations": 1} if made_by == "synflow" else {}
    empty = sf.prune(small, made_by, 1000, input_shape=(3, 32, 32), **single).collapsed()
    assert "input and output are cut apart" in output.out and empty
    assert output.err == (
        f"synflow: warning: {made_by} emptied {len(empty)} layer{'s' if len(empty) > 1 else ''} ({', '.join(empty)}): "
        f"the output no longer depends on the input; try {remedy}\n"
    )


def test_an_emptied_shortcut_of_a_residual_network_is_told_as_what_it_is(capsys):
    assert cli.main(["prune", "resnet18", "--width", "0.1", "--compression", "100", "--iterations", "10"]) == 0
    output = capsys.readouterr()
    assert "emptied" in output.err and "shortcut" in output.err
    assert "though input and output stay connected: other branches carry the signal\n" in output.err
    assert "stay connected" in output.out


def test_a_network_without_layer_collapse_gives_no_warning(capsys):
    assert cli.main([*SMALL, "--compression", "100"]) == 0
    assert capsys.readouterr().err == ""


def test_inspect_warns_of_a_collapse_too_and_says_only_what_it_knows(capsys, small):
    masks = sf.prune(small, "magnitude", 1000)
    masks.save("masks.safetensors")
    assert cli.main(["prune", "--inspect", "masks.safetensors"]) == 0
    alone = capsys.readouterr().err
    assert cli.main([*SMALL, "--inspect", "masks.safetensors"]) == 0
    together = capsys.readouterr().err
    layers = f"synflow: warning: pruning emptied {len(masks.collapsed())} layers ({', '.join(masks.collapsed())})"
    assert alone.startswith(f"{layers}; try a lower --compression, or --method synflow where it was another")
    assert together.startswith(f"{layers}: the output no longer depends on the input; try")


def test_a_long_list_of_layers_is_shortened(capsys):
    """Keeping one weight in 3,000, one round of magnitude empties more layers than a warning should name."""
    cli.main(["prune", "resnet18", "--width", "0.1", "--compression", "3000", "--method", "magnitude"])
    printed = capsys.readouterr()
    empty = sum(line.split()[2] == "0" for line in printed.out.splitlines()[1:-2])
    assert empty > 8 and f"emptied {empty} layers" in printed.err and f" and {empty - 8} more)" in printed.err


def test_compact_writes_the_network_that_the_masks_leave_and_says_how_small_it_is(capsys, small):
    arguments = [*SMALL, "--compression", "20", "--iterations", "10", "--out", "masks.safetensors"]
    assert cli.main([*arguments, "--compact", "small.pt2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    masks = sf.Masks.load("masks.safetensors")
    compacted = sf.compact(small, masks, (3, 32, 32))
    before, after, share, size = re.search(
        r"([\d,]+) weights before, ([\d,]+) after \((\S+) %\), (\S+) MB", last
    ).groups()
    assert (before, after) == (f"{masks.total:,}", f"{compacted.masks.total:,}")
    assert float(share) == pytest.approx(100 * compacted.share, rel=5e-3) and compacted.share < 0.5
    assert float(size) == pytest.approx(Path("small.pt2").stat().st_size / 1e6, abs=5e-3)
    images = torch.randn(5, 3, 32, 32)
    written = torch.export.load("small.pt2").module()(images)
    torch.testing.assert_close(written, sf.apply_masks(small, masks).eval()(images).detach())


def test_compact_of_a_network_that_is_cut_keeps_the_masks_and_says_why(capsys):
    arguments = [*SMALL, "--compression", "1000", "--method", "magnitude", "--out", "masks.safetensors"]
    assert cli.main([*arguments, "--compact", "small.pt2"]) == 2
    output = capsys.readouterr()
    assert output.err.endswith("synflow: the masks cut the network in two: nothing to compact\n")
    assert "masks in masks.safetensors" in output.out
    assert [path.name for path in Path().iterdir()] == ["masks.safetensors"]


def test_inspect_shows_the_same_table_without_a_network_and_checks_it_with_one(capsys):
    cli.main([*SMALL, "--compression", "10", "--method", "magnitude", "--out", "masks.safetensors"])
    first = capsys.readouterr().out.splitlines()
    assert cli.main(["prune", "--inspect", "masks.safetensors"]) == 0
    alone = capsys.readouterr().out.splitlines()
    assert cli.main([*SMALL, "--inspect", "masks.safetensors"]) == 0
    together = capsys.readouterr().out.splitlines()
    assert first[:-1] == together and together[:-1] == alone and "connected" in together[-1]
    refused("prune vgg16 --width 0.1 --inspect masks.safetensors", "these masks belong to another model", capsys)


def test_a_trained_network_is_compacted_with_the_masks_it_was_trained_with(capsys, small):
    masks = sf.prune(small, "synflow", 20, input_shape=(3, 32, 32), iterations=10)
    masks.save("masks.safetensors")
    trained = sf.apply_masks(sf.models.build("vgg11", "digits", width=0.1, seed=1), masks)
    torch.save(trained.state_dict(), "trained.pt")
    files = ["--weights", "trained.pt", "--inspect", "masks.safetensors", "--compact", "small.pt2"]
    assert cli.main([*SMALL, *files]) == 0
    assert "compact network in small.pt2" in capsys.readouterr().out
    images = torch.randn(2, 3, 32, 32)
    written = torch.export.load("small.pt2").module()(images)
    torch.testing.assert_close(written, trained.eval()(images).detach())


def test_every_option_of_prune_reaches_the_library(monkeypatch):
    seen = []

    def prune(*arguments, **options):
        seen.append((arguments[1:], options))
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "prune", prune)
    text = "--compression 7 --method random --iterations 3 --schedule linear --scope layer --train-mode --seed 5"
    assert cli.main([*SMALL, *text.split()]) == 130
    assert cli.main([*SMALL, "--compression", "7", "--bypass-norm"]) == 130
    plain = {"iterations": None, "schedule": "exponential", "scope": "global", "train_mode": False, "seed": 0}
    given = {"iterations": 3, "schedule": "linear", "scope": "layer", "train_mode": True, "seed": 5}
    shape = {"input_shape": (3, 32, 32)}
    assert seen == [(("random", 7.0), shape | given), (("synflow", 7.0), shape | plain | {"bypass_norm": True})]
