"""A wrong name gets the names that exist, and the closest one."""

import pytest

from synflow_lib.errors import InputError, lookup, suggest


def test_lookup_returns_the_value_or_names_the_choices():
    assert lookup({"snip": 1}, "snip", "method") == 1
    with pytest.raises(InputError, match=r"unknown method 'snp'; did you mean 'snip'\? \(known: snip, grasp\)"):
        lookup({"snip": 1, "grasp": 2}, "snp", "method")


def test_nothing_is_suggested_for_a_name_that_is_far_from_all():
    assert suggest("zzz", ["snip"]) == ""
