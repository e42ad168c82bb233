"""Decides which part of a corpus is for validation.

Several documents are split by document. A single one, as in nanoGPT's first tutorial, is split by position: its
beginning is for training, the rest for validation.
"""

import math
from itertools import pairwise

import numpy as np

from data.errors import DataError
from data.tokenizers import Tokenizer

USUAL_OF_DOCUMENTS = 0.05
USUAL_OF_ONE_TEXT = 0.1  # as in nanoGPT, data/shakespeare_char/prepare.py
REACH = (
    1000  # tokens by which a split by position may move to the end of a line or word; at most a fiftieth of the text
)


def usual_fraction(n_documents: int) -> float:
    """Returns the val_fraction of a corpus for which none is given."""
    return USUAL_OF_ONE_TEXT if n_documents == 1 else USUAL_OF_DOCUMENTS


def val_documents(n_documents: int, val_fraction: float, split_seed: int) -> np.ndarray:
    """Returns the documents that `datasets.Dataset.train_test_split` puts into its test split, in its order.

    Raises: DataError: if that leaves none to train on.
    """
    n_val = math.ceil(val_fraction * n_documents)
    if not 0 < n_val < n_documents:
        raise DataError(
            f"data.val_fraction={val_fraction} of {n_documents} documents leaves none to train on: "
            f"take at most {(n_documents - 1) / n_documents:.3f}"
        )
    return np.random.default_rng(split_seed).permutation(n_documents)[:n_val]


def train_tokens(tokens: np.ndarray, tokenizer: Tokenizer, val_fraction: float) -> int:
    """Returns how many of one text's tokens are for training: those of the first 1 - val_fraction of its bytes.

    tokens: (n,) without end of text. The number is moved to the nearest end of a line, else of a word, if there is
    one within REACH; a character is never split.

    Raises: DataError: if the text cannot be divided.
    """
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.eot)]
    target = _tokens_of_bytes(tokens, tokenizer.byte_lengths(), 1 - val_fraction)
    reach = min(REACH, len(tokens) // 50)
    # A character has up to four bytes, and so as many tokens.
    first = max(target - reach - 4, 1)
    near = [pieces[i] for i in tokens[first - 1 : target + reach + 5].tolist()]
    borders = [(n, before, after) for n, (before, after) in enumerate(pairwise(near), first)]
    borders = [border for border in borders if border[2][0] & 0xC0 != 0x80]  # a continuation byte of UTF-8
    close = [border for border in borders if abs(border[0] - target) <= reach]
    lines = [n for n, before, _ in close if before.endswith(b"\n")]
    words = [n for n, before, after in close if before[-1:].isspace() or after[:1].isspace()]
    for candidates in (lines, words, [n for n, _, _ in borders]):
        if candidates:
            return min(candidates, key=lambda n: abs(n - target))
    raise DataError(
        f"the corpus is one document of {len(tokens)} tokens: too short to train on a part and validate on the rest"
    )


def _tokens_of_bytes(tokens: np.ndarray, lengths: np.ndarray, fraction: float) -> int:
    """How many tokens the first `fraction` of the bytes takes, block by block: a text may have 2**30 bytes."""
    blocks = [tokens[i : i + (1 << 20)] for i in range(0, len(tokens), 1 << 20)]
    goal = fraction * sum(int(lengths[block].sum()) for block in blocks)
    for i, block in enumerate(blocks):
        if goal <= (n_bytes := int(lengths[block].sum())):
            return (i << 20) + int(np.searchsorted(lengths[block].cumsum(), goal)) + 1
        goal -= n_bytes
    return len(tokens)
