"""The twelve panels of the paper's figure 6, and how a person names some of them.

Apart from the benchmark, which imports torch: the command line and `reproduce` know the panels without it.
"""

from collections.abc import Iterable
from itertools import product

from synflow_lib.errors import lookup

# The authors' "WideResNet-18" is the network of `wide_resnet18_published` (ERRATA 1).
DATASETS = ("cifar10", "cifar100", "tiny-imagenet")
MODELS = ("vgg11", "vgg16", "resnet18", "wide_resnet18_published")
PANELS = tuple(product(DATASETS, MODELS))


def chosen(which: str | bool | Iterable[str]) -> list[tuple[str, str]]:
    """The (data set, model) pairs that `which` names: "all" (or True), a data set, a model or a pair "cifar10_vgg16".

    Several names give their union, in the order of the figure. Raises InputError for a name of no panel.
    """
    groups: dict[str, set[tuple[str, str]]] = {"all": set(PANELS)}
    for panel in PANELS:
        for name in (*panel, "_".join(panel)):
            groups.setdefault(name, set()).add(panel)
    names = ["all"] if which is True else [which] if isinstance(which, str) else list(which)
    wanted = set().union(*(lookup(groups, name, "panel") for name in names))
    return [panel for panel in PANELS if panel in wanted]
