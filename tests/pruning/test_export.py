"""An exported file is the network: the same outputs for a batch of any size, without Python code and without paths."""

import copy
import importlib.util
import resource
import warnings
import zipfile
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from toys import NETWORKS, SHAPE, Reader, batches, conv_chain

import synflow_lib as sf
from synflow_lib.errors import InputError
from synflow_lib.pruning import apply_masks, compact, prune

export_module = importlib.import_module("synflow_lib.pruning.export")
FORMATS = (".pt2", ".onnx")


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    """Work in the folder of the test."""
    monkeypatch.chdir(tmp_path)


def after_training(model):
    """A network whose statistics, scales and shifts are not those it began with, some of its parts in train mode."""
    for images, _ in batches((16,)):
        model.train()(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 if name.endswith("weight") else 0.03)
    return model


def run(path, images):
    """The outputs of an exported file for `images` [B, C, H, W]."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compact_network_exported_computes_what_the_masked_network_does(network, suffix):
    """To 1e-4 of the largest output in float32, for batches of other sizes than the one it was traced with."""
    model = after_training(NETWORKS[network]()).float()
    masks = prune(model, "synflow", 4, input_shape=SHAPE, iterations=10)
    small = compact(model, masks, SHAPE).model
    path = sf.export(small, Path(f"small{suffix}"), SHAPE)
    apply_masks(model, masks).eval()
    for size in (1, 5):
        images = torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(size))
        expected = model(images).detach()
        assert (run(path, images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_pt2_keeps_the_dtype_of_the_weights():
    model = after_training(conv_chain())
    path = sf.export(model, "double.pt2", SHAPE)
    ((images, _),) = batches((3,))
    torch.testing.assert_close(run(path, images), model.eval()(images).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_network_that_reads_tokens_takes_tokens_from_the_file(suffix):
    model = Reader()
    path = sf.export(model, f"reader{suffix}", (5,))
    tokens = torch.arange(15).reshape(3, 5) % 7
    torch.testing.assert_close(run(path, tokens), model(tokens).detach())


def test_the_model_keeps_its_mode_and_its_values():
    model = after_training(conv_chain())
    model[1].eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    sf.export(model, "model.pt2", SHAPE)
    assert [m.training for m in model.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_dropout_is_off_in_the_file():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 5)).train()
    images = torch.ones(4, *SHAPE)
    path = sf.export(model, "dropout.pt2", SHAPE)
    torch.testing.assert_close(run(path, images), model.eval()(images).detach())


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_file_tells_in_which_folder_it_was_made(suffix):
    path = sf.export(conv_chain().float(), f"model{suffix}", SHAPE)
    if suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    else:
        content = path.read_bytes()
    assert len(content) > 1000
    assert not [folder for folder in (Path(torch.__file__).parent, Path(__file__).parent) if bytes(folder) in content]


class FixedBatch(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(2, -1))


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) if x.sum() >= 0 else x


class TwoOutputs(nn.Linear):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("model", "path", "shape", "sentence"),
    [
        (nn.Linear(1, 1), "model.pt", SHAPE, "its name must end in .pt2 .* or .onnx"),
        (nn.Linear(1, 1), "model", SHAPE, "its name must end in .pt2 .* or .onnx"),
        (nn.Linear(1, 1), "folder.pt2", SHAPE, "it is a folder; name a file"),
        (conv_chain(), "model.pt2", (4, 8, 8), r"Sequential cannot take an input of shape \(2, 4, 8, 8\)"),
        (FixedBatch(192, 5), "model.pt2", SHAPE, "FixedBatch cannot be exported with a batch of any size"),
        (Branching(192, 5), "model.pt2", SHAPE, "Branching cannot be exported"),
        (TwoOutputs(192, 5), "model.onnx", SHAPE, "TwoOutputs must return one tensor"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_leaves_no_file(model, path, shape, sentence):
    Path("folder.pt2").mkdir()
    with pytest.raises(InputError, match=sentence) as told:
        sf.export(model, path, shape)
    assert "\n" not in str(told.value)
    assert [file.name for file in Path().iterdir()] == ["folder.pt2"]


def test_onnx_that_is_absent_is_told_with_the_command_that_installs_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(InputError, match="needs onnxscript: pip install onnx onnxscript"):
        sf.export(conv_chain(), "model.onnx", SHAPE)
    assert sf.export(conv_chain(), "model.pt2", SHAPE).exists()


def test_a_network_too_large_for_one_onnx_file_is_refused(monkeypatch):
    weights = sum(tensor.numel() * tensor.element_size() for tensor in conv_chain().state_dict().values())
    monkeypatch.setattr(export_module, "ONNX_LIMIT", weights)
    with pytest.raises(InputError, match="an ONNX file holds less than 2 GiB"):
        sf.export(conv_chain(), "model.onnx", SHAPE)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_that_fails_is_one_sentence_and_keeps_the_file_that_was_there(suffix):
    path = Path(f"model{suffix}")
    path.write_text("the one before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=f"cannot write {path}"):
            sf.export(conv_chain().float(), path, SHAPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "the one before" and list(Path().iterdir()) == [path]
    assert sf.export(conv_chain().float(), path, SHAPE).stat().st_size > 1000


def test_what_onnx_has_no_form_for_is_one_sentence_and_leaves_no_file(tmp_path):
    class Bessel(nn.Linear):
        def forward(self, x):
            return torch.special.bessel_j0(super().forward(x))

    with pytest.raises(InputError, match=r"has no ONNX form \(.*\): write a .pt2 instead"):
        sf.export(Bessel(5, 3), "network.onnx", (5,))
    assert list(tmp_path.iterdir()) == []
    sf.export(Bessel(5, 3), "network.pt2", (5,))


def test_a_traced_network_is_one_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in use
        traced = torch.jit.trace(nn.Linear(5, 3), torch.zeros(1, 5))
    with pytest.raises(InputError, match="cannot be exported"):
        sf.export(traced, "network.pt2", (5,))
