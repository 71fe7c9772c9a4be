"""The quick selection is the sorted one, whatever the values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synflow_lib.pruning import select

values = st.sampled_from([0.0, 1.0, 2.0, 1e-300, 1e300, -1.0, torch.finfo(float).min, -torch.inf]) | st.floats(0, 10)


def by_sorting(vector, number):
    order = sorted(range(len(vector)), key=lambda i: (vector[i], i), reverse=True)[:number]
    return [i in order for i in range(len(vector))]


@settings(max_examples=200, deadline=None)
@given(vector=st.lists(values, min_size=1, max_size=40), data=st.data())
def test_the_largest_are_those_of_a_sort_with_later_before_earlier_among_equals(vector, data):
    number = data.draw(st.integers(0, len(vector)))
    chosen, lowest = select.largest(torch.tensor(vector, dtype=torch.float64), number)
    assert chosen.tolist() == by_sorting(vector, number)
    assert lowest == (sorted(vector, reverse=True)[number - 1] if number else torch.inf)


@settings(max_examples=200, deadline=None)
@given(vector=st.lists(values, min_size=2, max_size=40), data=st.data())
def test_the_way_of_a_gpu_finds_the_same(vector, data):
    number, vector = data.draw(st.integers(1, len(vector) - 1)), torch.tensor(vector, dtype=torch.float64)
    found = []
    for select_ in (select._on_cpu, select._on_device):
        marks = torch.empty(len(vector), dtype=torch.bool)
        border, equals, surplus = select_(vector, number, marks)
        found.append((border, equals.tolist(), surplus, marks.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("pattern", ["random", "periodic", "sorted", "two values"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_long_vector_that_misleads_the_sample_is_selected_exactly_too(pattern, share):
    size, generator = 3 * select.SAMPLE + 7, torch.Generator().manual_seed(0)
    vector = torch.rand(size, generator=generator)
    if pattern == "periodic":
        vector[::3] = 5  # every value that the sample sees
    elif pattern == "sorted":
        vector = vector.sort().values
    elif pattern == "two values":
        vector = vector.round()
    number = int(share * size)
    chosen, lowest = select.largest(vector, number)
    expected = torch.zeros(size, dtype=torch.bool)
    expected[vector.double().flip(0).sort(descending=True, stable=True).indices[:number].mul(-1).add(size - 1)] = True
    assert torch.equal(chosen, expected)
    marks = torch.empty(size, dtype=torch.bool)
    border, equals, surplus = select._on_device(vector, number, marks)
    select.unmark(marks, equals, surplus, None)
    assert torch.equal(marks, expected) and border == lowest


def test_ties_are_broken_by_the_position_that_is_given():
    vector = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert select.largest(vector, 1)[0].tolist() == [False, False, True, False]
    assert select.largest(vector, 1, lambda index: -index)[0].tolist() == [True, False, False, False]


def test_counting_and_clearing_are_what_they_say():
    vector, kept = torch.tensor([1.5, -2.0, 3.0]), torch.tensor([True, False, True])
    select.clear_all_but(vector, kept)
    assert vector.tolist() == [1.5, 0.0, 3.0] and select.count(kept) == 2


@settings(max_examples=100, deadline=None)
@given(vector=st.lists(st.integers(0, 3), min_size=1, max_size=30), data=st.data())
def test_a_sieve_knows_the_sum_of_what_it_does_not_mark(vector, data):
    number = data.draw(st.integers(1, len(vector)))
    middle = data.draw(st.integers(0, len(vector)))
    low, high = sorted(data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    values = torch.tensor(vector, dtype=torch.float64)
    marks = torch.empty(len(vector), dtype=torch.bool)
    sieve = select.Sieve(marks, low, high, summed=True)
    sieve.add(values[:middle].numpy(), 0)
    sieve.add(values[middle:].numpy(), middle)
    found = sieve.border(number)
    border = sorted(vector, reverse=True)[number - 1]
    assert (found is not None) == (low <= border <= high)
    if found is not None:
        select.unmark(marks, *found[1:], None)
        assert found[0] == border and marks.tolist() == by_sorting(vector, number)
        assert sieve.below == float(values[~marks].sum())
