"""A few dozen cases of fuzz_documents.py, which runs more: python tests/data/fuzz_documents.py --n 200 --seed 0."""

from pathlib import Path

import fuzz_documents
import pytest


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_corpora_are_prepared_exactly_or_refused_in_one_line(tmp_path: Path, first: int) -> None:
    outcomes = {fuzz_documents.check(tmp_path, seed) for seed in range(first, first + 20)}
    assert {"refused", "split by document"} <= outcomes
