"""What each data set is: shapes, normalisation, where it comes from. The table `DATASETS` is all there is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """One data set: everything about it that does not need its images."""

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    train_size: int
    test_size: int
    mean: tuple[float, float, float]  # per channel, of the training images on the scale 0 to 1
    std: tuple[float, float, float]
    flip: bool  # whether a mirrored training image is still a training image
    source: str
    download_bytes: int = 0  # of the official archive; 0: nothing to download
    # sha256 of the four official tensors (see store.fingerprint), where we know it: then "official" is checked,
    # elsewhere it says that the file was made from an archive whose checksum held.
    fingerprint: str | None = None
    subset: tuple[int, int] | None = None  # training and test images of a smaller set that is accepted too

    @property
    def size_bytes(self) -> int:
        """Bytes of the images, one byte per pixel and channel."""
        channels, height, width = self.input_shape
        return (self.train_size + self.test_size) * channels * height * width


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        # The digits' mean and deviation are those of all pixels of the 1,437 training images after upsampling,
        # rounded to three digits (tests/data/test_specs.py computes them again); their channels are equal.
        DatasetSpec(
            *("digits", (3, 32, 32), 10, 1437, 360, (0.306,) * 3, (0.324,) * 3, False),
            source="scikit-learn's bundled handwritten digits (Alpaydin and Kaynak 1998), 8x8 upsampled to 32x32",
            fingerprint="cee2f72e86ceb814e633ce10396f832a6a053af7ecc4167fdfd45b3dc5c884e9",
        ),
        DatasetSpec(
            *("cifar10", (3, 32, 32), 10, 50_000, 10_000, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True),
            source="CIFAR-10 (Krizhevsky 2009); constants of Tanaka et al. (2020)",
            download_bytes=170_498_071,
        ),
        DatasetSpec(
            *("cifar100", (3, 32, 32), 100, 50_000, 10_000, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), True),
            source="CIFAR-100 (Krizhevsky 2009); constants of Tanaka et al. (2020)",
            download_bytes=169_001_437,
            fingerprint="0ea44af0c9cb7f8e841a253f5782b4af5400f999ca1c669706a3307ef939212a",
        ),
        DatasetSpec(
            *("tiny-imagenet", (3, 64, 64), 200, 100_000, 10_000, (0.480, 0.448, 0.397), (0.276, 0.269, 0.282), True),
            source="Tiny ImageNet (Stanford CS231n), tested on its validation set; constants of Tanaka et al. (2020)",
            download_bytes=248_100_043,
            subset=(2_000, 1_000),  # 10 of 500 and 5 of 50 images of each class
        ),
    )
}
