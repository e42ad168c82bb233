"""Losses of unigram and bigram tables, what a model must beat to have learned more than frequencies (check R7)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import TokenDataset

MOST_TOKENS = 20_000_000  # counted; more would take long and lower the loss little
MOST_VALIDATION = 500_000  # tokens that are predicted
WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the unigram table in the bigram's rows, in tokens; the best one counts


class Tables(NamedTuple):
    """Losses on validation tokens, nats per token, of tables from so many training tokens."""

    unigram: float
    bigram: float
    tokens: int


def tables(path: Path, tokens: int) -> Tables:
    """The tables of the first `tokens` training tokens of a prepared data set, or of MOST_TOKENS.

    Both are smoothed; the bigram's with the weight that is best on the validation tokens themselves, which favours it.

    Raises: ValueError: if the data set cannot be read.
    """
    n = min(tokens, MOST_TOKENS)
    train, val = (
        _first(TokenDataset.open(path, split), most) for split, most in (("train", n), ("val", MOST_VALIDATION))
    )
    size = int(max(train.max(), val.max())) + 1
    counts = np.bincount(train, minlength=size) + 1.0
    unigram = counts / counts.sum()
    pairs, seen = np.unique(train[:-1] * size + train[1:], return_counts=True)
    wanted = val[:-1] * size + val[1:]
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    together = np.where(pairs[at] == wanted, seen[at], 0)
    first = np.bincount(train[:-1], minlength=size)[val[:-1]]
    bigrams = [float(-np.log((together + weight * unigram[val[1:]]) / (first + weight)).mean()) for weight in WEIGHTS]
    return Tables(float(-np.log(unigram[val]).mean()), min(bigrams), len(train))


def _first(dataset: TokenDataset, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The first tokens of a split, (n,) int64."""
    n = min(most, dataset.n_tokens)
    return np.asarray(dataset.read(np.zeros(1, np.int64), n)[0], dtype=np.int64)
