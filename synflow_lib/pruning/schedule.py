"""How many weights stay after each iteration, from 1 at the start to 1/rho at the end."""

from collections.abc import Callable


def exponential(k: int, iterations: int, compression: float) -> float:
    """Fraction kept after iteration k of n: rho^(-k/n) (Tanaka et al. 2020, Algorithm 1)."""
    return compression ** (-k / iterations)


def linear(k: int, iterations: int, compression: float) -> float:
    """Fraction kept after iteration k of n: 1 - (1 - 1/rho) k/n, the alternative of the paper's figure 7."""
    return 1 - (1 - 1 / compression) * k / iterations


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {"exponential": exponential, "linear": linear}
