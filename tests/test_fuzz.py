"""A few cases of fuzz.py, which runs hundreds."""

from tests import fuzz


def test_random_values_are_taken_as_typed_or_refused_in_one_line() -> None:
    assert fuzz.values(40, seed=0) == []


def test_random_damage_to_files_is_one_line_or_a_result() -> None:
    assert fuzz.run_files(30, seed=0, sample=False) == []
