"""Reads files block by block, several at a time."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
BLOCK_BYTES = 1 << 24


def blocks(file: Path) -> Iterator[bytes]:
    """Yields the content of file in blocks."""
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            yield block


def sha256_of(file: Path) -> str:
    """Returns the sha256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    for block in blocks(file):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """Yields an iterator of function(item), in order, computed in threads: hashing and reading release the GIL.

    If the context is left early, the rest is not computed.
    """
    rest, pool = iter(items), ThreadPoolExecutor(min(n_cores(), 8))
    batches = iter(lambda: list(islice(rest, 256)), [])
    try:
        yield (result for batch in batches for result in pool.map(function, batch))
    finally:
        pool.shutdown(cancel_futures=True)


def n_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
