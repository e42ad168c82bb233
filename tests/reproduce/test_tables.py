"""The tables of frequencies, beside counts by hand."""

from math import log
from pathlib import Path

import numpy as np
import pytest

from data import TokenDataset
from reproduce import tables as module
from reproduce.tables import tables

TRAIN = [0, 1, 0, 1, 0, 2]
VAL = [0, 1, 2, 0]


class Held:
    """A split in memory."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.n_tokens = np.asarray(tokens), len(tokens)

    def read(self, starts: np.ndarray, n: int) -> np.ndarray:
        return np.stack([self.tokens[start : start + n] for start in starts])


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """What a data set holds."""
    held = {"train": TRAIN, "val": VAL}
    monkeypatch.setattr(TokenDataset, "open", lambda path, split: Held(held[split]))
    return held


def test_losses_are_those_of_tables_by_hand(splits: dict[str, list[int]]) -> None:
    found = tables(Path("unused"), 100)
    # Counts 3, 2 and 1, each with one added: 4, 3 and 2 of 9.
    p = [4 / 9, 3 / 9, 2 / 9]
    assert found.unigram == pytest.approx(-(2 * log(p[0]) + log(p[1]) + log(p[2])) / 4)
    # Pairs: 01 twice, 10 twice, 02 once; 0 and 1 come first 3 and 2 times, 2 never. The validation's are 01, 12, 20;
    # a row is the pairs' counts and w tokens of the unigram table.
    by_weight = [
        -(log((2 + w * p[1]) / (3 + w)) + log((0 + w * p[2]) / (2 + w)) + log((0 + w * p[0]) / (0 + w))) / 3
        for w in (1, 3, 10, 30, 100)
    ]
    assert found.bigram == pytest.approx(min(by_weight))
    assert found.tokens == 6


def test_only_the_tokens_seen_are_counted(splits: dict[str, list[int]]) -> None:
    assert tables(Path("unused"), 4).tokens == 4
    assert tables(Path("unused"), 4) == tables(Path("unused"), 4)._replace(tokens=4)
    assert tables(Path("unused"), 4).unigram != tables(Path("unused"), 6).unigram


def test_a_token_that_only_validation_has_costs_what_one_count_of_it_would(splits: dict[str, list[int]]) -> None:
    splits["train"], splits["val"] = [0, 1, 0, 1], [3, 0]
    # 2, 2, 0 and 0 counts with one added, of 8
    assert tables(Path("unused"), 4).unigram == pytest.approx(-(log(1 / 8) + log(3 / 8)) / 2)


def test_pairs_that_repeat_are_predicted_by_pairs(splits: dict[str, list[int]]) -> None:
    splits["train"], splits["val"] = [0, 1, 2, 3] * 500, [2, 3, 0, 1] * 50
    found = tables(Path("unused"), 10_000)
    assert found.unigram == pytest.approx(log(4), abs=1e-3)
    assert found.bigram < 0.01


def test_long_data_are_counted_in_part(splits: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", 3)
    monkeypatch.setattr(module, "MOST_VALIDATION", 2)
    found = tables(Path("unused"), 100)
    assert found.tokens == 3
    assert found.unigram == pytest.approx(-(log(3 / 5) + log(2 / 5)) / 2)  # counts 2 and 1; of 0 and 1
