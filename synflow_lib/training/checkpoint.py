"""Where a training stands after an epoch, in one file, so that it goes on later with the same bits.

The file is safetensors: the weights and statistics, the momentum, the masks and the random states as tensors, the
rest (epoch, curve, what was being trained) as JSON in its header. One file and not two, because one file can be
replaced in one step. Nothing in it is executed when it is read.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from synflow_lib import paths, tensors
from synflow_lib.errors import InputError

log = logging.getLogger(__name__)

STOP = threading.Event()  # once set, every training with a checkpoint saves it after the epoch it is in, and stops
HEADER = "synflow-checkpoint"


class Stopped(Exception):
    """A training was asked to stop; its checkpoint is saved."""


class Checkpoint:
    """The file `path` for one training, described by `about`: plain values that must be equal to go on from it.

    It is written at the end of an epoch, when `every` seconds have passed since the last time (0: after each epoch),
    and with `at_end` after the last epoch in any case.
    `extra` (tensors, such as masks) and `notes` (plain values) are kept beside the training's own state; those of the
    file replace them when it is read, which is here. A file that is damaged, of another training, or gone while it is
    read, is as good as none. A file that cannot be written costs a warning and not the training.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any] | None = None,
        every: float = 60.0,
        at_end: bool = False,
    ):
        self.path = Path(path)
        self.about = json.loads(json.dumps(dict(about or {})))
        self.every = every
        self.at_end = at_end
        self.extra: dict[str, Tensor] = {}
        self.notes: dict[str, Any] = {}
        self.state: dict[str, Any] | None = None  # the training's curve and clock; None where it has to begin
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._saved = time.monotonic()
        self._read()

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Put the state of the file into the three and into the global random state, once. Call it where `state` is
        not None; raises InputError where the file is that of a model with other tensors.
        """
        stored = self._tensors
        own = model.state_dict()
        wrong = [name for name in own if name not in stored["model"] or stored["model"][name].shape != own[name].shape]
        if wrong or len(own) != len(stored["model"]):
            raise InputError(f"{paths.shown(self.path)} is of another model ({wrong[:1] or 'more tensors'}): remove it")
        model.load_state_dict(stored["model"])
        names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter in names:
            if names[parameter] in stored["momentum"]:
                buffer = torch.empty_like(parameter).copy_(stored["momentum"][names[parameter]])
                optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
        generator.set_state(stored["random"]["generator"])
        torch.set_rng_state(stored["random"]["cpu"])
        if generator.device.type == "cuda":
            torch.cuda.set_rng_state(stored["random"]["device"], generator.device)
        self._tensors = {}

    def after_epoch(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
        state: Mapping[str, Any],
        last: bool = False,
    ) -> None:
        """Save where it is time to, `last` saying that no epoch follows; raises Stopped, after saving, where `STOP` is
        set.
        """
        stop = STOP.is_set()
        where = f"where it stood is in {paths.shown(self.path)}"
        if stop or (last and self.at_end) or time.monotonic() - self._saved >= self.every:
            try:
                self._write(model, optimiser, generator, state)
            except InputError as error:
                log.warning("%s; training goes on without this checkpoint", error)
                where = "where it stood could not be saved"
            self._saved = time.monotonic()
        if stop:
            raise Stopped(f"stopped after an epoch; {where}")

    def _write(self, model, optimiser, generator, state) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        momentum = {
            names[parameter]: kept["momentum_buffer"]
            for parameter, kept in optimiser.state.items()
            if kept.get("momentum_buffer") is not None
        }
        random = {"generator": generator.get_state(), "cpu": torch.get_rng_state()}
        if generator.device.type == "cuda":
            random["device"] = torch.cuda.get_rng_state(generator.device)
        groups = {"model": model.state_dict(), "momentum": momentum, "random": random, "extra": self.extra}
        flat = {f"{group}/{name}": tensor for group, part in groups.items() for name, tensor in part.items()}
        try:
            header = json.dumps({"about": self.about, "training": state, "notes": self.notes}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"cannot write {paths.shown(self.path)}: notes and what on_epoch returns must be plain values ({error})"
            ) from error
        tensors.write(self.path, flat, {HEADER: header})

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[HEADER])
                if header["about"] != self.about:
                    return
                groups: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}, "random": {}, "extra": {}}
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    group, _, rest = name.partition("/")
                    groups[group][rest] = file.get_tensor(name)
        except FileNotFoundError:
            return
        except RuntimeError:  # torch opens the file a second time, by its name
            if self.path.exists():
                raise
            return
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            log.warning("%s is damaged (%s): the training begins anew", paths.shown(self.path), error)
            return
        self.state, self.notes = header["training"], header["notes"]
        self._tensors, self.extra = groups, groups["extra"]
