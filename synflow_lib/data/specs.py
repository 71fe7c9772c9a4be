"""What each data set is: shapes, normalisation, where it comes from. The table `DATASETS` is all there is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """One data set; `mean` and `std` are per channel on the scale 0 to 1, `flip` allows mirrored training images."""

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    train_size: int
    test_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    source: str


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            # Means and deviations of our own training split, printed by `synflow data digits`.
            *("digits", (3, 32, 32), 10, 1437, 360, (0.305,) * 3, (0.328,) * 3, False),
            source="scikit-learn's bundled handwritten digits (Alpaydin and Kaynak 1998), 8x8 upsampled to 32x32",
        ),
        DatasetSpec(
            *("cifar10", (3, 32, 32), 10, 50_000, 10_000, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True),
            source="CIFAR-10 (Krizhevsky 2009); constants of Tanaka et al. (2020)",
        ),
        DatasetSpec(
            *("cifar100", (3, 32, 32), 100, 50_000, 10_000, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), True),
            source="CIFAR-100 (Krizhevsky 2009); constants of Tanaka et al. (2020)",
        ),
        DatasetSpec(
            *("tiny-imagenet", (3, 64, 64), 200, 100_000, 10_000, (0.480, 0.448, 0.397), (0.276, 0.269, 0.282), True),
            source="Tiny ImageNet (Stanford CS231n); constants of Tanaka et al. (2020); its validation set is the test set",
        ),
    )
}
