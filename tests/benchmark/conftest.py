"""A run that takes a fraction of a second."""

import pytest

from synflow_lib.benchmark import Run


@pytest.fixture
def quick() -> Run:
    return Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.25)
