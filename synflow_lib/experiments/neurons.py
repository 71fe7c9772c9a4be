"""Saliency into and out of every unit of VGG-19 at ImageNet size (figure 3): 4,992 units between two convolutions.

Two tables, for SNIP and GraSP need images and minutes. Flows are shares of the largest into any unit, for only ratios
matter (SynFlow's own are about 1e30); differences stand beside them, which three digits of both flows could not give.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from synflow_lib.experiments import pool, vgg19
from synflow_lib.theory import conservation


def vgg19_neurons(width: float = 1.0, input_shape: Sequence[int] = vgg19.SHAPE) -> pd.DataFrame:
    """Figure 3 for the pruners without data: random, magnitude and SynFlow, this one in double and single precision.

    Columns: `layer` (of the unit, from 0) and `unit`; for each pruner, under its name, the saliency into the unit, and
    under NAME_difference what of it does not come out, both as shares of the pruner's largest saliency into any unit;
    `synflow_float32_difference` likewise for scores in single precision. Three digits of each. Biases count.
    """
    small = {"width": width, "input_shape": tuple(input_shape)}
    parts = [
        {"pruner": "synflow", "label": "synflow_float32", **small},
        {"pruner": "synflow", "dtype": torch.float64, **small},
        *({"pruner": pruner, **small} for pruner in ("magnitude", "random")),
    ]
    return _side_by_side(pool.each(flows, parts, "VGG-19's units")).drop(columns="synflow_float32")


def vgg19_neurons_images(
    width: float = 1.0, input_shape: Sequence[int] = vgg19.SHAPE, images: int | None = None
) -> pd.DataFrame:
    """Figure 3 for SNIP and GraSP, scored on images enlarged to 224x224 (`vgg19.pictures`).

    Columns as in `vgg19_neurons`; `snip_images` and `grasp_images` say how many `images` each saw, and of what.
    """
    small = {"width": width, "input_shape": tuple(input_shape), "images": images}
    return _side_by_side(pool.each(flows, [{"pruner": name, **small} for name in ("grasp", "snip")], "VGG-19's units"))


def flows(pruner: str, label: str = "", **options) -> pd.DataFrame:
    """One pruner's part of a table, under `label` (default: its name); `options` are those of `vgg19.scored`."""
    network, scores, seen = vgg19.scored(pruner, **options)
    units = between_convolutions(conservation.neurons(network, scores, options.get("input_shape", vgg19.SHAPE)))
    label, largest = label or pruner, units["into"].abs().max()
    table = pd.DataFrame({"layer": pd.factorize(units["group"])[0], "unit": units["unit"]})
    table[label] = _digits(units["into"] / largest)
    table[f"{label}_difference"] = _digits(units["difference"] / largest)
    return table.assign(**{f"{label}_images": seen}) if seen else table


def between_convolutions(units: pd.DataFrame) -> pd.DataFrame:
    """The rows of `conservation.neurons` of a VGG whose units are read by convolutions: figure 3 shows these."""
    written = units["group"][units["group"].str.startswith("features.")]
    return units[units["group"].isin(written) & (units["group"] != written.iloc[-1])]  # linear layers read the last


def by_pruner(*tables: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Take the tables of this module apart: for each pruner what `conservation.neurons` returns, in shares.

    SynFlow in single precision is called `synflow_float32`. Columns: group, unit, into, out, difference, error.
    """
    found = {}
    for table in tables:
        for name in (column for column in table if column.endswith("_difference")):
            pruner = name.removesuffix("_difference")
            into = table[pruner if pruner in table else pruner.removesuffix("_float32")]
            units = {"group": table["layer"], "unit": table["unit"], "into": into, "out": into - table[name]}
            larger = pd.concat([units["into"].abs(), units["out"].abs()], axis=1).max(axis=1)
            error = table[name].abs() / larger.where(larger > 0, 1)
            found[pruner] = pd.DataFrame(units).assign(difference=table[name], error=error)
    return found


def _side_by_side(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    tables = [table.set_index(["layer", "unit"]) for table in reversed(tables)]
    return pd.concat(tables, axis=1).reset_index()


def _digits(column: pd.Series, number: int = 3) -> pd.Series:
    return column.map(lambda value: float(f"{value:.{number}g}"))
