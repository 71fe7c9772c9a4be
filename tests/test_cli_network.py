"""What a command line names is the network, the weights and the examples that it says, or one sentence."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import synflow_lib as sf
from synflow_lib import cli, pruning
from synflow_lib.cli_network import IMAGES_AT_ONCE, batches, network
from synflow_lib.errors import InputError

SQUEEZENET = "prune torchvision:squeezenet1_1 --input-shape 3 64 64 --compression 10"


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    """Work in the folder of the test."""
    monkeypatch.chdir(tmp_path)


def named(text):
    """The network that `synflow prune TEXT` would prune."""
    return network(cli.parser().parse_args(["prune", *text.split()]))


MINE = """
from torch import nn
from beside import WIDTH

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

class Own(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

def broken():
    return 1 / 0

def ends():
    raise SystemExit(0)

class Number(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum()

def scalar():
    return Number(5, 3)

number, nothing = 3, lambda: None
"""


@pytest.fixture
def mine(tmp_path):
    """A file that makes networks, and what it imports."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("WIDTH = 8")


@pytest.mark.usefixtures("mine")
def test_a_network_of_ones_own_is_what_a_function_of_a_file_gives(tmp_path, capsys):
    found = named("mine.py:build --input-shape 3 2 2 --seed 1")
    assert (found.input_shape, found.classes) == ((3, 2, 2), 4)
    again, other = (named(f"{tmp_path}/mine.py:build --input-shape 3 2 2 --seed {seed}").model for seed in (1, 2))
    assert torch.equal(found.model[1].weight, again[1].weight) and not torch.equal(again[1].weight, other[1].weight)
    assert named("mine.py:Own --input-shape 5").classes == 3
    save_file({"images": torch.randn(6, 3, 2, 2), "labels": torch.arange(6) % 4}, tmp_path / "data.safetensors")
    asked = "prune mine.py:build --method snip --data data.safetensors --compression 4 --out m.safetensors"
    assert cli.main(asked.split()) == 0
    assert "32 of 128 weights kept" in capsys.readouterr().out
    masks = sf.Masks.load(tmp_path / "m.safetensors")
    assert list(masks) == ["1.weight", "3.weight"]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("mine.py:build", "say what mine.py:build takes: --input-shape"),
        ("mine.py:biuld --input-shape 3 2 2", "unknown function of mine.py 'biuld'; did you mean 'build'"),
        ("mine.py:broken --input-shape 3 2 2", "mine.py:broken makes no network: ZeroDivisionError"),
        ("mine.py:ends --input-shape 5", "makes no network: SystemExit: 0: put what it runs under `if __name__"),
        ("mine.py:scalar --input-shape 5", "gives one number for a whole batch"),
        ("mine.py:nothing --input-shape 3 2 2", "mine.py:nothing gives NoneType, not a torch.nn.Module"),
        ("mine.py:build --input-shape 3 3 3", r"Sequential cannot take an input of shape \(1, 3, 3, 3\)"),
        ("mine.py:build --input-shape 0", "--input-shape needs positive sizes"),
        ("yours.py:build --input-shape 3 2 2", "there is no file yours.py"),
        ("mine.py:build --input-shape 3 2 2 --width 2", "--width is for the models of this library"),
    ],
)
def test_a_file_that_makes_no_network_is_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        named(arguments)


