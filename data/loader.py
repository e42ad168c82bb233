"""Batches of token windows: the batch of step n is a pure function of (seed, n).

The number of ranks and the micro-batch only decide which rank reads which sequences of the global batch. So two
optimizers see the same tokens in the same order, and a run that continues needs nothing but its step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.shards import TokenDataset

ORDERS = ("random", "shuffled")
PADDING = -1  # see Batch.indices
Indices = np.ndarray[Any, np.dtype[np.uint64]]


class Batch(NamedTuple):
    """A micro-batch of B sequences."""

    inputs: Tensor  # (B, T) int64, on the device
    targets: Tensor  # (B, T) int64: inputs, one token later
    indices: Sequence[int]  # of each sequence within the global batch; PADDING is computed but not counted


class Tokens(Protocol):
    """What windows of tokens are read from: a split of a data set, or text in memory."""

    path: Path
    split: str
    n_tokens: int

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the windows of `length` tokens that begin at starts, (len(starts), length) int64."""


class TokenLoader:
    """Reads this rank's micro-batches of every step's global batch.

    order: "random" draws windows with replacement from anywhere in the data; "shuffled" visits every window of a
    gapless grid once per epoch, in another order each epoch. data_rank, data_ranks: which of how many equal shares of
    the global batch to read. A thread reads the next step ahead.

    Raises: DataError: if the settings do not fit each other or the data.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        seq_len: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        order: str = "random",
        device: torch.device | str,
        data_rank: int = 0,
        data_ranks: int = 1,
    ) -> None:
        _check_length(dataset, seq_len)
        _check_divisible(global_batch, micro_batch, data_ranks)
        if seed < 0:
            raise DataError(f"seed={seed} must be >= 0")
        if order not in ORDERS:
            raise DataError(f"data.order={order!r} must be one of {', '.join(ORDERS)}")
        self._dataset, self._seq_len, self._device = dataset, seq_len, torch.device(device)
        self._global_batch, self._micro_batch, self._seed, self._order = global_batch, micro_batch, seed, order
        share = global_batch // data_ranks
        self._indices = range(data_rank * share, (data_rank + 1) * share)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[Tensor]] = {}

    def batches(self, step: int) -> list[Batch]:
        """Returns this rank's micro-batches of the global batch of `step`, in order, on the device."""
        ahead = self._ahead.get(step)  # if another step was read ahead, this one is read now
        windows = self._read(step) if ahead is None else ahead.result()
        self._ahead = {step + 1: self._thread.submit(self._read, step + 1)}
        inputs, targets = windows.to(self._device, non_blocking=True)
        return [
            Batch(
                inputs[i : i + self._micro_batch],
                targets[i : i + self._micro_batch],
                self._indices[i : i + self._micro_batch],
            )
            for i in range(0, len(self._indices), self._micro_batch)
        ]

    def close(self) -> None:
        """Ends the prefetch thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        starts = self._starts(step)[self._indices.start : self._indices.stop]
        return _inputs_and_targets(self._dataset, starts, self._seq_len, self._device)

    def _starts(self, step: int) -> Indices:
        """The first token of every sequence of the global batch, (global_batch,) uint64."""
        n_tokens = self._dataset.n_tokens
        if self._order == "random":
            # Raw 64-bit draws: their stream is fixed for good, that of numpy's distributions is not.
            # The remainder favours no window by more than n_tokens / 2**64.
            draws = np.random.Philox(key=[self._seed, step]).random_raw(self._global_batch)
            return draws % np.uint64(n_tokens - self._seq_len)
        n_windows = (n_tokens - 1) // self._seq_len
        epochs, windows = np.divmod(np.arange(self._global_batch) + step * self._global_batch, n_windows)
        starts = np.empty(self._global_batch, np.uint64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            starts[of_epoch] = permuted(windows[of_epoch].astype(np.uint64), n_windows, self._seed, epoch)
        return starts * np.uint64(self._seq_len)


def eval_batches(
    dataset: Tokens,
    *,
    seq_len: int,
    n_sequences: int,
    micro_batch: int,
    device: torch.device | str,
    data_rank: int = 0,
    data_ranks: int = 1,
) -> Iterator[Batch]:
    """Yields this rank's share of n_sequences windows spread evenly over the split, the same ones every time.

    The windows do not overlap; they are spread, because neighbouring ones are of one document, which may be unusual.
    Rank r of R data ranks takes micro-batches r, r + R, ...; together the ranks cover the windows once. The last
    micro-batch may be smaller. All ranks get the same number: a rank without a last one gets a window of PADDING.

    Raises: DataError: if the split has fewer windows.
    """
    _check_length(dataset, seq_len)
    available = (dataset.n_tokens - 1) // seq_len
    if not 1 <= n_sequences <= available:
        raise DataError(
            f"evaluation wants {n_sequences} sequences of {seq_len} tokens, but {dataset.split} has {available}: "
            "evaluate on fewer, shorten block_size, or raise data.val_fraction"
        )
    for start in range(0, n_sequences, data_ranks * micro_batch):
        first = start + data_rank * micro_batch
        indices = range(first, min(first + micro_batch, n_sequences))
        windows_of = np.arange(indices.start, indices.stop) * available // n_sequences
        starts = windows_of * seq_len if indices else np.zeros(1, int)
        windows = _inputs_and_targets(dataset, starts, seq_len, torch.device(device))
        inputs, targets = windows.to(device, non_blocking=True)
        yield Batch(inputs, targets, indices or (PADDING,))


def permuted(index: Indices, n: int, seed: int, epoch: int) -> Indices:
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


def _feistel(index: Indices, keys: Indices, half: np.uint64, mask: np.uint64) -> Indices:
    left, right = index >> half, index & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(x: Indices) -> Indices:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _inputs_and_targets(dataset: Tokens, starts: np.ndarray, seq_len: int, device: torch.device) -> Tensor:
    """(2, len(starts), seq_len) int64 in host memory, pinned for CUDA devices."""
    windows = dataset.read(starts, seq_len + 1)
    pair = torch.from_numpy(np.stack([windows[:, :-1], windows[:, 1:]]))
    return pair.pin_memory() if device.type == "cuda" else pair


def _check_length(dataset: Tokens, seq_len: int) -> None:
    if dataset.n_tokens < seq_len + 1:
        raise DataError(
            f"block_size={seq_len} is larger than the data: {dataset.split} of {dataset.path} has {dataset.n_tokens} "
            f"tokens, expected at least {seq_len + 1}"
        )


def _check_divisible(global_batch: int, micro_batch: int, data_ranks: int) -> None:
    unit = micro_batch * data_ranks
    if global_batch < 1 or global_batch % unit:
        below = global_batch // unit * unit
        nearest = " or ".join(str(value) for value in (below, below + unit) if value)
        raise DataError(
            f"global_batch={global_batch} must be a multiple of micro_batch * ranks = {micro_batch} * "
            f"{data_ranks} = {unit}; nearest: {nearest}"
        )
