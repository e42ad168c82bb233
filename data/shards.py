"""The prepared data set on disk: shards of raw little-endian token ids and one JSON file that describes them.

dataset.json         counts, dtype, settings, and size, sha256 and largest id of every shard; written last
tokenizer.json       the tokenizer that encoded it
source_files.jsonl   the files that it was made from, see identity.py
train_00000.bin      shard_tokens ids each, fewer in the last one; no header
val_00000.bin
verified.json        which files have been hashed, with size, times and inode; safe to delete

Of a data set whose tokens lie elsewhere (token_files.py, mixture.py) the folder holds all but the shards.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data import verified
from data.descriptors import Descriptors, descriptor_budget
from data.errors import DataError, missing_dataset
from data.metadata import (
    DTYPES,
    META_BYTES,
    META_FILE,
    Shard,
    check,
    parts_of,
    remedy,
    shard_name,
    shards_of,
    split_checksum,
)
from files.errors import ReadingError
from files.paths import expanded
from files.reading import read_json
from files.writing import write_bytes


class TokenDataset:
    """One split of a prepared data set, from which windows of tokens are read.

    It reads with pread and keeps no memory map, so memory does not grow with what has been read.
    """

    def __init__(self, path: Path, split: str, meta: Mapping[str, Any]) -> None:
        self.path, self.split, self.meta = path, split, meta
        self.vocab_size: int = meta["vocab_size"]
        self.shards = shards_of(meta, split)
        self.n_tokens = sum(shard.n_tokens for shard in self.shards)
        self.checksum = split_checksum(self.shards)
        self._dtype = DTYPES[meta["dtype"]]
        self.parts = parts_of(meta, split, str(path))
        self._first = [0, *accumulate(shard.n_tokens for shard in self.shards)]  # token of each shard
        self._files = Descriptors(descriptor_budget())

    @classmethod
    def open(cls, path: Path, split: str, *, verify: bool = True) -> "TokenDataset":
        """Returns the split ("train" or "val") of the data set in folder path.

        Sizes are always checked. verify: also checks the sha256 of every file that verified.json does not list with its
        present size, times and inode. So a copied data set is read once, when it is first opened; if that is killed,
        the next open continues.

        Raises: DataError: if the data set is missing, incomplete or damaged.
        """
        path = expanded(path)
        meta = read_meta(path)
        if split not in meta["splits"]:
            raise DataError(f"data set {path} has no split {split!r}, only {', '.join(meta['splits'])}")
        dataset = cls(path, split, meta)
        try:
            for shard in dataset.shards:
                _check_size(path / shard.file, shard, remedy(meta, path))
            if verify:
                verified.verify(path, dataset.shards, dataset._dtype, remedy(meta, path))
        except OSError as error:
            raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error
        for shard in dataset.shards:
            if shard.max_id >= dataset.vocab_size:
                raise DataError(
                    f"{path / shard.file} holds token id {shard.max_id}, but the data set's vocabulary has "
                    f"{dataset.vocab_size} ids: {remedy(meta, path)}"
                )
        return dataset

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the windows of `length` tokens that begin at starts, (len(starts), length) int64."""
        if len(starts) and not 0 <= starts.min() <= starts.max() <= self.n_tokens - length:
            raise DataError(
                f"{self.path}: a window of {length} tokens lies outside the {self.n_tokens} of {self.split}"
            )
        windows = np.empty((len(starts), length), self._dtype)
        for window, start in zip(windows, starts.tolist(), strict=True):
            self._fill(window, start)
        return windows.astype(np.int64)

    def _fill(self, window: np.ndarray, start: int) -> None:
        while len(window):
            index = bisect_right(self._first, start) - 1
            shard, offset = self.shards[index], (start - self._first[index]) * self._dtype.itemsize
            piece, file = window[: self._first[index + 1] - start], self.path / shard.file
            if self._files.read(file, piece.data, shard.header_bytes + offset) != piece.nbytes:
                raise DataError(f"{file} was truncated while in use: {remedy(self.meta, self.path)}")
            window, start = window[len(piece) :], start + len(piece)


class ShardWriter:
    """Appends tokens to the shards of a split; a file gets its final name when it is complete and on disk."""

    def __init__(self, folder: Path, split: str, shard_tokens: int, dtype: np.dtype[Any], n_done: int) -> None:
        """Starts after the shards that an earlier run completed, which hold n_done tokens."""
        self._folder, self._split, self._shard_tokens, self._dtype = folder, split, shard_tokens, dtype
        self._file: BinaryIO | None = None
        self.n_finished, self._n_open = n_done, 0

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens to the split."""
        while len(tokens):
            if self._file is None:
                self._file = self._temporary().open("wb")
            piece = tokens[: self._shard_tokens - self._n_open]
            self._file.write(piece.astype(self._dtype).tobytes())
            self._n_open += len(piece)
            tokens = tokens[len(piece) :]
            if self._n_open == self._shard_tokens:
                self.close()

    def close(self) -> None:
        """Completes the open shard, if any."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary().replace(self._folder / shard_name(self._split, self.n_finished // self._shard_tokens))
        self._file = None
        self.n_finished, self._n_open = self.n_finished + self._n_open, 0

    def _temporary(self) -> Path:
        return self._folder / f"{self._split}.tmp"


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the content of dataset.json in folder path.

    Raises: DataError: if it is missing, of another format, or inconsistent.
    """
    path = expanded(path)
    again = "delete the folder and prepare it again"
    try:
        meta = read_json(path / META_FILE, most_bytes=META_BYTES, may_be_link=True)
    except ReadingError as error:
        raise DataError(f"{error}: {again}") from error
    if meta is None:
        raise missing_dataset(path)
    try:
        check(meta)
    except ValueError as error:
        raise DataError(f"{path / META_FILE} describes no data set ({error}): {again}") from error
    return meta


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Marks the data set in folder path as complete, and its files as verified, as they were hashed just now."""
    shards = [shard for split in meta["splits"] for shard in shards_of(meta, split)]
    verified.remember(path, {shard.file: verified.stamp(path, shard) for shard in shards})
    write_bytes(path / META_FILE, (json.dumps(meta, indent=1) + "\n").encode())


def _check_size(file: Path, shard: Shard, what_to_do: str) -> None:
    found = file.stat().st_size if file.is_file() else None
    if found == shard.n_bytes:
        return
    state = "is missing" if found is None else f"has {found:,} bytes, expected {shard.n_bytes:,}"
    raise DataError(f"{file} {state}: {what_to_do}")
