"""Parts run in fresh processes and come back in order, whatever their number."""

import os

import pytest

from synflow_lib.errors import InputError
from synflow_lib.experiments.pool import each, processes

PARTS = [{"base": base, "exp": 2} for base in (5, 3, 4)]


@pytest.mark.parametrize("number", ["1", "2"])
def test_results_come_in_the_order_of_the_parts(monkeypatch, number):
    monkeypatch.setenv("SYNFLOW_PROCESSES", number)
    assert each(pow, PARTS) == [25, 9, 16]


def test_parts_run_elsewhere(monkeypatch):
    monkeypatch.setenv("SYNFLOW_PROCESSES", "2")
    assert os.getpid() not in each(os.getpid, [{}, {}])


@pytest.mark.parametrize("number", ["1", "2"])
def test_an_error_in_a_part_is_raised_here(monkeypatch, number):
    monkeypatch.setenv("SYNFLOW_PROCESSES", number)
    with pytest.raises(TypeError):
        each(pow, [*PARTS, {"base": "two", "exp": 2}])


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_that_is_none_is_a_sentence(monkeypatch, number):
    monkeypatch.setenv("SYNFLOW_PROCESSES", number)
    with pytest.raises(InputError, match=f"SYNFLOW_PROCESSES must be a number of processes such as 4, not '{number}'"):
        each(pow, PARTS)


def test_no_more_than_the_cores_and_no_more_than_two_unless_asked(monkeypatch):
    monkeypatch.delenv("SYNFLOW_PROCESSES", raising=False)
    assert processes() in (1, 2)
    monkeypatch.setenv("SYNFLOW_PROCESSES", "7")
    assert processes() == 7
