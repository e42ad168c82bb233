"""The prepared data set on disk: shards of raw little-endian token ids and one JSON file that describes them.

dataset.json       counts, dtype, settings, and size, sha256 and largest id of every shard; written last
tokenizer.json     the tokenizer that encoded it
train_00000.bin    shard_tokens ids each, the last one fewer; no header
val_00000.bin
verified.json      which files have been hashed, with size and modification time; safe to delete
"""

import hashlib
import json
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.errors import DataError, missing_dataset

META_FILE = "dataset.json"
STAMP_FILE = "verified.json"
FORMAT = 1
DTYPES: Mapping[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Shard:
    """What dataset.json says about one file."""

    file: str
    n_tokens: int
    n_bytes: int
    sha256: str
    max_id: int


class TokenDataset:
    """One split of a prepared data set, read in windows of tokens.

    Reads with pread and keeps no memory map, so the process does not grow with what it has read.
    """

    def __init__(self, path: Path, split: str, meta: Mapping[str, Any]) -> None:
        self.path, self.split, self.meta = path, split, meta
        self.vocab_size: int = meta["vocab_size"]
        self.shards = [Shard(**shard) for shard in meta["splits"][split]["shards"]]
        self.n_tokens = sum(shard.n_tokens for shard in self.shards)
        self.checksum = split_checksum(self.shards)
        self._dtype = DTYPES[meta["dtype"]]
        self._shard_tokens: int = meta["shard_tokens"]
        self._descriptors: dict[int, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, path: Path, split: str, *, verify: bool = True) -> "TokenDataset":
        """The split ("train" or "val") of the data set in folder path.

        Sizes are always checked. With verify, so is the sha256 of every file that verified.json does not list with
        its present size and modification time: the first open of a copied data set reads it once, later ones do not.

        Raises: DataError: if the data set is missing, incomplete or damaged.
        """
        meta = read_meta(path)
        if split not in meta["splits"]:
            raise DataError(f"data set {path} has no split {split!r}, only {', '.join(meta['splits'])}")
        dataset = cls(path, split, meta)
        for shard in dataset.shards:
            _check_size(path / shard.file, shard)
        if verify:
            _check_hashes(path, dataset.shards, dataset._dtype)
        for shard in dataset.shards:
            if shard.max_id >= dataset.vocab_size:
                raise DataError(
                    f"{path / shard.file} holds token id {shard.max_id}, but the data set's vocabulary has "
                    f"{dataset.vocab_size} ids: delete the folder and prepare the data set again"
                )
        return dataset

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows of `length` tokens that begin at starts, (len(starts), length) int64."""
        if len(starts) and not 0 <= starts.min() <= starts.max() <= self.n_tokens - length:
            raise DataError(
                f"{self.path}: a window of {length} tokens lies outside the {self.n_tokens} of {self.split}"
            )
        rows = np.empty((len(starts), length), self._dtype)
        for row, start in zip(rows, starts.tolist(), strict=True):
            self._fill(row, start)
        return rows.astype(np.int64)

    def _fill(self, row: np.ndarray, start: int) -> None:
        while len(row):
            index, offset = divmod(start, self._shard_tokens)
            piece = row[: self.shards[index].n_tokens - offset]
            got = os.preadv(self._descriptor(index), [piece.data], offset * self._dtype.itemsize)
            if got != piece.nbytes:
                raise DataError(f"{self.path / self.shards[index].file} was cut short while in use: prepare it again")
            row, start = row[len(piece) :], start + len(piece)

    def _descriptor(self, index: int) -> int:
        if index not in self._descriptors:
            self._descriptors[index] = os.open(self.path / self.shards[index].file, os.O_RDONLY)
        return self._descriptors[index]


class ShardWriter:
    """Appends tokens to the shards of a split; a file gets its name only once it is complete and on disk."""

    def __init__(self, folder: Path, split: str, shard_tokens: int, dtype: np.dtype[Any], n_done: int) -> None:
        """n_done: tokens in the shards that an earlier run completed."""
        self._folder, self._split, self._shard_tokens, self._dtype = folder, split, shard_tokens, dtype
        self._file: BinaryIO | None = None
        self.n_finished, self._n_open = n_done, 0

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens."""
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
        """Finishes the open shard, if any."""
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


def shard_name(split: str, index: int) -> str:
    """The file name of a shard."""
    return f"{split}_{index:05d}.bin"


def describe(path: Path, dtype: np.dtype[Any]) -> Shard:
    """Reads a shard and says what is in it."""
    digest = hashlib.sha256()
    n_bytes = max_id = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            n_bytes += len(block)
            max_id = max(max_id, int(np.frombuffer(block, dtype, len(block) // dtype.itemsize).max(initial=0)))
    return Shard(path.name, n_bytes // dtype.itemsize, n_bytes, digest.hexdigest(), max_id)


def split_checksum(shards: list[Shard]) -> str:
    """One sha256 for a split: that of its shards' digests in order."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def read_meta(path: Path) -> dict[str, Any]:
    """The content of dataset.json in folder path.

    Raises: DataError: if it is missing or of another format.
    """
    try:
        meta: dict[str, Any] = json.loads((path / META_FILE).read_bytes())
    except FileNotFoundError:
        raise missing_dataset(path) from None
    except ValueError as error:
        raise DataError(f"{path / META_FILE} is not JSON ({error}): delete the folder and prepare it again") from error
    if meta.get("format") != FORMAT:
        raise DataError(f"{path / META_FILE} has format {meta.get('format')}, expected {FORMAT}: prepare it again")
    if meta["dtype"] not in DTYPES or meta["vocab_size"] > 1 << 8 * DTYPES[meta["dtype"]].itemsize:
        raise DataError(f"{path}: {meta['vocab_size']} ids do not fit dtype {meta['dtype']!r}: prepare it again")
    return meta


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Marks the data set in folder path as complete. Its files count as verified: they were hashed just now."""
    shards = [Shard(**shard) for split in meta["splits"].values() for shard in split["shards"]]
    _write_stamps(path, shards)
    write_atomically(path / META_FILE, (json.dumps(meta, indent=1) + "\n").encode())


def split_meta(shards: list[Shard], n_documents: int) -> dict[str, Any]:
    """The entry of one split in dataset.json."""
    return {
        "n_documents": n_documents,
        "n_tokens": sum(shard.n_tokens for shard in shards),
        "checksum": split_checksum(shards),
        "shards": [asdict(shard) for shard in shards],
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file that is there either whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _check_size(file: Path, shard: Shard) -> None:
    found = file.stat().st_size if file.is_file() else None
    if found == shard.n_bytes:
        return
    state = "is missing" if found is None else f"has {found:,} bytes, expected {shard.n_bytes:,}"
    raise DataError(f"{file} {state}: delete the folder and prepare the data set again")


def _check_hashes(path: Path, shards: list[Shard], dtype: np.dtype[Any]) -> None:
    stamps = _read_stamps(path)
    unseen = [shard for shard in shards if stamps.get(shard.file) != _stamp(path, shard)]
    for shard in unseen:
        found = describe(path / shard.file, dtype)
        if found.sha256 != shard.sha256:
            raise DataError(
                f"{path / shard.file} is damaged: expected sha256 {shard.sha256[:12]}..., got {found.sha256[:12]}...; "
                "delete the folder and prepare the data set again"
            )
    if unseen:
        with suppress(OSError):  # a read-only data set is hashed at every start
            _write_stamps(path, unseen)


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        stamps: dict[str, Any] = json.loads((path / STAMP_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps


def _write_stamps(path: Path, shards: list[Shard]) -> None:
    stamps = _read_stamps(path) | {shard.file: _stamp(path, shard) for shard in shards}
    write_atomically(path / STAMP_FILE, (json.dumps(stamps, indent=1) + "\n").encode())


def _stamp(path: Path, shard: Shard) -> list[Any]:
    status = (path / shard.file).stat()
    return [status.st_size, status.st_mtime_ns, shard.sha256]


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
