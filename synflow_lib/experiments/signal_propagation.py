"""The experiments of chapter 10, after Lee et al. (2020): a grid over pruners, compressions and seeds each.

A `Setting` has the network, the images and the recipe; every function takes one and returns a tidy table. What trains
is spread over the processes of `pool.each`, so a Setting is made of values that can be handed to one.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product

import pandas as pd
from torch import nn

from synflow_lib import data, models
from synflow_lib.data import DATASETS, Dataset, scoring_batches
from synflow_lib.experiments import pool
from synflow_lib.pruning import SALIENCIES, Masks, apply_masks, prune
from synflow_lib.pruning.saliency import Batches
from synflow_lib.theory import approximate_isometry, isometry, jacobians
from synflow_lib.training import History, recipe, train

SATURATING = (nn.Tanh, nn.Sigmoid)
STATES = ("pruned", "after isometry")
IMAGES = 20  # at which the input-output Jacobian is taken


@dataclass(frozen=True)
class Chain:
    """A fully connected network of `depth` layers of `width` units for the images of `dataset`, of weights drawn by
    `scheme`, one of `models.INITIALISATIONS`. A call makes it.
    """

    dataset: str
    depth: int = 7
    scheme: str = "lecun"
    activation: type[nn.Module] = nn.Tanh
    width: int = 100

    def __call__(self, seed: int = 0) -> nn.Module:
        spec, hidden = DATASETS[self.dataset], (self.width,) * (self.depth - 1)
        model = models.mlp(spec.input_shape, spec.classes, hidden=hidden, activation=self.activation)
        return models.initialise(model, self.scheme, seed=seed)


@dataclass(frozen=True)
class Setting:
    """What the experiments have in common.

    `network` makes a new network from `seed=`, and can be pickled: a `Chain`, or a function of a module. `recipe` and
    `device` are how and where it is trained on `dataset`, a name in `DATASETS`.
    """

    network: Callable[..., nn.Module]
    dataset: str
    recipe: str = "fast"
    device: str = "auto"

    @property
    def images(self) -> Dataset:
        """The data set."""
        return data.load_once(self.dataset)

    @property
    def batches(self) -> Batches:
        """What SNIP and GraSP score on."""
        return _scored_on(self.dataset)

    def masks(
        self,
        model: nn.Module,
        method: str | Callable,
        compression: float,
        seed: int = 0,
        batches: Batches | None = None,
    ) -> Masks:
        """Prune `model`; SynFlow scores the same weights without activations that saturate (see `linear_twin`)."""
        options = {"input_shape": DATASETS[self.dataset].input_shape, "seed": seed, "batches": batches or self.batches}
        return prune(linear_twin(model) if method == "synflow" else model, method, compression, **options)

    def train(self, model: nn.Module, masks: Masks, seed: int, dataset: Dataset | None = None) -> History:
        """Train `model` in place on `dataset` (default: the setting's own)."""
        dataset = dataset or self.images
        settings = recipe(self.recipe, dataset.spec.name, "mlp")
        return train(model, dataset, settings, masks, seed=seed, device=self.device)


@lru_cache(maxsize=2)
def _scored_on(name: str) -> Batches:
    return scoring_batches(data.load_once(name))


def linear_twin(model: nn.Module) -> nn.Module:
    """A copy of `model`, same weights and names, whose `SATURATING` activations pass everything on.

    SynFlow supposes an activation that is linear on positive numbers; on tanh its input of ones would saturate.
    """
    twin = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, SATURATING):
            twin.set_submodule(name, nn.Identity())
    return twin


def singular_values(setting: Setting, methods: Iterable[str], removed: Iterable[float]) -> pd.DataFrame:
    """Singular values at initialisation, after pruning `removed` percent of the weights, and after isometry.

    Columns: `quantity` ("single layers": of all layers' weights, every layer counting alike; "input to output": of the
    Jacobian at a few images), `pruner`, `state` ("at initialisation" with nothing removed, "pruned", "after isometry"),
    `removed`, and `mean`, `std`, `min`, `max`.
    """
    rows = [(q, "", "at initialisation", 0.0, *found) for q, found in spread(setting, setting.network(seed=0)).items()]
    for method, percent in product(methods, removed):
        model = setting.network(seed=0)
        masks = setting.masks(model, method, 100 / (100 - percent))
        for state in STATES:
            _bring(model, masks, state)
            rows += [(q, method, state, percent, *found) for q, found in spread(setting, model).items()]
    return pd.DataFrame(rows, columns=["quantity", "pruner", "state", "removed", "mean", "std", "min", "max"])


def _bring(model: nn.Module, masks: Masks, state: str) -> None:
    """Bring `model`, in place, to one of `STATES`."""
    apply_masks(model, masks)
    if state == "after isometry":
        approximate_isometry(model, masks)


def spread(setting: Setting, model: nn.Module) -> dict[str, tuple[float, float, float, float]]:
    """Mean, deviation, least and largest singular value of the layers of `model`, and from its input to its output."""
    layers = jacobians.layers(model, setting.images.input_shape)
    mean = layers["mean"].mean()
    variance = (layers["std"] ** 2 + layers["mean"] ** 2).mean() - mean**2
    values = jacobians.input_output(model, setting.batches[0][0][:IMAGES])
    return {
        "single layers": (mean, max(0.0, variance) ** 0.5, layers["min"].min(), layers["max"].max()),
        "input to output": tuple(
            float(f) for f in (values.mean(), values.std(correction=0), values.min(), values.max())
        ),
    }


def trainability(
    setting: Setting, methods: Iterable[str], log10_compressions: Iterable[float], seeds: Iterable[int]
) -> pd.DataFrame:
    """Curves of the same masks trained from the weights as they were drawn and from isometric ones.

    Columns: `pruner`, `log10_compression`, `state`, `seed`, and those of a training's curve.
    """
    parts = [
        {"setting": setting, "method": method, "power": power, "seed": seed}
        for method, power, seed in product(methods, log10_compressions, seeds)
    ]
    return pd.DataFrame(chain.from_iterable(pool.each(_both_curves, parts)))


def _both_curves(setting: Setting, method: str, power: float, seed: int) -> list[dict]:
    masks = setting.masks(setting.network(seed=seed), method, 10**power, seed)
    rows = []
    for state in STATES:
        model = setting.network(seed=seed)
        _bring(model, masks, state)
        about = {"pruner": method, "log10_compression": power, "state": state, "seed": seed}
        rows += [about | row for row in setting.train(model, masks, seed).curve]
    return rows


def two_theories(
    model: nn.Module, log10_compressions: Iterable[float], input_shape: Sequence[int], batches: Batches
) -> pd.DataFrame:
    """Every layer's deviations from conservation and from isometry, for the five pruners over compression.

    Columns: `pruner`, `log10_compression`, `conservation` (a layer's total score on the pruned network against the mean
    of all layers, relative to that) and `isometry` (`rms` of `theory.isometry.deviations`).
    """
    rows, options = [], {"input_shape": input_shape, "batches": batches}
    for method, power in product(SALIENCIES, log10_compressions):
        masks = prune(model, method, 10**power, **options)
        totals = pd.Series([float(score.sum()) for score in SALIENCIES[method](model, masks, **options).values()])
        away = (totals / totals.mean() - 1).abs()
        rms = isometry.deviations(model, masks)["rms"]
        rows += [(method, power, *both) for both in zip(away, rms, strict=True)]
    return pd.DataFrame(rows, columns=["pruner", "log10_compression", "conservation", "isometry"])
