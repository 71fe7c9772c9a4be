"""Chapters run with other networks and other images than the ones they are published with."""

import nbformat
import pytest

from synflow_lib import notebook, paths

PAPERMILL = [
    ("00", {"model": "mlp"}),
    ("02", {"dataset": "cifar100", "model": "mlp"}),
    ("03", {"dataset": "cifar10", "model": "resnet18", "width": 0.125, "cuts": 20}),
    ("09", {"dataset": "cifar10", "width": 0.125, "repeats": 1, "batch_size": 8}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chapter", "parameters"), PAPERMILL, ids=[chapter for chapter, _ in PAPERMILL])
def test_it_runs_to_its_end(chapter, parameters, request, monkeypatch, tmp_path):
    if "dataset" in parameters:
        monkeypatch.setenv("SYNFLOW_DATA", str(request.getfixturevalue("real_images")))
    (path,) = paths.notebooks().glob(f"{chapter}_*.ipynb")
    ran = notebook.execute(path, tmp_path / path.name, parameters, timeout=300)
    cells = [cell for cell in nbformat.read(ran, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells if cell.source)
