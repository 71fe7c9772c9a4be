"""What a command line names: a network, the weights to put into it, the examples that a method scores on.

Each is checked against the others, and what does not fit is one sentence that says which option decides it.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synflow_lib import data, devices, models, paths
from synflow_lib.data import DATASETS
from synflow_lib.errors import InputError, lookup
from synflow_lib.models.tracing import eval_mode
from synflow_lib.pruning.passes import example_input, forward

# These two have a second output, which takes part in training only: nothing that is scored would reach its weights.
TWO_OUTPUTS = ("googlenet", "inception_v3")
IMAGES_AT_ONCE = 32  # of a data file, whose images may be large: the activations of a whole batch are held


class Network(NamedTuple):
    """A model and what is known of it: the shape of one input, its number of classes, its name on the command line."""

    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int
    name: str


def network(arguments: argparse.Namespace) -> Network:
    """The network that the command line names, with new weights or those of `--weights`."""
    collection, colon, name = arguments.model.rpartition(":")
    if collection.endswith(".py"):
        chosen = of_file(arguments, Path(collection), name)
    elif colon:
        lookup({"torchvision": True}, collection, "collection of models")
        chosen = of_torchvision(arguments, name)
    else:
        chosen = ours(arguments)
    if arguments.weights is not None:
        load_weights(chosen, arguments.weights)
    return chosen


def ours(arguments: argparse.Namespace) -> Network:
    """One of this library's models; the data set decides what goes in and comes out."""
    name, dataset = arguments.model, arguments.dataset or "digits"
    if name not in models.MODELS and name in classifiers():
        raise InputError(f"unknown model {name!r} in this library; torchvision's is torchvision:{name}")
    lookup(models.MODELS, name, "model")
    for option in ("input_shape", "classes"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} is for other models than ours; for {name}, --dataset decides it"
            )
    spec = lookup(DATASETS, dataset, "data set")
    model = models.build(name, dataset, arguments.width, arguments.seed)
    return Network(model, spec.input_shape, spec.classes, name)


def of_torchvision(arguments: argparse.Namespace, name: str) -> Network:
    """A classifier of torchvision, with weights drawn from `--seed`: nothing is downloaded."""
    lookup(classifiers(), name, "model of torchvision")
    input_shape, classes = stated(arguments)
    if input_shape is None:
        input_shape = (3, *2 * torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size)
    if len(input_shape) != 3:
        raise InputError(f"--input-shape needs three positive sizes such as 3 224 224, not {input_shape}")
    classes = 1000 if classes is None else classes
    extra = {"aux_logits": False, "init_weights": True} if name in TWO_OUTPUTS else {}
    with devices.seeded(arguments.seed, torch.device("cpu")):
        model = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
    return Network(model, tuple(input_shape), classes, arguments.model)


def of_file(arguments: argparse.Namespace, file: Path, name: str) -> Network:
    """A network of one's own: what the function or class `name` of a Python file gives without arguments.

    The file is run, with weights drawn from `--seed`. Raises InputError where it cannot be, and where it is unknown
    what the network takes.
    """
    require_file(file)
    input_shape, classes = stated(arguments)
    if input_shape is None:
        raise InputError(f"say what {arguments.model} takes: --input-shape 3 32 32, without the batch")
    with devices.seeded(arguments.seed, torch.device("cpu")):
        try:
            functions = {key: value for key, value in vars(imported(file)).items() if callable(value)}
            model = lookup(functions, name, f"function of {paths.shown(file)}")()
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # the file is anyone's
            guard = ": put what it runs under `if __name__ == '__main__':`" * isinstance(error, SystemExit)
            raise InputError(f"{arguments.model} makes no network: {type(error).__name__}: {error}{guard}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{arguments.model} gives {type(model).__name__}, not a torch.nn.Module")
    with eval_mode(model), torch.no_grad():
        outputs = forward(model, example_input(model, 1, input_shape))
    if outputs.ndim == 0:
        raise InputError(f"{arguments.model} gives one number for a whole batch: it must return [batch, ...]")
    return Network(model, input_shape, outputs.shape[-1] if classes is None else classes, arguments.model)


