"""Which recipe made the published numbers? The first epochs of each, beside the authors' curves.

    python benchmarks/first_epochs.py --recipes published described --epochs 1 --seeds 0

trains the dense VGG-16 on CIFAR-100 for the first epochs of each recipe (of the 160, so the learning rate is theirs),
adds the rows to data/results/first_epochs.csv and prints them below the range of the authors' dense runs
(data/reference/figure1_curves.csv). An epoch takes a minute on a GPU and about ten on a CPU core with bfloat16.
"""

import argparse
from dataclasses import replace

import pandas as pd

from synflow_lib import data, devices, models, paths, provenance
from synflow_lib.benchmark import published
from synflow_lib.training import recipe, train

NETWORK = "cifar100", "vgg16"
KEY = ["recipe", "seed", "epoch", "device_name", "bfloat16"]


def main() -> None:
    """Train what is asked for, one recipe and seed after the other; each is kept as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["published", "described"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="without bfloat16")
    arguments = parser.parse_args()
    dataset, model = NETWORK
    device = devices.resolve(arguments.device)
    speed = devices.Speed.auto(device)
    speed = replace(speed, bfloat16=speed.bfloat16 and not arguments.float32)
    images = data.load(dataset, device=device)
    with devices.threads(arguments.threads):
        for name in arguments.recipes:
            settings = replace(recipe(name, dataset, model), epochs=arguments.epochs)
            for seed in arguments.seeds:
                network = models.build(model, dataset, seed=seed)
                history = train(network, images, settings, seed=seed, device=device, speed=speed)
                add(history.curve[1:], name, seed, str(device), speed.bfloat16, images.official)
    print(beside_the_authors(pd.read_csv(file())).to_string(index=False))


def file():
    """Where the rows are kept."""
    return paths.results() / "first_epochs.csv"


def add(curve: list[dict], name: str, seed: int, device: str, bfloat16: bool, official: bool) -> None:
    """Put the epochs of one training into the file, in place of earlier ones of the same kind."""
    about = {"recipe": name, "dataset": NETWORK[0], "model": NETWORK[1], "seed": seed}
    columns = ["epoch", "train_loss", "test_loss", "test_accuracy", "lr"]
    rows = pd.DataFrame([{**about, **{column: row[column] for column in columns}} for row in curve])
    versions = provenance.versions()
    rows = rows.assign(
        device_name=provenance.device_name(device),
        bfloat16=bfloat16,
        official_data=official,
        torch=versions["torch"],
        library=versions["library"],
        git_revision=provenance.revision(),
    )
    if file().exists():
        rows = pd.concat([pd.read_csv(file()), rows]).drop_duplicates(KEY, keep="last")
    with paths.replacing(file()) as partial:
        rows.sort_values(KEY).to_csv(partial, index=False, float_format="%.6g")


def beside_the_authors(rows: pd.DataFrame) -> pd.DataFrame:
    """Our epochs, with the lowest and the highest of the authors' dense runs at the same epoch."""
    dense = published.table("figure1_curves").query("log10_compression == 0 and epoch > 0")
    measured = {"train_loss": "train_loss", "top1_accuracy": "test_accuracy"}
    ranges = dense.groupby("epoch")[list(measured)].agg(["min", "max"])
    ranges.columns = [f"authors_{measured[column]}_{end}" for column, end in ranges.columns]
    return rows[["recipe", "seed", "epoch", "train_loss", "test_accuracy"]].merge(ranges.reset_index(), on="epoch")


if __name__ == "__main__":
    main()
