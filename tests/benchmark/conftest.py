"""Folders of their own for data and records, and runs that take a fraction of a second."""

import pytest

from synflow_lib.benchmark import Run


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """The digits are made once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def folders(tmp_path, data_folder, monkeypatch):
    """Where data and records lie during each test."""
    monkeypatch.setenv("SYNFLOW_DATA", str(data_folder))
    monkeypatch.setenv("SYNFLOW_RECORDS", str(tmp_path / "records"))
    return tmp_path


@pytest.fixture
def quick() -> Run:
    return Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.25)
