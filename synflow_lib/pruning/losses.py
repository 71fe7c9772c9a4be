"""The losses whose gradient scores a weight: the supervised one, and three that never look at a label.

Connection sensitivity asks how much the loss feels a weight, and at initialisation no network has learnt anything
from a label yet. So the labels may hardly matter: Lee et al. (2020) score against the uniform distribution of labels
and prune without any. A loss here is a function (outputs [B, classes], labels [B] or None) -> scalar, a mean over
the batch; hand your own to a saliency as `loss=`, which may read outputs and labels of other shapes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from synflow_lib.errors import InputError, lookup

Loss = Callable[[Tensor, Tensor | None], Tensor]


def supervised(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy with the true labels; raises InputError for labels that the outputs do not know."""
    if int(labels.max()) >= outputs.shape[1] or int(labels.min()) < 0:
        raise InputError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit outputs of shape {tuple(outputs.shape)}"
        )
    return F.cross_entropy(outputs, labels)


def uniform(outputs: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean cross entropy with the uniform distribution: every class is equally right (Lee et al. 2020)."""
    return -F.log_softmax(outputs, 1).mean()


def entropy(outputs: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean entropy of the predictions, -sum p log p: the cross entropy with what the network itself believes."""
    log_p = F.log_softmax(outputs, 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def random_labels(outputs: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
    """Mean cross entropy with labels drawn at random, the same for the same `seed` and place in the batch.

    For other labels: `functools.partial(random_labels, seed=1)`.
    """
    drawn = torch.randint(outputs.shape[1], (len(outputs),), generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(outputs, drawn.to(outputs.device))


LOSSES: dict[str, Loss] = {
    "supervised": supervised,
    "uniform": uniform,
    "entropy": entropy,
    "random labels": random_labels,
}


def resolve(loss: str | Loss) -> Loss:
    """The function itself, or the one of that name in `LOSSES`; raises InputError for an unknown name."""
    return loss if callable(loss) else lookup(LOSSES, loss, "loss")


def known(loss: Loss) -> bool:
    """Whether `loss` is one of `LOSSES`."""
    return any(loss is own for own in LOSSES.values())


def evaluate(loss: Loss, outputs: Tensor, labels: Tensor | None) -> Tensor:
    """`loss` of a network's outputs; raises InputError unless it gives one number, and where one of `LOSSES` is given
    outputs other than [B, classes].
    """
    if known(loss) and outputs.ndim != 2:
        raise InputError(
            f"the loss {loss.__name__} needs outputs of shape [B, classes], not {tuple(outputs.shape)}: for those, "
            "pass a function (outputs, labels) -> scalar as loss"
        )
    value = loss(outputs, labels)
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
        raise InputError(f"the loss {getattr(loss, '__name__', loss)} must give one number that depends on the outputs")
    return value
