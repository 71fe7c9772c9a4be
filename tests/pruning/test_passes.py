"""One pass through any model: the example that it takes."""

import pytest
import torch
from torch import nn

from synflow_lib.pruning.passes import example_input


@pytest.mark.parametrize("model, shape, dtype, runs", [
    (nn.Linear(5, 2), (5,), torch.float32, 0),
    (nn.Linear(5, 2).double(), (5,), torch.float64, 0),
    (nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), (5,), torch.int64, 1),
])  # fmt: skip
def test_an_example_is_what_the_model_takes_and_a_model_without_embedding_is_not_run(model, shape, dtype, runs):
    run = []
    model.register_forward_pre_hook(lambda module, inputs: run.append(module))
    example = example_input(model, 2, shape)
    assert (example.shape, example.dtype, len(run)) == ((2, *shape), dtype, runs)
    model(example)
