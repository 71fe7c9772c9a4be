"""Every pruner looks the same everywhere, and the same drawing gives the same file."""

import pandas as pd
from PIL import Image

from synflow_lib import paths, plotting
from synflow_lib.pruning import SALIENCIES


def accuracies(pruners=plotting.PRUNERS, runs=2):
    rows = [(p, c, 90 - 10 * c - run) for p in pruners for c in (0.0, 1.0, 2.0) for run in range(runs)]
    return pd.DataFrame(rows, columns=["pruner", "log10_compression", "accuracy"])


def test_every_pruner_has_a_colour_a_marker_and_a_name_of_its_own():
    for table in (plotting.COLOURS, plotting.MARKERS, plotting.NAMES):
        assert list(table) == list(plotting.PRUNERS) and len(set(table.values())) == 5
    assert set(plotting.PRUNERS) == set(SALIENCIES)


def test_a_figure_is_saved_as_svg_and_png_and_the_same_drawing_gives_the_same_svg():
    figures = []
    for _ in range(2):
        plotting.save(plotting.accuracy_panel(accuracies()), "panel")
        figures.append((paths.figures() / "panel.svg").read_bytes())
    assert figures[0] == figures[1] and b"SynFlow" in figures[0]
    with Image.open(paths.figures() / "panel.png") as image:
        assert image.width > 500


def test_a_heatmap_writes_its_numbers():
    figure = plotting.heatmap(pd.DataFrame([[1.0, -0.25], [-0.25, 1.0]]), "correlation")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "-0.25", "-0.25", "1.00"]
