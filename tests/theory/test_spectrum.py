"""Both ways to singular values agree with each other and with the matrix."""

import pytest
import torch
from torch.nn import functional as F

from synflow_lib.errors import InputError
from synflow_lib.theory.spectrum import LinearMap, exact, lanczos, spectrum

KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense(matrix: torch.Tensor) -> LinearMap:
    return LinearMap(lambda x: matrix @ x, matrix.new_zeros(matrix.shape[1]))


def convolution(size: int = 6) -> LinearMap:
    return LinearMap(lambda x: F.conv2d(x, KERNEL, padding=1), KERNEL.new_zeros(1, 3, size, size))


def test_the_products_are_those_of_the_matrix():
    operator = convolution()
    matrix = operator.matrix()
    v, u = (torch.randn(n, dtype=torch.float64) for n in reversed(operator.shape))
    assert matrix.shape == operator.shape == (144, 108)
    torch.testing.assert_close(operator.times(v), matrix @ v)
    torch.testing.assert_close(operator.transposed_times(u), matrix.T @ u)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_exact_values_are_those_of_the_matrix(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    found = exact(dense(matrix))
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix))
    assert found.summary()["std"] == pytest.approx(float(found.values.std(correction=0)))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_lanczos_with_all_its_steps_finds_every_value(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    found = lanczos(dense(matrix), steps=100, probes=1)
    torch.testing.assert_close(found.values.sort(descending=True).values, torch.linalg.svdvals(matrix))
    assert float(found.weights.sum()) == pytest.approx(1)


def test_lanczos_of_a_convolution_agrees_with_the_exact_values():
    true, found = (way(convolution(12)).summary() for way in (exact, lanczos))
    assert found["max"] == pytest.approx(true["max"], rel=1e-6)
    assert found["mean"] == pytest.approx(true["mean"], rel=0.05)
    assert found["std"] == pytest.approx(true["std"], rel=0.05)
    assert true["min"] <= found["min"] < true["min"] + 0.1 * true["max"]


def test_lanczos_estimates_mean_and_deviation_without_bias():
    true = exact(convolution()).summary()
    several = [lanczos(convolution(), steps=30, probes=4, seed=seed).summary() for seed in range(20)]
    for name in ("mean", "std"):
        values = torch.tensor([found[name] for found in several])
        assert float(values.mean()) == pytest.approx(true[name], rel=0.02)


def test_an_isometry_and_a_map_of_low_rank_end_early():
    q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    torch.testing.assert_close(lanczos(dense(q)).values, torch.ones(4, dtype=torch.float64))
    low = torch.randn(20, 3, dtype=torch.float64) @ torch.randn(3, 15, dtype=torch.float64)
    summary = lanczos(dense(low)).summary()
    assert summary["min"] == pytest.approx(0, abs=1e-9)
    assert summary["max"] == pytest.approx(float(torch.linalg.matrix_norm(low, 2)))


def test_nothing_passes_a_map_of_zeros():
    nothing = lanczos(dense(torch.zeros(6, 9, dtype=torch.float64))).summary()
    assert nothing == {"mean": 0, "std": 0, "min": 0, "max": 0}


def test_auto_is_exact_for_small_maps_and_an_unknown_way_is_refused():
    assert len(spectrum(convolution()).values) == 108
    assert len(spectrum(convolution(), "lanczos", steps=5, probes=2).values) == 10
    with pytest.raises(InputError, match="did you mean 'lanczos'"):
        spectrum(convolution(), "lanczo")


@pytest.mark.parametrize("options", [{"steps": 0}, {"probes": 0}])
def test_lanczos_without_steps_or_probes_is_one_sentence(options):
    with pytest.raises(InputError, match="steps >= 1 and probes >= 1"):
        spectrum(convolution(), "lanczos", **options)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_map_that_is_not_finite_is_one_sentence(method):
    with pytest.raises(InputError, match="not finite has no singular values"):
        spectrum(dense(torch.full((3, 4), torch.nan, dtype=torch.float64)), method)
