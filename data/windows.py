"""Which windows of tokens a run reads: a pure function of seed, order and the number of a sequence.

Sequence s is row s % global_batch of step s // global_batch. A mixture's sequences go to its parts so that every block
of SHARES sequences has exactly each part's share, at places that depend on the seed; within a part, sequence k of the
part follows the order, as if it were the only one. Nothing but the number of the step is needed to continue.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from data.errors import DataError
from data.metadata import SHARES, Part

Numbers = np.ndarray[Any, np.dtype[np.uint64]]
NO_EPOCH = 1 << 63  # keys the places of parts, so that no epoch's permutation is among them


class Rows(NamedTuple):
    """Some sequences of a global batch, all of one part."""

    numbers: Numbers  # of each within the part's sequences, from the first step on
    draws: Numbers  # 64 random bits for each


def starts(parts: Sequence[Part], *, seq_len: int, global_batch: int, seed: int, order: str, step: int) -> Numbers:
    """Returns the first token of every sequence of the global batch of `step`, (global_batch,)."""
    # Raw 64-bit draws: their stream is fixed for good, that of numpy's distributions is not.
    draws = np.random.Philox(key=[seed, step]).random_raw(global_batch)
    sequences = np.arange(global_batch, dtype=np.uint64) + np.uint64(step * global_batch)
    owners, numbers = _assigned(tuple(part.share for part in parts), seed, sequences)
    found = np.empty(global_batch, np.uint64)
    for i, (part, first) in enumerate(zip(parts, _firsts(parts), strict=True)):
        mine = owners == i
        found[mine] = np.uint64(first) + ORDERS[order](Rows(numbers[mine], draws[mine]), part.n_tokens, seq_len, seed)
    return found


def spread(parts: Sequence[Part], *, seq_len: int, n_sequences: int, split: str) -> Numbers:
    """Returns the first tokens of n_sequences windows, spread evenly over each part, (n_sequences,).

    Every part has its share of them. Raises: DataError: if a part has fewer windows; split: names the whole.
    """
    found, fewer = [], _fewer(most_sequences(parts, seq_len))
    for part, first, n in zip(parts, _firsts(parts), apportioned(parts, n_sequences), strict=True):
        available = (part.n_tokens - 1) // seq_len
        if n_sequences < 1 or n > available:
            of = f" of {part.name}" if len(parts) > 1 else ""
            raise DataError(
                f"evaluation wants {n} sequences of {seq_len} tokens, but {split}{of} has {available}: "
                f"{fewer}take a smaller model.block_size, more text, or a larger data.val_fraction"
            )
        found.append(first + np.arange(n) * available // max(n, 1) * seq_len)
    return np.concatenate(found).astype(np.uint64)


def apportioned(parts: Sequence[Part], n_sequences: int) -> list[int]:
    """Returns how many of the sequences each part gets: its share, rounded so that the remainders are the smallest."""
    whole, rests = zip(*(divmod(n_sequences * part.share, SHARES) for part in parts), strict=True)
    found, left = list(whole), n_sequences - sum(whole)
    for i in sorted(range(len(parts)), key=lambda i: -rests[i])[:left]:
        found[i] += 1
    return found


def most_sequences(parts: Sequence[Part], seq_len: int) -> int:
    """Returns how many windows spread can find."""
    return min((part.n_tokens - 1) // seq_len * SHARES // part.share for part in parts)


def _fewer(most: int) -> str:
    return f"add eval_sequences={most} (evaluate.py: sequences={most}), or " if most else ""


def _random(rows: Rows, n_tokens: int, seq_len: int, seed: int) -> Numbers:
    """Windows anywhere, with replacement; the remainder favours none by more than n_tokens / 2**64."""
    return rows.draws % np.uint64(n_tokens - seq_len)


def _shuffled(rows: Rows, n_tokens: int, seq_len: int, seed: int) -> Numbers:
    """Every window of a gapless grid once per epoch, in another order each epoch."""
    n_windows = (n_tokens - 1) // seq_len
    epochs, windows = np.divmod(rows.numbers, np.uint64(n_windows))
    for epoch in np.unique(epochs).tolist():
        of_epoch = epochs == epoch
        windows[of_epoch] = permuted(windows[of_epoch], n_windows, seed, epoch)
    return windows * np.uint64(seq_len)


def _sequential(rows: Rows, n_tokens: int, seq_len: int, seed: int) -> Numbers:
    """Every window of a gapless grid once per epoch, as they lie."""
    return rows.numbers % np.uint64((n_tokens - 1) // seq_len) * np.uint64(seq_len)


ORDERS: Mapping[str, Callable[[Rows, int, int, int], Numbers]] = {
    "random": _random,
    "shuffled": _shuffled,
    "sequential": _sequential,
}


def _firsts(parts: Sequence[Part]) -> list[int]:
    """The first token of each part."""
    return list(accumulate((part.n_tokens for part in parts), initial=0))[:-1]


def _assigned(shares: tuple[int, ...], seed: int, sequences: Numbers) -> tuple[np.ndarray, Numbers]:
    """The part of each sequence, and its number among the sequences of that part."""
    blocks, places = np.divmod(sequences, np.uint64(SHARES))
    owners, numbers = np.empty(len(sequences), np.intp), np.empty(len(sequences), np.uint64)
    for block in np.unique(blocks).tolist():
        inside = blocks == block
        of_block, before = _block(shares, seed, block)
        owners[inside] = of_block[places[inside]]
        numbers[inside] = before[places[inside]] + np.array(shares, np.uint64)[owners[inside]] * np.uint64(block)
    return owners, numbers


@lru_cache(maxsize=4)
def _block(shares: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, Numbers]:
    """The part of each of SHARES sequences, and how many sequences of that part come before it in the block."""
    shuffled = permuted(np.arange(SHARES, dtype=np.uint64), SHARES, seed, NO_EPOCH + block)
    owners = np.searchsorted(np.cumsum(shares), shuffled, "right")
    before = np.empty(SHARES, np.uint64)
    for i, share in enumerate(shares):
        before[owners == i] = np.arange(share, dtype=np.uint64)
    return owners, before


def permuted(index: Numbers, n: int, seed: int, epoch: int) -> Numbers:
    """Returns where a pseudo-random permutation of range(n), one per (seed, epoch), moves each index; uint64.

    A Feistel network over the next power of four, applied again to results outside range(n) (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"): no table, so it costs the same for any n.
    """
    half = np.uint64(max((n - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.Philox(key=[seed, epoch]).random_raw(6)
    index = _feistel(index, keys, half, mask)
    while len(outside := np.flatnonzero(index >= n)):
        index[outside] = _feistel(index[outside], keys, half, mask)
    return index


def _feistel(index: Numbers, keys: Numbers, half: np.uint64, mask: np.uint64) -> Numbers:
    left, right = index >> half, index & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(x: Numbers) -> Numbers:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
