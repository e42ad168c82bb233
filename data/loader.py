"""Batches of token windows: the batch of step n is a pure function of (seed, n).

World size and micro-batch only decide who reads which rows of the global batch, so two optimizers see the same tokens
in the same order, and a resumed run needs nothing but its step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.shards import TokenDataset

ORDERS = ("random", "shuffled")
Indices = np.ndarray[Any, np.dtype[np.uint64]]


class Batch(NamedTuple):
    """One micro-batch."""

    inputs: Tensor  # (B, T) int64, on the device
    targets: Tensor  # (B, T) int64: inputs, one token later
    rows: Sequence[int]  # index of each row within the global batch; -1: to be computed, but counted for nothing


class TokenLoader:
    """This rank's micro-batches of every step's global batch.

    order: "random" draws windows with replacement from anywhere in the data; "shuffled" visits every window of a
    gapless grid once per epoch, in another order each epoch. The next step is read ahead on one thread.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_length(dataset, seq_len)
        _check_divisible(global_batch, micro_batch, world_size)
        if seed < 0:
            raise DataError(f"seed={seed} must be >= 0")
        if order not in ORDERS:
            raise DataError(f"data.order={order!r} must be one of {', '.join(ORDERS)}")
        self._dataset, self._seq_len, self._device = dataset, seq_len, torch.device(device)
        self._global_batch, self._micro_batch, self._seed, self._order = global_batch, micro_batch, seed, order
        self._rows = range(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[Tensor]] = {}

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of the global batch of `step`, in order, on the device."""
        ahead = self._ahead.get(step)  # a wrong guess costs a read, not correctness
        windows = self._read(step) if ahead is None else ahead.result()
        self._ahead = {step + 1: self._thread.submit(self._read, step + 1)}
        inputs, targets = windows.to(self._device, non_blocking=True)
        return [
            Batch(
                inputs[i : i + self._micro_batch],
                targets[i : i + self._micro_batch],
                self._rows[i : i + self._micro_batch],
            )
            for i in range(0, len(self._rows), self._micro_batch)
        ]

    def close(self) -> None:
        """Joins the prefetch thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Tensor:
        starts = self._starts(step)[self._rows.start : self._rows.stop]
        return _inputs_and_targets(self._dataset, starts, self._seq_len, self._device)

    def _starts(self, step: int) -> Indices:
        """First token of every row of the global batch, (global_batch,) uint64."""
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
            rows = epochs == epoch
            starts[rows] = permuted(windows[rows].astype(np.uint64), n_windows, self._seed, epoch)
        return starts * np.uint64(self._seq_len)


def eval_batches(
    dataset: TokenDataset,
    *,
    seq_len: int,
    n_sequences: int,
    micro_batch: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """n_sequences windows spread evenly over the split, none overlapping, the same ones every time.

    Spread, because neighbouring windows are of one document: the first few would measure how odd that one is. Rank r
    takes micro-batches r, r + world_size, ...; together the ranks cover the slice once. The last micro-batch may be
    smaller. All ranks get as many: at the end, one that lacks a micro-batch gets a first window that is row -1.
    """
    _check_length(dataset, seq_len)
    available = (dataset.n_tokens - 1) // seq_len
    if not 1 <= n_sequences <= available:
        raise DataError(
            f"evaluation wants {n_sequences} sequences of {seq_len} tokens, but {dataset.split} has {available}: "
            "evaluate on fewer, shorten block_size, or raise data.val_fraction"
        )
    for start in range(0, n_sequences, world_size * micro_batch):
        first = start + rank * micro_batch
        rows = range(first, min(first + micro_batch, n_sequences))
        starts = np.arange(rows.start, rows.stop) * available // n_sequences * seq_len if rows else np.zeros(1, int)
        windows = _inputs_and_targets(dataset, starts, seq_len, torch.device(device))
        inputs, targets = windows.to(device, non_blocking=True)
        yield Batch(inputs, targets, rows or (-1,))


def permuted(index: Indices, n: int, seed: int, epoch: int) -> Indices:
    """Where a pseudo-random permutation of range(n), one per (seed, epoch), sends each index; uint64.

    A Feistel network over the next power of four, applied again while it leads outside range(n) (Black and
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


def _inputs_and_targets(dataset: TokenDataset, starts: np.ndarray, seq_len: int, device: torch.device) -> Tensor:
    """(2, len(starts), seq_len) int64 in host memory, pinned where the device copies from it."""
    windows = dataset.read(starts, seq_len + 1)
    pair = torch.from_numpy(np.stack([windows[:, :-1], windows[:, 1:]]))
    return pair.pin_memory() if device.type == "cuda" else pair


def _check_length(dataset: TokenDataset, seq_len: int) -> None:
    if dataset.n_tokens < seq_len + 1:
        raise DataError(
            f"block_size={seq_len} is larger than the data: {dataset.split} of {dataset.path} has {dataset.n_tokens} "
            f"tokens, expected at least {seq_len + 1}"
        )


def _check_divisible(global_batch: int, micro_batch: int, world_size: int) -> None:
    unit = micro_batch * world_size
    if global_batch < 1 or global_batch % unit:
        below = global_batch // unit * unit
        nearest = " or ".join(str(value) for value in (below, below + unit) if value)
        raise DataError(
            f"global_batch={global_batch} must be a multiple of micro_batch * world_size = {micro_batch} * "
            f"{world_size} = {unit}; nearest: {nearest}"
        )
