"""Every test runs in folders of its own; only the data sets, which never change once made, are shared."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch

# (kind, source, *tags) -> a cell; "m" for Markdown, "c" for code
Cell = tuple[str, ...]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and sums must not depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts background jobs with interrupts ignored, and children inherit that; some tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with the real data sets; tests that need them are skipped where it is not named."""
    if "SYNFLOW_TEST_IMAGES" not in os.environ:
        pytest.skip("SYNFLOW_TEST_IMAGES names no folder with the real images")
    return Path(os.environ["SYNFLOW_TEST_IMAGES"])


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNFLOW_DATA", str(data_folder))
    for name in ("RECORDS", "FIGURES", "BUILD"):
        monkeypatch.setenv(f"SYNFLOW_{name}", str(tmp_path / name.lower()))
    for name in ("SYNFLOW_HOME", "SYNFLOW_THREADS", "SYNFLOW_TIMELESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function (name, *cells) -> path that writes a chapter into a project of its own, which is now home."""
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "notebooks"
    folder.mkdir(parents=True)

    def write(name: str, *cells: Cell) -> Path:
        kinds = {"m": nbformat.v4.new_markdown_cell, "c": nbformat.v4.new_code_cell}
        made = []
        for position, (kind, source, *tags) in enumerate(cells):
            made.append(kinds[kind](source, id=f"cell-{position}"))
            if tags:
                made[-1].metadata.tags = tags
        # a kernel that no computer has: chapters must run in the Python that runs them
        metadata = {"kernelspec": {"name": "someone-elses", "display_name": "x", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=metadata), folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    return write
