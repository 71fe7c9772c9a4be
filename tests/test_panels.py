import pytest

from synflow_lib import panels
from synflow_lib.benchmark.grid import PUBLISHED_PANELS
from synflow_lib.errors import InputError


def test_they_are_the_panels_of_the_grid():
    assert panels.PANELS == PUBLISHED_PANELS and len(panels.PANELS) == 12


@pytest.mark.parametrize(
    ("which", "number"),
    [("all", 12), (True, 12), ("cifar10", 4), ("vgg16", 3), ("cifar100_vgg11", 1), (["cifar10", "cifar10_vgg11"], 4)],
)
def test_a_panel_has_many_names(which, number):
    chosen = panels.chosen(which)
    assert len(chosen) == number and chosen == [panel for panel in panels.PANELS if panel in chosen]


def test_an_unknown_one_is_refused():
    with pytest.raises(InputError, match="unknown panel 'cifar10_vgg12'; did you mean 'cifar10_vgg1"):
        panels.chosen(["vgg16", "cifar10_vgg12"])