def examples(count=40, size=64, classes=10):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return {"images": images, "labels": torch.arange(count) % classes}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("prune vgg12 --compression 10", "unknown model 'vgg12'"),
        ("prune resnet50 --compression 10", "torchvision's is torchvision:resnet50"),
        ("prune mlp --compression 10 --dataset digit", "unknown data set 'digit'; did you mean 'digits'?"),
        (
            "prune mlp --compression 10 --input-shape 3 8 8",
            "--input-shape is for other models than ours; for mlp, --dataset",
        ),
        ("prune mlp --compression 10 --classes 3", "--classes is for other models than ours"),
        ("prune mlp --compression 10 --width 0", "width must be a positive factor"),
        ("prune timm:vit --compression 10", "unknown collection of models 'timm' (known: torchvision)"),
        ("prune torchvision:resnet19 --compression 10", "did you mean 'resnet18'?"),
        (
            "prune torchvision:squeezenet1_1 --compression 10 --input-shape 3 0 9",
            "positive sizes such as 3 224 224",
        ),
        ("prune torchvision:squeezenet1_1 --compression 10 --input-shape 5 64 64", "cannot take an input of shape"),
        ("prune torchvision:squeezenet1_1 --compression 10 --classes 0", "--classes must be at least 1"),
        ("prune torchvision:squeezenet1_1 --compression 10 --width 2", "--width is for the models of this library"),
        ("prune torchvision:squeezenet1_1 --compression 10 --dataset cifar", "unknown data set 'cifar'; did you mean"),
        ("prune mlp --compression 10 --weights nowhere.pt", "there is no file nowhere.pt"),
        ("prune mlp --compression 10 --weights text.pt", "text.pt is damaged or holds more than tensors"),
        ("prune mlp --compression 10 --weights empty.pt", "empty.pt is damaged or holds more than tensors"),
        ("prune mlp --compression 10 --weights cut.pt", "cut.pt is damaged or holds more than tensors"),
        (
            "prune mlp --compression 10 --weights whole.pt",
            "holds more than tensors: write it with torch.save(model.state",
        ),
        ("prune mlp --compression 10 --weights checkpoint.pt", "checkpoint.pt is no state dict"),
        ("prune mlp --compression 10 --weights text.safetensors", "text.safetensors is damaged or no safetensors file"),
        (
            "prune mlp --compression 10 --weights state.pt",
            "there and (100, 3072) in mlp (--dataset, --classes and --width",
        ),
        ("prune mlp --width 0.1 --compression 10 --weights more.pt", "'more' is not in mlp"),
        ("prune mlp --width 0.1 --compression 10 --weights fewer.pt", "is not in the file"),
        (f"{SQUEEZENET} --method snip", "snip scores weights on data: give --data FILE.safetensors or --dataset"),
        (f"{SQUEEZENET} --method snip --data nowhere.safetensors", "there is no file nowhere.safetensors"),
        (f"{SQUEEZENET} --method snip --data text.safetensors", "text.safetensors is damaged or no safetensors file"),
        (f"{SQUEEZENET} --method snip --data images.safetensors", "images.safetensors holds no 'labels'"),
        (f"{SQUEEZENET} --method snip --data bytes.safetensors", "must be float [N, C, H, W], scaled as in training"),
        (
            f"{SQUEEZENET} --method snip --data float.safetensors",
            "must be int64 [40], one for each of at least one image",
        ),
        (
            f"{SQUEEZENET} --method snip --data short.safetensors",
            "must be int64 [40], one for each of at least one image",
        ),
        (
            f"{SQUEEZENET} --method snip --data none.safetensors",
            "must be int64 [0], one for each of at least one image",
        ),
        (f"{SQUEEZENET} --method snip --data nan.safetensors", "hold values that are infinite or not a number"),
        (
            f"{SQUEEZENET} --classes 7 --method snip --data good.safetensors",
            "run from 0 to 9, but torchvision:squeezenet",
        ),
        (
            "prune mlp --compression 10 --method snip --data good.safetensors",
            "(3, 64, 64), but mlp is to take (3, 32, 32)",
        ),
        (f"{SQUEEZENET} --method snip --dataset digits", "digits are (3, 32, 32), but torchvision:squeezenet1_1 is to"),
        ("prune torchvision:alexnet --compression 10 --method snip --dataset digits", "cannot take an input of shape"),
    ],
)
def test_bad_input_is_one_sentence_status_2_and_no_file(arguments, sentence, capsys):
    good, model = examples(), sf.models.build("mlp", "digits", width=0.1)
    images, labels = good["images"], good["labels"]
    for name, tensors in {
        "good": good,
        "images": {"images": images},
        "bytes": {"images": images.byte(), "labels": labels},
        "float": {"images": images, "labels": labels.float()},
        "short": {"images": images, "labels": labels[:-1].clone()},
        "none": {"images": images[:0], "labels": labels[:0]},
        "nan": {"images": images.log(), "labels": labels},
    }.items():
        save_file(tensors, f"{name}.safetensors")
    state = model.state_dict()
    torch.save(state, "state.pt")
    torch.save(model, "whole.pt")
    torch.save({"epoch": 1, "model": state}, "checkpoint.pt")
    torch.save(state | {"more": torch.ones(1)}, "more.pt")
    torch.save(dict(list(state.items())[:-1]), "fewer.pt")
    Path("cut.pt").write_bytes(Path("state.pt").read_bytes()[:1000])
    Path("empty.pt").touch()
    for name in ("text.pt", "text.safetensors"):
        Path(name).write_text("hello")
    before = sorted(Path().iterdir())
    assert cli.main([*arguments.split(), "--out", "masks.safetensors"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("synflow: ") and output.err.count("\n") == 1
    assert sentence in output.err
    assert sorted(Path().iterdir()) == before


def test_a_model_of_ours_is_that_of_its_data_set_width_and_seed():
    chosen = named("vgg11 --dataset cifar100 --width 0.1 --seed 3")
    expected = sf.models.build("vgg11", "cifar100", width=0.1, seed=3).state_dict()
    assert (chosen.input_shape, chosen.classes, chosen.name) == ((3, 32, 32), 100, "vgg11")
    assert all(torch.equal(expected[name], tensor) for name, tensor in chosen.model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "input_shape", "classes"),
    [
        ("squeezenet1_1", (3, 224, 224), 1000),
        ("efficientnet_b1", (3, 240, 240), 1000),  # the size its published weights were made for
        ("squeezenet1_1 --classes 7 --input-shape 1 20 30", (1, 20, 30), 7),
        ("squeezenet1_1 --dataset cifar100", (3, 32, 32), 100),
        ("squeezenet1_1 --dataset cifar100 --classes 7 --input-shape 3 48 48", (3, 48, 48), 7),
        ("squeezenet1_1 --data data.safetensors", (3, 64, 64), 1000),
    ],
)
def test_a_model_of_torchvision_takes_its_shape_from_the_options_the_data_or_its_own_weights(
    text, input_shape, classes
):
    save_file(examples(), "data.safetensors")
    chosen = named(f"torchvision:{text}")
    assert (chosen.input_shape, chosen.classes) == (input_shape, classes)


def test_the_weights_of_a_model_of_torchvision_are_those_of_the_seed_and_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    first, again, other = (named(f"torchvision:squeezenet1_1 --seed {seed}").model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    expected = torchvision.models.squeezenet1_1().state_dict()
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], expected[name]) for name in expected)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_two_outputs_become_one():
    """GoogLeNet's auxiliary classifiers take part in training only, so nothing of the first pass would score them."""
    model = named("torchvision:googlenet --classes 10").model
    assert not [name for name in sf.prunable(model) if "aux" in name]
    assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_prune_takes_a_classifier_of_torchvision(capsys):
    """SqueezeNet 1.1 has 1,231,552 weights in its convolutions."""
    assert cli.main([*SQUEEZENET.split(), "--iterations", "2"]) == 0
    assert "compression 9.99994: 123,156 of 1,231,552 weights kept" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["trained.pt", "trained.safetensors"])