def imported(file: Path) -> ModuleType:
    """The module that a Python file is; what lies beside it can be imported there, as when it is run."""
    spec = importlib.util.spec_from_file_location(f"given_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.absolute().parent))
    spec.loader.exec_module(module)
    return module


def stated(arguments: argparse.Namespace) -> tuple[tuple[int, ...] | None, int | None]:
    """The shape of an input and the number of classes by the options, of a model that has none of its own."""
    if arguments.width != 1.0:
        raise InputError("--width is for the models of this library")
    spec = None if arguments.dataset is None else lookup(DATASETS, arguments.dataset, "data set")
    shape = arguments.input_shape
    if shape is None and spec is not None:
        shape = spec.input_shape
    if shape is None and arguments.data is not None:
        shape = read_data(arguments.data)[0].shape[1:]
    if shape is not None and min(shape) < 1:
        raise InputError(f"--input-shape needs positive sizes such as 3 224 224, not {tuple(shape)}")
    if arguments.classes is not None and arguments.classes < 1:
        raise InputError(f"--classes must be at least 1, not {arguments.classes}")
    classes = spec.classes if arguments.classes is None and spec is not None else arguments.classes
    return None if shape is None else tuple(shape), classes


def classifiers() -> dict[str, None]:
    """The names of torchvision's image classifiers: its other models give no single tensor."""
    return dict.fromkeys(torchvision.models.list_models(module=torchvision.models))


def load_weights(chosen: Network, file: Path) -> None:
    """Put the state dict in `file` into the model; raises InputError unless it is exactly one of such a model."""
    own, state, shown = chosen.model.state_dict(), read_state(file), paths.shown(file)
    for name in (*state, *own):
        if name not in own or name not in state:
            where = "the file" if name in own else chosen.name
            raise InputError(f"{shown} holds the weights of another network: {name!r} is not in {where}")
        if state[name].shape != own[name].shape:
            raise InputError(
                f"{shown} holds the weights of another network: {name!r} is {tuple(state[name].shape)} there and "
                f"{tuple(own[name].shape)} in {chosen.name} (--dataset, --classes and --width decide sizes)"
            )
    chosen.model.load_state_dict(state)


def read_state(file: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file or one of torch.save; nothing in it is executed."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    require_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what foreign bytes raise depends on them: UnpicklingError, KeyError, EOFError and more
        raise InputError(
            f"{paths.shown(file)} is damaged or holds more than tensors: write it with torch.save(model.state_dict())"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{paths.shown(file)} is no state dict: write it with torch.save(model.state_dict())")
    return state


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `file`; raises InputError where it is absent or damaged."""
    require_file(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{paths.shown(file)} is damaged or no safetensors file ({error}): make it again") from error


def require_file(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"there is no file {paths.shown(file)}")


def batches(arguments: argparse.Namespace, chosen: Network) -> list[tuple[Tensor, Tensor]]:
    """The examples that the method scores on: those of `--data`, else some of the data set's."""
    if arguments.data is not None:
        images, labels = read_data(arguments.data)
        fit(paths.shown(arguments.data), images.shape[1:], int(labels.min()), int(labels.max()), chosen)
        return list(zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True))
    dataset = arguments.dataset or (None if ":" in arguments.model else "digits")
    if dataset is None:
        raise InputError(f"{arguments.method} scores weights on data: give --data FILE.safetensors or --dataset")
    spec = DATASETS[dataset]
    fit(dataset, spec.input_shape, 0, spec.classes - 1, chosen)
    return data.scoring_batches(data.load(dataset), seed=arguments.seed)


def read_data(file: Path) -> tuple[Tensor, Tensor]:
    """Read images, float [N, C, H, W], and labels, int64 [N]; raises InputError for anything else."""
    tensors, shown = read_safetensors(file), paths.shown(file)
    if absent := {"images", "labels"} - set(tensors):
        raise InputError(f"{shown} holds no {min(absent)!r}: save images, float [N, C, H, W], and labels, int64 [N]")
    images, labels = tensors["images"], tensors["labels"]
    if not images.is_floating_point() or images.dim() != 4:
        raise InputError(
            f"images in {shown} must be float [N, C, H, W], scaled as in training, not {images.dtype} "
            f"{list(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or len(labels) == 0:
        raise InputError(
            f"labels in {shown} must be int64 [{len(images)}], one for each of at least one image, not {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise InputError(f"images in {shown} hold values that are infinite or not a number")
    return images, labels


def fit(source: str, shape: Iterable[int], lowest: int, highest: int, chosen: Network) -> None:
    """Raise InputError unless examples of that shape with those labels can be given to the network."""
    if tuple(shape) != chosen.input_shape:
        raise InputError(f"images in {source} are {tuple(shape)}, but {chosen.name} is to take {chosen.input_shape}")
    if lowest < 0 or highest >= chosen.classes:
        raise InputError(
            f"labels in {source} run from {lowest} to {highest}, but {chosen.name} has {chosen.classes} classes"
        )
