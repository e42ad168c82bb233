"""Keeps a limited number of files open for reading."""

import errno
import os
import resource
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from data.errors import DataError


def descriptor_budget() -> int:
    """Returns how many files one part of the program may keep open: an eighth of the process's limit, 1 to 128."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 128 if soft == resource.RLIM_INFINITY else max(1, min(128, soft // 8))


class Descriptors:
    """Reads from files, and keeps the ones read last open: opening takes milliseconds on a network file system.

    limit: how many to keep open. Several threads may read at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()  # the least recently used one first
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)

    def read(self, file: Path, buffer: memoryview, offset: int) -> int:
        """Fills buffer with the bytes of file from offset on; returns how many were read.

        Raises: DataError: if file cannot be read.
        """
        try:
            with self._lock:  # so that no other thread closes the descriptor meanwhile
                return os.preadv(self._descriptor(file), [buffer], offset)
        except OSError as error:
            raise DataError(f"{file} cannot be read any more: {error.strerror}") from error

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            self._close_down_to(self._limit - 1)
            self._open[file] = self._opened(file)
        self._open.move_to_end(file)
        return self._open[file]

    def _opened(self, file: Path) -> int:
        try:
            return os.open(file, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                raise
            self._close_down_to(0)  # the rest of the process holds more than its share
            return os.open(file, os.O_RDONLY)

    def _close_down_to(self, n: int) -> None:
        while len(self._open) > n:
            os.close(self._open.popitem(last=False)[1])


def _close_all(descriptors: OrderedDict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
