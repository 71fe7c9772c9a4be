import pytest
import torch

from synflow_lib import data
from synflow_lib.data import sources


def mean_and_deviation(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Per channel, on the scale 0 to 1, exactly: from the histogram of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = [torch.bincount(images[:, c].flatten(), minlength=256).double() / images[:, c].numel() for c in range(3)]
    means = [float(weight @ values) for weight in weights]
    return means, [float(weight @ (values - mean) ** 2) ** 0.5 for weight, mean in zip(weights, means, strict=True)]


def test_digits_constants_are_those_of_its_training_images() -> None:
    spec = data.DATASETS["digits"]
    mean, std = mean_and_deviation(sources.digits(spec, None)["train_images"])
    assert [round(value, 3) for value in mean] == list(spec.mean)
    assert [round(value, 3) for value in std] == list(spec.std)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_published_constants_are_close_to_those_of_the_training_images(
    name: str, real_images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNFLOW_DATA", str(real_images))
    dataset = data.load(name, download=False)
    mean, std = mean_and_deviation(dataset.train_images)
    assert mean == pytest.approx(dataset.spec.mean, abs=1e-3)
    assert std == pytest.approx(dataset.spec.std, abs=1e-3)


def test_keys_are_the_names() -> None:
    assert all(name == spec.name for name, spec in data.DATASETS.items())
    assert set(data.DATASETS) == set(sources.SOURCES)
