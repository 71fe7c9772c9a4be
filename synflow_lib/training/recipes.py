"""How a network is trained, as data: every value stands beside its source.

`recipe("described", "cifar100", "vgg16")` is what the paper's text says, `published` what made its numbers; `fast` is a
short modern schedule for one GPU and one evening (and for the digits on a CPU); `smoke` takes seconds and proves only
that everything runs. "fast:epochs=10,crop=3" is `fast` with other values: where it is named, a recipe can be varied.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from synflow_lib.errors import InputError, lookup


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum and one of two schedules.

    `lr` is per batch of `batch_size` (the loss is a mean over it). Schedule "steps": `lr` times `gamma` for
    each of `milestones` (in epochs) that has passed. Schedule "one-cycle": linear from 0 to `lr` over the
    first `warm_up` epochs, then linear to 0 at the end. `max_steps` cuts every epoch short, after so many
    batches. `updates` says how often each step updates a tensor: pairs of a pattern for its name ("blocks.*") and a
    number, the first that fits counts (`optim.RepeatedSGD`; empty: plain SGD). With `augment`, images are shifted by up
    to `crop` pixels, in the last `uncropped` epochs not at all (after He et al. 2019, "Data augmentation revisited"),
    and mirrored: by a coin each time (`flip` "random"), or each in every other epoch, from a start by a coin
    ("alternating", after Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU": two epochs show both sides of
    every image). With `identity_scales` the identity shortcuts of a ResNet have a trained scale per channel.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    source: str
    momentum: float = 0.9
    nesterov: bool = True
    schedule: str = "steps"
    milestones: tuple[int, ...] = ()
    gamma: float = 1.0
    warm_up: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = True
    crop: int = 4
    uncropped: int = 0
    flip: str = "random"
    max_steps: int | None = None
    updates: tuple[tuple[str, int], ...] = ()
    identity_scales: bool = False

    def __post_init__(self):
        lookup(dict.fromkeys(("steps", "one-cycle")), self.schedule, "learning-rate schedule")
        if self.epochs < 0 or self.batch_size < 1 or self.lr < 0 or self.weight_decay < 0:
            raise InputError(
                f"recipe {self.name!r}: epochs, lr and weight_decay must not be negative, batch_size at least 1"
            )
        if not (0 <= self.momentum < 1 and 0 <= self.label_smoothing < 1):
            raise InputError(f"recipe {self.name!r}: momentum and label_smoothing must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise InputError(f"recipe {self.name!r}: Nesterov momentum needs a momentum: switch nesterov off")
        lookup(dict.fromkeys(("random", "alternating")), self.flip, "way to mirror images")
        if self.crop < 0 or (self.max_steps is not None and self.max_steps < 1):
            raise InputError(f"recipe {self.name!r}: crop must not be negative, max_steps at least 1")
        if self.updates and not (self.nesterov and all(number >= 1 for _, number in self.updates)):
            raise InputError(f"recipe {self.name!r}: repeated updates are at least one each, with Nesterov momentum")
        if not 0 <= self.uncropped <= self.epochs:
            raise InputError(
                f"recipe {self.name!r}: {self.uncropped} uncropped epochs must fit into {self.epochs}, so lower "
                "uncropped"
            )
        if self.schedule == "one-cycle" and not 0 <= self.warm_up <= self.epochs:
            raise InputError(
                f"recipe {self.name!r}: the warm-up of {self.warm_up:g} epochs must fit into {self.epochs}, so lower "
                "warm_up"
            )

    def lr_at(self, epoch: float) -> float:
        """Learning rate after `epoch` epochs; the loop asks for the middle of each step, a fraction of an
        epoch.
        """
        if self.schedule == "steps":
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        rise = epoch / self.warm_up if self.warm_up else 1.0
        fall = (self.epochs - epoch) / (self.epochs - self.warm_up) if self.warm_up < self.epochs else 1.0
        return self.lr * min(rise, fall)

    def crop_at(self, epoch: int) -> int:
        """By how many pixels images are shifted at most in epoch `epoch`, counted from 1."""
        return self.crop if epoch <= self.epochs - self.uncropped else 0

    def without_learning(self, **changes: Any) -> "Recipe":
        """The same work at a learning rate of 0, whatever the number of epochs: for timing; `changes` as in replace."""
        return replace(self, lr=0.0, schedule="steps", milestones=(), warm_up=0.0, uncropped=0, **changes)

    def updates_of(self, name: str) -> int:
        """How often a step updates the parameter `name`."""
        return next((number for pattern, number in self.updates if fnmatchcase(name, pattern)), 1)

    def settings(self) -> dict:
        """Everything that decides the result, as plain values: what a record keeps and compares.

        What was added to recipes later is left out where it is not used, so that earlier records stay valid.
        """
        values = json.loads(json.dumps(asdict(self)))
        later = ("updates", "identity_scales", "crop", "uncropped", "flip")
        unused = [name for name in later if getattr(self, name) == getattr(Recipe, name)]  # the class has the defaults
        return {name: value for name, value in values.items() if name not in ("source", *unused)}


def described(dataset: str, model: str) -> Recipe:
    """What the paper's text says (Tanaka et al. 2020, appendix): SGD with Nesterov momentum 0.9, batch 128.

    The published accuracies come from something else, see `published`. For networks and data that the paper does
    not train (mlp, digits), the row of the CIFAR VGG.
    """
    paper = "Tanaka et al. (2020), appendix: hyperparameters"
    if dataset == "tiny-imagenet":
        # Open: 0.2 is the drop factor of the authors' code; whether the table in the paper says 0.1 is
        # unchecked.
        row = {"epochs": 100, "lr": 0.01, "milestones": (30, 60, 80), "gamma": 0.2, "weight_decay": 1e-4}
    elif "resnet" in model:
        row = {"epochs": 160, "lr": 0.01, "milestones": (60, 120), "gamma": 0.2, "weight_decay": 5e-4}
    else:
        row = {"epochs": 160, "lr": 0.1, "milestones": (60, 120), "gamma": 0.1, "weight_decay": 1e-4}
    return Recipe("described", batch_size=128, source=paper, **row)


def published(dataset: str, model: str) -> Recipe:
    """What made the published numbers: `described`, with several updates of each tensor per step (ERRATA 2).

    The authors' optimiser listed every parameter once for each module around it, and updated it that often
    (`optim.RepeatedSGD`): CIFAR VGG convolutions and BatchNorm 4 times, classifier 2; ResNet-18 blocks 5, stem 3,
    classifier 2, and its identity shortcuts had a trained scale per channel, 3; Tiny ImageNet VGG 3. Read from their
    code as it was when the numbers were made (mended on 2020-09-25) and from an optimiser that they saved (132
    entries, 34 different). For networks and data that they did not train, the row of the CIFAR VGG.

    The first epoch of VGG-16 on CIFAR-100, which tells the recipes apart, is in data/results/first_epochs.csv; made by
        python benchmarks/first_epochs.py --recipes published described
    After 160 epochs they end less than a point apart (VGG-11 on CIFAR-10 by SynFlow at full width, 1 or 2 seeds):
        synflow results --compare --panels cifar10_vgg11 --recipe published described
    """
    if "resnet" in model:
        updates = (("*.scale", 3), ("blocks.*", 5), ("classifier.*", 2), ("*", 3))
    elif dataset == "tiny-imagenet":
        updates = (("*", 3),)
    else:
        updates = (("classifier.*", 2), ("*", 4))
    source = "Tanaka et al. (2020), their code and saved optimiser (ERRATA 2)"
    plain = described(dataset, model)
    return replace(plain, name="published", source=source, updates=updates, identity_scales="resnet" in model)


def fast(dataset: str, model: str) -> Recipe:
    """A short one-cycle schedule (Smith and Topin 2018), at most twenty epochs.

    The digits: our own choice, a schedule that lasts seconds, trains a quarter-width VGG-11 to about 99 % and still
    shows the order of the pruners, as this prints:
        synflow bench --dataset digits --model vgg11 --width 0.25 --pruner random magnitude snip synflow \\
            --compression 1 100 --seed 0 1 2 --recipe fast
    The VGGs (and the MLP) on CIFAR: twenty epochs of small batches with little decay, images mirrored in turn, small
    crops and none in the last three epochs. Chosen by VGG-11 on CIFAR-10 at 10^2, where the length of the training
    counts for more than any of these values. Pruned by SynFlow it ends at 90.4, 89.5, 85.5 and 75.2 % at compression 1,
    10, 100 and 1,000 (an NVIDIA H200, three seeds, data/results/cifar10_vgg11_fast.csv): 1.65, 1.52, 1.32, 1.73 points
    below the authors' best of 160 epochs. The five pruners come in the authors' order at 10 and 100; at 1,000 SNIP and
    GraSP change places (one seed), whose spreads overlap in the authors' runs. Smoothed labels (0.1) cost nothing and
    gain where little is pruned: 91.0 % at 1 (two runs), 89.7 at 10 and 75.3 at 1,000 (one each, all on a CPU,
    data/results/cifar10_vgg11_fast_cpu.csv), the same 85.5 at 100 (the H200): up to 100 less than 1.5 points below the
    authors'. At 1,000 the other four end where they do without (SNIP 60.9 for 60.6, GraSP 64.6 for 65.3, one seed).
    Smoothed labels are not its value because those four were not trained so at 10 and 100. With a weight decay of 5e-4
    besides, 100 ends at 84.8, where `fast` has 85.2 on the same CPU. This prints it all, but for the rows of `fast` on
    a CPU, which are in that file:
        synflow results --compare --panels cifar10_vgg11 --recipe fast fast:label_smoothing=0.1 \\
            fast:weight_decay=0.0005,label_smoothing=0.1
    The rest is `page`.
    """
    if dataset == "digits":
        values = {"epochs": 6, "batch_size": 64, "lr": 0.1, "warm_up": 1.2, "weight_decay": 5e-4}
        return Recipe("fast", schedule="one-cycle", source="our own comparison", **values)
    if "resnet" in model or not dataset.startswith("cifar"):
        return replace(page(dataset, model), name="fast")
    values = {"epochs": 20, "batch_size": 64, "lr": 0.2, "warm_up": 2.0, "weight_decay": 2e-4}
    images = {"crop": 2, "uncropped": 3, "flip": "alternating"}
    return Recipe("fast", schedule="one-cycle", source="our own comparison, by VGG-11 on CIFAR-10", **values, **images)


def page(dataset: str, model: str) -> Recipe:
    """Sixteen epochs after Page's "How to train your ResNet" (2018), the same for all networks and images.

    Page's peak (learning rate 0.4 for a batch of 512, reached after a fifth of the epochs) and weight decay 5e-4, at a
    batch of 256 with the learning rate in proportion; the number of epochs is untuned. VGG-11 on CIFAR-10 (one seed,
    data/results/cifar10_vgg11.csv) ends at 90.2 % dense and, pruned by SynFlow, at 88.5, 84.1 and 72.3 % at compression
    10, 100 and 1,000, where the authors' best of 160 epochs are 92.1, 91.0, 86.8 and 76.9 %. SynFlow is the best of the
    five at each of these, as in theirs. This compares them:
        synflow results --compare --panels cifar10_vgg11 --recipe page
    """
    values = {"epochs": 16, "batch_size": 256, "lr": 0.2, "warm_up": 3.2, "weight_decay": 5e-4}
    return Recipe("page", schedule="one-cycle", source="Page (2018); epochs untuned", **values)


def smoke(dataset: str, model: str) -> Recipe:
    """Two epochs of at most 40 batches: seconds, for tests and first tries. Its accuracies mean nothing."""
    values = {
        "epochs": 2,
        "batch_size": 64,
        "lr": 0.05,
        "warm_up": 0.5,
        "weight_decay": 5e-4,
        "max_steps": 40,
    }
    return Recipe("smoke", schedule="one-cycle", source="large enough to beat chance, no more", **values)


RECIPES: dict[str, Callable[[str, str], Recipe]] = {
    "published": published,
    "described": described,
    "fast": fast,
    "page": page,
    "smoke": smoke,
}


def recipe(name: str, dataset: str, model: str) -> Recipe:
    """Return the recipe `name` for training `model` on `dataset`.

    The name may go on with values to change, as in "fast:epochs=10,crop=3" or "described:milestones=30+60". The name of
    what is returned has them in the order of `Recipe`, and those alone that differ from the recipe's own. Raises
    InputError for an unknown name, and for values that are unknown, of another type or impossible.
    """
    base, colon, changes = name.partition(":")
    own = lookup(RECIPES, base, "recipe")(dataset, model)
    if not colon:
        return own
    asked = _changes(name, changes)
    different = {key: asked[key] for key in CHANGEABLE if key in asked and asked[key] != getattr(own, key)}
    if not different:
        return own
    told = ",".join(f"{key}={_text(value)}" for key, value in different.items())
    return replace(own, name=f"{base}:{told}", source=f"{own.source}, but for {told}", **different)


def spelled(name: str, dataset: str, model: str) -> str:
    """The one spelling of a recipe for `model` on `dataset`; what names no recipe is given back as it is."""
    if ":" not in name:
        return name
    try:
        return recipe(name, dataset, model).name
    except InputError:
        return name


def shortened(name: str) -> str:
    """The name of a recipe for a table: of several changed values the first, "fast:epochs=20,…"."""
    first, comma, _ = name.partition(",")
    return f"{first},…" if comma else first


def _truth(text: str) -> bool:
    return {"True": True, "False": False}[text]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _epochs(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("+"))) if text else ()


def _text(value: Any) -> str:
    """A value as it is written in a name."""
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value).removesuffix(".0")


# How the text of a value is read, and what it has to be; by the type of the field.
READ: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    int | None: (int, "a whole number"),
    float: (_finite, "a number"),
    bool: (_truth, "True or False"),
    str: (str, "a word"),
    tuple[int, ...]: (_epochs, "epochs such as 60+120"),
}
CHANGEABLE = {field.name: READ[field.type] for field in fields(Recipe) if field.type in READ}
del CHANGEABLE["name"], CHANGEABLE["source"]


def _changes(name: str, text: str) -> dict[str, Any]:
    """The values in `text`, "epochs=20,crop=2"; `name` is the whole, for what is told of a mistake."""
    found: dict[str, Any] = {}
    for change in text.split(","):
        key, equals, value = change.partition("=")
        if not equals or key in found:
            raise InputError(f"recipe {name!r}: write each change once, as in fast:epochs=10,crop=3")
        read, kind = lookup(CHANGEABLE, key, "value of a recipe")
        try:
            found[key] = read(value)
        except (ValueError, KeyError):
            raise InputError(f"recipe {name!r}: {key} must be {kind}, not {value!r}") from None
    return found
