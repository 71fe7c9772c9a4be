"""What scoring must leave alone, as one value to compare before and after."""

import hashlib

from torch import nn

HOOKS = [name for name in nn.Module().__dict__ if name.endswith("hooks")]


def fingerprint(model: nn.Module) -> dict[str, object]:
    """The bytes of all tensors and which objects hold them, gradients, training flags, hooks and attributes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "bytes": {n: hashlib.sha1(t.detach().numpy().tobytes()).hexdigest() for n, t in tensors},
        "objects": {n: (id(t), t.data_ptr(), t.requires_grad, t.grad is None) for n, t in tensors},
        "modules": {
            n: (m.training, sorted(m.__dict__), [len(getattr(m, hooks)) for hooks in HOOKS])
            for n, m in model.named_modules()
        },
    }
