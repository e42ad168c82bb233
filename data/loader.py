"""Batches of token windows: the batch of step n is a pure function of (seed, n).

The number of ranks and the micro-batch only decide which rank reads which sequences of the global batch. So two
optimizers see the same tokens in the same order, and a run that continues needs nothing but its step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.metadata import Part
from data.shards import TokenDataset
from data.windows import ORDERS, spread, starts

PINNED = ("cuda", "xpu")  # types of devices that copy from pinned host memory while the host goes on
PADDING = -1  # see Batch.indices


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

    @property
    def parts(self) -> Sequence[Part]:
        """The stretches that windows are read from, see windows.py."""

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the windows of `length` tokens that begin at starts, (len(starts), length) int64."""


class TokenLoader:
    """Reads this rank's micro-batches of every step's global batch.

    order: "random" draws windows with replacement from anywhere in the data; "shuffled" visits every window of a
    gapless grid once per epoch, in another order each epoch; "sequential" visits them as
    they lie. See windows.py. data_rank, data_ranks: which of how many equal shares of the global batch to read. A
    thread reads the next step ahead.

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
        inputs, targets = _moved(windows, self._device)
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
        places = starts(
            self._dataset.parts,
            seq_len=self._seq_len,
            global_batch=self._global_batch,
            seed=self._seed,
            order=self._order,
            step=step,
        )
        mine = places[self._indices.start : self._indices.stop]
        return _inputs_and_targets(self._dataset, mine, self._seq_len, self._device)


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
    all_places = spread(dataset.parts, seq_len=seq_len, n_sequences=n_sequences, split=dataset.split)
    for start in range(0, n_sequences, data_ranks * micro_batch):
        first = start + data_rank * micro_batch
        indices = range(first, min(first + micro_batch, n_sequences))
        places = all_places[indices.start : indices.stop] if indices else all_places[:1]
        windows = _inputs_and_targets(dataset, places, seq_len, torch.device(device))
        inputs, targets = _moved(windows, torch.device(device))
        yield Batch(inputs, targets, indices or (PADDING,))


def _inputs_and_targets(dataset: Tokens, places: np.ndarray, seq_len: int, device: torch.device) -> Tensor:
    """(2, len(places), seq_len) int64 in host memory, pinned for devices that can copy it while the host goes on."""
    windows = dataset.read(places, seq_len + 1)
    pair = torch.from_numpy(np.stack([windows[:, :-1], windows[:, 1:]]))
    return pair.pin_memory() if device.type in PINNED else pair


def _moved(windows: Tensor, device: torch.device) -> Tensor:
    """The windows on the device; the host only waits where they are not pinned, and so could be overwritten."""
    return windows.to(device, non_blocking=device.type in PINNED)


def _check_length(dataset: Tokens, seq_len: int) -> None:
    if short := [part for part in dataset.parts if part.n_tokens < seq_len + 1]:
        raise DataError(
            f"block_size={seq_len} is larger than the data: {dataset.split} of {short[0].name} has "
            f"{short[0].n_tokens} tokens, expected at least {seq_len + 1}"
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
