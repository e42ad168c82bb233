"""verified.json: which files of a data set have been read and found to be as dataset.json says.

It may be deleted at any time, and is missing if the data set's folder cannot be written: all files are read again then.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.hashing import blocks, in_threads
from data.metadata import META_BYTES, Shard
from files.errors import ReadingError
from files.reading import read_json
from files.writing import write_bytes

STAMP_FILE = "verified.json"
REMEMBER_SECONDS = 1.0  # of reading that are repeated after a kill


def stamps(folder: Path) -> dict[str, Any]:
    """Returns the content of verified.json, empty if it is missing or damaged."""
    try:
        return read_json(folder / STAMP_FILE, most_bytes=META_BYTES) or {}
    except ReadingError:
        return {}


def remember(folder: Path, new: dict[str, Any]) -> None:
    """Adds stamps to verified.json if the folder can be written."""
    with suppress(OSError):
        write_bytes(folder / STAMP_FILE, (json.dumps(stamps(folder) | new, indent=1) + "\n").encode())


def stamp(folder: Path, shard: Shard) -> list[Any]:
    """Returns what identifies an unchanged shard; it has the change time, as the modification time can be set back."""
    status = (folder / shard.file).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, shard.sha256]


def describe(
    path: Path, dtype: np.dtype[Any], header_bytes: int = 0, watch: Callable[[np.ndarray], None] = lambda tokens: None
) -> Shard:
    """Reads a shard and returns what dataset.json should say about it; watch: is shown all tokens, block by block."""
    digest = hashlib.sha256()
    n_bytes = max_id = 0
    for block in blocks(path):
        digest.update(block)
        skipped = min(max(header_bytes - n_bytes, 0), len(block))
        n_bytes += len(block)
        tokens = np.frombuffer(block, dtype, (len(block) - skipped) // dtype.itemsize, skipped)
        max_id = max(max_id, int(tokens.max(initial=0)))
        watch(tokens)
    n_tokens = (n_bytes - header_bytes) // dtype.itemsize
    return Shard(path.name, n_tokens, n_bytes, digest.hexdigest(), max_id, header_bytes)


def verify(folder: Path, shards: Sequence[Shard], dtype: np.dtype[Any], remedy: str) -> None:
    """Reads the shards that verified.json does not list with their present stamp, and adds those that are right.

    Raises: DataError: if one is not what dataset.json says; remedy: what to do then.
    """
    known = stamps(folder)
    now = [(shard, stamp(folder, shard)) for shard in shards]
    unseen = [(shard, mark) for shard, mark in now if known.get(shard.file) != mark]
    right: dict[str, Any] = {}
    remembered = time.monotonic()
    try:
        with in_threads(lambda pair: describe(folder / pair[0].file, dtype, pair[0].header_bytes), unseen) as found:
            for (shard, mark), is_now in zip(unseen, found, strict=True):
                _compare(folder / shard.file, shard, is_now, remedy)
                right[shard.file] = mark
                if time.monotonic() - remembered > REMEMBER_SECONDS:
                    remember(folder, right)
                    remembered = time.monotonic()
    finally:
        if right:
            remember(folder, right)


def _compare(file: Path, said: Shard, found: Shard, remedy: str) -> None:
    if found.sha256 != said.sha256:
        raise DataError(
            f"{file} is damaged: expected sha256 {said.sha256[:12]}..., got {found.sha256[:12]}...; {remedy}"
        )
    if found.max_id != said.max_id:
        raise DataError(
            f"{file} holds token id {found.max_id}, but dataset.json says that {said.max_id} is the largest: {remedy}"
        )
