"""The training loop, on one screen, and what it tells."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synflow_lib import data, devices
from synflow_lib.devices import Speed
from synflow_lib.pruning.masks import apply_masks
from synflow_lib.pruning.state import eval_mode
from synflow_lib.training.checkpoint import Checkpoint
from synflow_lib.training.graphs import Replayed
from synflow_lib.training.optim import idle_biases, left_alone, mask_gradients, sgd
from synflow_lib.training.recipes import Recipe

LOOK_EVERY = 50  # steps between two looks at the loss: a look waits for the device, so not at every step
TEST_BATCH = {"cuda": 1000}  # test images at once on a device, 256 elsewhere: launching their kernels takes time too


@dataclass
class History:
    """What training gave: one row per epoch, the untrained network first (epoch 0), accuracies in percent.

    A row has epoch, train_loss (mean over the epoch; None at epoch 0), test_loss, test_accuracy, lr (at the
    end of the epoch) and seconds; a loss that is not finite is None.
    """

    curve: list[dict] = field(default_factory=list)
    diverged_epoch: int | None = None

    @property
    def status(self) -> str:
        """ "done", or "diverged" where the training loss stopped being finite."""
        return "done" if self.diverged_epoch is None else "diverged"

    @property
    def accuracy_last(self) -> float:
        """Test accuracy after the last epoch."""
        return self.curve[-1]["test_accuracy"]

    @property
    def accuracy_best(self) -> float:
        """Highest test accuracy of any epoch: what the paper plots. It is chosen on the test set, so it
        flatters.
        """
        return max(row["test_accuracy"] for row in self.curve)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best test accuracy."""
        return max(self.curve, key=lambda row: row["test_accuracy"])["epoch"]


def train(
    model: nn.Module,
    dataset: "data.Dataset",
    recipe: Recipe,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    on_epoch: Callable[[int, nn.Module], Mapping | None] | None = None,
    speed: Speed | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train `model` in place on `dataset` by `recipe`, evaluate it on the test images every epoch, return the
    History.

    With `masks`, pruned weights are set to zero first and stay exactly zero. The same `seed`, device and number of
    threads give the same result bit for bit; the caller's random state is left as it was. `on_epoch(epoch, model)`
    may return values that are added to that epoch's row (no gradients are recorded there). `speed` is
    `Speed.auto(device)` unless given. A training loss that is not finite ends the run: status "diverged". With a
    `checkpoint` it goes on where an interrupted training of the same description stood, to the same bits as one that
    was never interrupted. The model is left in train mode and on `device`, its gradients None and, where `speed` says
    so, its weights in channels-last order. Raises InputError for masks of another model or a device that is absent,
    and Stopped when `checkpoint.STOP` was set.
    """
    device = devices.resolve(device)
    speed = (speed or Speed.auto(device)).require(device).suited(model, device)
    dtype = next(model.parameters()).dtype
    dataset, model = dataset.to(device), model.to(device, memory_format=speed.memory_format(*model.parameters()))
    if masks is not None:
        apply_masks(model, masks)
    optimiser, zero_pruned = sgd(model, recipe, speed), mask_gradients(model, masks)
    steps = min(math.ceil(len(dataset.train_labels) / recipe.batch_size), recipe.max_steps or math.inf)
    forward = speed.compiled(model)
    history, started = History(), time.perf_counter()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        outputs = logits(forward, images, speed, dtype)
        loss = F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        zero_pruned()
        return loss.detach()

    gradients = Replayed(step, model) if speed.graphs else step

    @torch.no_grad()
    def evaluated(epoch: int, train_loss: float | None, lr: float) -> None:
        row = {"epoch": epoch, "train_loss": train_loss, **evaluate(model, dataset, speed), "lr": lr}
        extra = on_epoch(epoch, model) if on_epoch else None
        history.curve.append({**row, "seconds": round(time.perf_counter() - started, 3), **(extra or {})})

    idle = idle_biases(model.train()) if speed.skip_biases else ()
    with devices.seeded(seed, device) as generator, left_alone(idle):
        coins = data.coins(dataset, generator) if recipe.flip == "alternating" else None
        if checkpoint is not None and checkpoint.state is not None:
            history = History(**checkpoint.state["history"])
            started -= checkpoint.state["seconds"]
            checkpoint.restore(model, optimiser, generator)
        else:
            evaluated(0, None, 0.0)
        for epoch in range(len(history.curve), recipe.epochs + 1 if history.status == "done" else 0):
            model.train()
            total, seen = torch.zeros((), device=device), 0
            for done, (images, labels) in enumerate(islice(shown(dataset, recipe, generator, epoch, coins), steps)):
                lr = recipe.lr_at(epoch - 1 + (done + 0.5) / steps)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                total += gradients(images, labels) * len(labels)
                optimiser.step()
                seen += len(labels)
                if done % LOOK_EVERY == LOOK_EVERY - 1 and not math.isfinite(total):
                    break
            mean = float(total) / seen
            evaluated(epoch, mean if math.isfinite(mean) else None, lr)
            if not math.isfinite(mean):
                history.diverged_epoch = epoch
            if checkpoint is not None:
                noted = {"history": asdict(history), "seconds": time.perf_counter() - started}
                last = epoch == recipe.epochs or history.status == "diverged"
                checkpoint.after_epoch(model, optimiser, generator, noted, last)
            if history.status == "diverged":
                break
    optimiser.zero_grad(set_to_none=True)
    return history


def shown(
    dataset: "data.Dataset", recipe: Recipe, generator: torch.Generator, epoch: int, coins: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch, counted from 1, augmented by `recipe`; `coins` tell which images the first one mirrors,
    the second does the others, and so on in turn. None: at random.
    """
    mirrored = None if coins is None else coins ^ (epoch % 2 == 0)
    return data.train_batches(dataset, recipe.batch_size, generator, recipe.augment, recipe.crop_at(epoch), mirrored)


def logits(model: Callable[[Tensor], Tensor], images: Tensor, speed: Speed, dtype: torch.dtype) -> Tensor:
    """The model's output [B, classes] for normalised images [B, C, H, W] (or tokens), in the model's own `dtype`."""
    kind = dtype if images.is_floating_point() else images.dtype
    with speed.autocast(images.device, dtype):
        return model(images.to(kind, memory_format=speed.memory_format(images))).to(dtype)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: "data.Dataset", speed: Speed | None = None) -> dict[str, float | None]:
    """Return `test_loss` (mean cross entropy, None where not finite) and `test_accuracy` (percent), in eval
    mode; afterwards every module is in the mode in which it was.

    Model and data must be on the same device. The sums stay there until the end.
    """
    speed = speed or Speed.auto(dataset.test_labels.device)
    dtype = next(model.parameters()).dtype
    loss = torch.zeros((), device=dataset.test_labels.device)
    correct = torch.zeros((), device=dataset.test_labels.device, dtype=torch.int64)
    with eval_mode(model):
        for images, labels in data.test_batches(dataset, TEST_BATCH.get(loss.device.type, 256)):
            output = logits(model, images, speed, dtype)
            loss += F.cross_entropy(output, labels, reduction="sum")
            correct += (output.argmax(1) == labels).sum()
    number = len(dataset.test_labels)
    mean = float(loss) / number
    return {"test_loss": mean if math.isfinite(mean) else None, "test_accuracy": 100 * int(correct) / number}
