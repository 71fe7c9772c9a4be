"""The benchmark: a grid of runs, engines that do them, records of what came out, and the authors' numbers."""

from synflow_lib.benchmark import published, records, results
from synflow_lib.benchmark.comparison import compare
from synflow_lib.benchmark.engines import ENGINES, run_all
from synflow_lib.benchmark.grid import PUBLISHED_GRID, PUBLISHED_PANELS, Run, grid, published_grid
from synflow_lib.benchmark.run import run

__all__ = [
    "ENGINES",
    "PUBLISHED_GRID",
    "PUBLISHED_PANELS",
    "Run",
    "compare",
    "grid",
    "published",
    "published_grid",
    "records",
    "results",
    "run",
    "run_all",
]
