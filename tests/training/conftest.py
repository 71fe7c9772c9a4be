"""A data set that can be learned in a few steps: 8x8 images of five colours, with noise."""

import pytest
import torch

from synflow_lib.data import Dataset, DatasetSpec


@pytest.fixture(scope="session")
def toy_data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    spec = DatasetSpec("toy", (3, 8, 8), 5, 130, 40, (0.5,) * 3, (0.25,) * 3, flip=True, source="made for a test")
    colours = torch.tensor([(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (30, 230, 230)])
    tensors = {}
    for split, size in (("train", spec.train_size), ("test", spec.test_size)):
        labels = torch.arange(size) % 5
        noise = torch.randint(-60, 60, (size, 3, 8, 8), generator=generator)
        tensors[f"{split}_images"] = (colours[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
        tensors[f"{split}_labels"] = labels
    return Dataset(spec, **tensors, fingerprint="toy", official=False)
