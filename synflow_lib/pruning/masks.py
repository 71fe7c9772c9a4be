"""Masks are a value: which weights stay. Applying them to a model is a separate, explicit step."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from synflow_lib import tensors
from synflow_lib.errors import InputError
from synflow_lib.paths import shown
from synflow_lib.pruning.saliency import prunable


class Masks(Mapping[str, Tensor]):
    """A read-only mapping from parameter name to a bool tensor, True where the weight stays, in the model's order."""

    def __init__(self, masks: Mapping[str, Tensor]):
        """Take bool tensors, or tensors of zeros and ones; raises InputError for any other value."""
        self._masks: dict[str, Tensor] = {}
        for name, mask in masks.items():
            if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
                raise InputError(
                    f"the mask of {name!r} holds values other than 0 and 1: scores must be thresholded first"
                )
            self._masks[name] = mask.detach().bool()

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        """Whether `other` has the same masks under the same names, in whatever order and on whatever device."""
        if not isinstance(other, Mapping):
            return NotImplemented
        if set(self) != set(other):
            return False
        pairs = [(mask, torch.as_tensor(other[name])) for name, mask in self.items()]
        return all(a.shape == b.shape and bool((a == b.to(a.device)).all()) for a, b in pairs)

    __hash__ = None

    def __repr__(self) -> str:
        kept = f"{self.kept:,} of {self.total:,} weights kept"
        return f"Masks({len(self)} layers, {kept}, compression {self.compression:.6g})"

    @property
    def total(self) -> int:
        """How many weights can be pruned."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        """How many weights stay."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def density(self) -> float:
        """The fraction of weights that stays."""
        return self.kept / self.total

    @property
    def compression(self) -> float:
        """The compression ratio rho: weights before / after (infinite where none is left)."""
        return self.total / self.kept if self.kept else float("inf")

    def layers(self) -> pd.DataFrame:
        """One row per layer, in order: `layer`, `size` (weights), `kept`, `density`."""
        rows = [(name.removesuffix(".weight"), mask.numel(), int(mask.sum())) for name, mask in self.items()]
        table = pd.DataFrame(rows, columns=["layer", "size", "kept"])
        return table.assign(density=table["kept"] / table["size"])

    def collapsed(self) -> list[str]:
        """The layers that lost all their weights: layer-collapse where others still have some (section 3 of the paper).

        In a residual network an empty shortcut convolution need not cut the network; see `connected`.
        """
        table = self.layers()
        return table.loc[table["kept"] == 0, "layer"].tolist()

    def shuffled(self, seed: int = 0) -> "Masks":
        """Return masks that keep as many weights of each layer, at places drawn at random (Frankle et al. 2021)."""
        generator = torch.Generator().manual_seed(seed)
        moved = {}
        for name, mask in self.items():
            order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
            moved[name] = mask.flatten()[order].view_as(mask)
        return Masks(moved)

    def overlap(self, other: Mapping[str, Tensor]) -> float:
        """Intersection over union of the weights kept: 1 for equal masks, 0 where they share none.

        Raises InputError where `other` has other names or shapes.
        """
        if list(self) != list(other) or any(self[name].shape != other[name].shape for name in self):
            raise InputError("only masks of the same model can be compared")
        shared = sum(int((self[name] & other[name]).sum()) for name in self)
        either = sum(int((self[name] | other[name]).sum()) for name in self)
        return shared / either if either else 1.0

    def to(self, device: torch.device | str) -> "Masks":
        """Return the masks on `device`."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def save(self, path: str | Path) -> Path:
        """Write the masks to one safetensors file and return its path; raises InputError where that is impossible."""
        path = Path(path)
        tensors.write(path, self, {"format": "synflow masks", "order": json.dumps(list(self))})
        return path

    @staticmethod
    def load(path: str | Path) -> "Masks":
        """Read what `save` wrote; raises InputError for an absent, damaged or foreign file."""
        if not Path(path).is_file():
            raise InputError(f"there is no mask file {shown(Path(path))}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "synflow masks":
                    raise InputError(f"{shown(Path(path))} is a safetensors file but holds no masks")
                order = json.loads(metadata["order"])
                if sorted(order) != sorted(file.keys()):
                    raise ValueError("its order is not that of its tensors")
                return Masks({name: file.get_tensor(name) for name in order})
        except InputError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{shown(Path(path))} is no mask file, or is damaged ({error}): make it again") from error

    def to_torch_prune(self, model: nn.Module) -> nn.Module:
        """Put the masks on `model` the way `torch.nn.utils.prune` holds them (weight_orig, weight_mask); return it.

        Raises InputError for masks of another model, and for a weight that modules share: one of them would be masked.
        """
        check_masks(model, self)
        holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        shared = [name for name, weight in prunable(model).items() if holders[id(weight)] > 1]
        if shared:
            raise InputError(f"{shared[0]!r} is shared by modules, of which torch.nn.utils.prune would mask one alone")
        for name, mask in self.items():
            prefix, _, attribute = name.rpartition(".")
            module = model.get_submodule(prefix)
            torch_prune.custom_from_mask(module, attribute, mask.to(getattr(module, attribute).device))
        return model

    @staticmethod
    def from_torch_prune(model: nn.Module) -> "Masks":
        """Read the masks that `torch.nn.utils.prune` left on the weights of `model`, biases aside.

        Raises InputError where there are none.
        """
        suffix, parameters = "_mask", dict(model.named_parameters())
        found = {name.removesuffix(suffix): mask for name, mask in model.named_buffers() if name.endswith(suffix)}
        buffers = {name: m for name, m in found.items() if f"{name}_orig" in parameters and name.endswith("weight")}
        if not buffers:
            raise InputError(f"{type(model).__name__} carries no masks of torch.nn.utils.prune")
        return Masks(buffers)


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise InputError unless `masks` has exactly the prunable weights of `model`, shape for shape."""
    weights = prunable(model)
    strangers = [name for name in masks if name not in weights] + [name for name in weights if name not in masks]
    if strangers:
        where = "model" if strangers[0] in masks else "masks"
        raise InputError(
            f"these masks belong to another model: {strangers[0]!r} is not in the {where} "
            f"({len(masks)} masks, {len(weights)} prunable weights in {type(model).__name__})"
        )
    for name, mask in masks.items():
        if mask.shape != weights[name].shape:
            raise InputError(
                f"these masks belong to another model: {name!r} has shape {tuple(mask.shape)} in the masks and "
                f"{tuple(weights[name].shape)} in {type(model).__name__}"
            )


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set the pruned weights of `model` to zero, in place, and return it.

    Training must also keep their gradients at zero (`synflow_lib.training` does). Raises InputError for masks of
    another model, before anything is changed.
    """
    check_masks(model, masks)
    masks, weights = Masks(masks), prunable(model)
    with torch.no_grad():
        for name, mask in masks.items():
            # Not a product: inf * 0 and nan * 0 would leave a NaN where the weight should be gone.
            weights[name].masked_fill_(~mask.to(weights[name].device), 0)
    return model
