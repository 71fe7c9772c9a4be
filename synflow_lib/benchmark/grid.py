"""What to run: a `Run` is a point of the benchmark, and a grid is an `itertools.product`."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from synflow_lib import models, training
from synflow_lib.data import DATASETS, DatasetSpec
from synflow_lib.errors import InputError, lookup
from synflow_lib.pruning import LOSSES, NEEDS_DATA, SALIENCIES, SCHEDULES, SCOPES, check_compression, rho_max
from synflow_lib.pruning.prune import default_iterations

SAME_NETWORK = {"wide_resnet18_published": "resnet18"}  # ERRATA 1: trained once, counted in both panels
# Fields that say how to prune.
HOW = ("pruner", "iterations", "schedule", "scope", "train_mode", "invert", "shuffle", "loss", "source")


@dataclass(frozen=True)
class Run:
    """One training of one pruned network; its `key` is the address of its record.

    The network `model` (with `seed` for its weights, its batches and random scores) is pruned by `pruner` to
    the ratio rho = 10**log10_compression and then trained by `recipe`, a name as `training.recipe` takes it, with
    other values where it says so ("fast:epochs=10"). `iterations` None is the method's own
    (100 for synflow, else 1); `schedule`, `scope`, `train_mode` and `invert` are those of `prune`. `shuffle`
    permutes each layer's mask, `reinitialise` draws new weights after pruning. With `cycles` n > 0 it is
    iterative magnitude pruning (or the like): n times train, then prune the trained weights to rho^(i/n), and
    with `rewind` put the survivors back to their initial values.

    Lee et al. (2020): `isometry` brings the kept weights near to isometry (`theory.approximate_isometry`) before the
    last training, after `reinitialise`. snip and grasp score by `loss`, a name in `LOSSES`, and on images of
    `source`, another data set of the same shape and number of classes ("": of the one that is trained on).
    """

    dataset: str
    model: str
    pruner: str
    log10_compression: float
    seed: int = 0
    recipe: str = "fast"
    width: float = 1.0
    iterations: int | None = None
    schedule: str = "exponential"
    scope: str = "global"
    train_mode: bool = False
    invert: bool = False
    shuffle: bool = False
    reinitialise: bool = False
    cycles: int = 0
    rewind: bool = True
    isometry: bool = False
    loss: str = "supervised"
    source: str = ""

    def __post_init__(self):
        # Plain Python values (numpy's too have to give the same key), and one spelling for the method's own
        # default.
        for name, kind in (("log10_compression", float), ("width", float), ("seed", int), ("cycles", int)):
            object.__setattr__(self, name, _plain(name, getattr(self, name), kind))
        for name in ("train_mode", "invert", "shuffle", "reinitialise", "rewind", "isometry"):
            object.__setattr__(self, name, _plain(name, getattr(self, name), bool))
        if self.iterations is not None:
            number = _plain("iterations", self.iterations, int)
            object.__setattr__(self, "iterations", None if number == default_iterations(self.pruner) else number)
        object.__setattr__(self, "recipe", training.spelled(self.recipe, self.dataset, self.model))
        if self.source == self.dataset:
            object.__setattr__(self, "source", "")

    @property
    def compression(self) -> float:
        """The compression ratio rho that is asked for."""
        return 10**self.log10_compression

    @property
    def changed(self) -> dict[str, Any]:
        """The options (the fields from `iterations` on) that are not at their default."""
        stated = {field.name: (getattr(self, field.name), field.default) for field in fields(self)[7:]}
        return {name: value for name, (value, default) in stated.items() if value != default}

    @property
    def key(self) -> str:
        """16 hexadecimal digits that depend on the fields alone: the same on every machine and in later
        versions.

        Fields at their default (from `width` on) are left out, so a field that is added later keeps all old
        keys. At compression 1 nothing is pruned, so how is left out too: the dense network is trained once and
        all pruners share its record. Two names of the same network share theirs as well (`SAME_NETWORK`).
        """
        always = ("dataset", "model", "pruner", "log10_compression", "seed", "recipe")
        stated = {f.name: getattr(self, f.name) for f in fields(self)}
        stated = {f.name: stated[f.name] for f in fields(self) if f.name in always or stated[f.name] != f.default}
        stated["model"] = SAME_NETWORK.get(self.model, self.model)
        if self.log10_compression == 0:
            stated = {name: value for name, value in stated.items() if name not in HOW}
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def validate(self) -> "Run":
        """Return the run, or raise InputError with the one thing that is wrong, before any work is done."""
        lookup(DATASETS, self.dataset, "data set")
        lookup(models.MODELS, self.model, "model")
        lookup(SALIENCIES, self.pruner, "pruning method")
        training.recipe(self.recipe, self.dataset, self.model)
        lookup(SCHEDULES, self.schedule, "schedule")
        lookup(dict.fromkeys(SCOPES), self.scope, "scope")
        if self.seed < 0 or self.cycles < 0:
            raise InputError(f"seed and cycles must not be negative, not {self.seed} and {self.cycles}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2**63, not {self.seed}")
        if self.iterations is not None and self.iterations < 1:
            raise InputError(f"iterations must be at least 1, not {self.iterations}")
        check_compression(self.compression, highest_compression(self.model, self.dataset, self.width))
        self._check_scoring()
        return self

    def _check_scoring(self) -> None:
        """Raise InputError where `loss` and `source` cannot score this network, or are not looked at."""
        lookup(LOSSES, self.loss, "loss")
        own, other = DATASETS[self.dataset], lookup(DATASETS, self.source or self.dataset, "data set")
        given = [name for name, used in (("loss", self.loss != "supervised"), ("source", bool(self.source))) if used]
        if given and self.pruner not in NEEDS_DATA:
            pruners = " and ".join(name for name in SALIENCIES if name in NEEDS_DATA)
            raise InputError(f"{given[0]} is for {pruners}, which score on data, not for {self.pruner}")
        if (own.input_shape, own.classes) != (other.input_shape, other.classes):
            raise InputError(
                f"a network for {_described(own)} cannot score on {_described(other)}: a source must have images of "
                "the same shape and as many classes"
            )


def _described(spec: DatasetSpec) -> str:
    """For a person: cifar10 (3x32x32, 10 classes)."""
    return f"{spec.name} ({'x'.join(map(str, spec.input_shape))}, {spec.classes} classes)"


def _plain(name: str, value: Any, kind: type) -> Any:
    """`value` as a plain `kind`; raises InputError where that would change it (a seed of 1.5, a text for a
    bool).
    """
    try:
        plain = kind(value)
        same = not isinstance(value, str) and plain == value and (kind is float) <= math.isfinite(plain)
    except (TypeError, ValueError, OverflowError):
        same = False
    if not same:
        raise InputError(
            f"{name} must be {'a finite number' if kind is float else f'of type {kind.__name__}'}, not {value!r}"
        )
    # Nine digits: 10 ** 0.25 typed as a decimal number and 0.25 are one point of the grid, not two.
    return round(plain, 9) if kind is float else plain


@lru_cache(maxsize=256)
def highest_compression(model: str, dataset: str, width: float) -> float:
    """rho_max of a network, counted without making its weights."""
    with torch.device("meta"):
        return rho_max(models.build(model, dataset, width=width))


def grid(
    datasets: str | Iterable[str],
    models: str | Iterable[str],
    pruners: str | Iterable[str],
    compressions: float | Iterable[float],
    seeds: int | Iterable[int] = (0, 1, 2),
    recipes: str | Iterable[str] = "fast",
    **options: Any,
) -> list[Run]:
    """Return every combination as a Run, the last axis fastest; `compressions` are log10 rho, `options`
    fields of Run.
    """
    axes = (datasets, models, pruners, compressions, seeds, recipes)
    return [Run(*point, **options) for point in product(*map(_several, axes))]


def _several(axis: Any) -> list:
    return list(axis) if isinstance(axis, Iterable) and not isinstance(axis, str) else [axis]


# Figure 6 of the paper: what the authors trained. Their "WideResNet-18" is the network of
# `wide_resnet18_published`.
PUBLISHED_DATASETS = ("cifar10", "cifar100", "tiny-imagenet")
PUBLISHED_MODELS = ("vgg11", "vgg16", "resnet18", "wide_resnet18_published")
PUBLISHED_PRUNERS = ("random", "magnitude", "snip", "grasp", "synflow")
PUBLISHED_COMPRESSIONS = tuple(quarter / 4 for quarter in range(13))  # log10 rho: 0, 0.25, ..., 3
PUBLISHED_SEEDS = (0, 1, 2)
PUBLISHED_PANELS = tuple(product(PUBLISHED_DATASETS, PUBLISHED_MODELS))


def published_grid(recipe: str = "described", panels: Iterable[tuple[str, str]] = PUBLISHED_PANELS) -> list[Run]:
    """The runs of figure 6: 5 pruners, 13 compressions and 3 seeds for each (data set, model) of `panels`."""
    return [
        run
        for dataset, model in panels
        for run in grid(dataset, model, PUBLISHED_PRUNERS, PUBLISHED_COMPRESSIONS, PUBLISHED_SEEDS, recipe)
    ]


PUBLISHED_GRID = tuple(published_grid())