def test_the_weights_that_are_pruned_are_those_of_the_file(file):
    trained = sf.models.build("mlp", "digits", width=0.1, seed=1)
    state = trained.state_dict()
    save_file(state, file) if file.endswith("safetensors") else torch.save(state, file)
    assert (
        cli.main(f"prune mlp --width 0.1 --compression 5 --method magnitude --weights {file} --out masks".split()) == 0
    )
    masks, new = sf.Masks.load("masks"), sf.models.build("mlp", "digits", width=0.1)
    assert masks.overlap(sf.prune(trained, "magnitude", 5)) == 1 > masks.overlap(sf.prune(new, "magnitude", 5))


def test_a_method_that_needs_data_sees_those_of_the_file():
    data = examples(count=IMAGES_AT_ONCE + 3, size=32)
    save_file(data, "data.safetensors")
    text = "prune mlp --width 0.1 --compression 5 --method snip --data data.safetensors --out masks"
    assert cli.main(text.split()) == 0
    model = sf.models.build("mlp", "digits", width=0.1)
    expected = sf.prune(model, "snip", 5, batches=[(data["images"], data["labels"])])
    assert sf.Masks.load("masks").overlap(expected) > 0.999  # one batch or two: the same mean but for rounding


@pytest.mark.parametrize("model", ["mlp --width 0.1", "torchvision:squeezenet1_1 --dataset digits"])
def test_a_method_that_needs_data_sees_those_of_the_data_set(model):
    arguments = cli.parser().parse_args(["prune", *model.split(), "--method", "grasp", "--seed", "4"])
    expected = sf.data.scoring_batches(sf.data.load("digits"), seed=4)
    seen = batches(arguments, network(arguments))
    assert all(torch.equal(a, b) for pair in zip(seen, expected, strict=True) for a, b in zip(*pair, strict=True))
    assert pruning.rho_max(network(arguments).model) > 1
