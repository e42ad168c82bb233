"""Reads what a run adds to its metrics.jsonl while it goes on."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from files.errors import ReadingError
from files.reading import opened
from launch.run_files import METRICS

MOST_BYTES = 1 << 20  # read at a time
KEPT = 256  # bytes by which a file is recognised


class NewRows:
    """The rows that were added since the last call of read(); damaged ones are left out.

    only_last: skips to the last MOST_BYTES of what is new; else what is left waits for the next call.
    """

    def __init__(self, run_dir: Path, *, only_last: bool) -> None:
        self._path, self._only_last = run_dir / METRICS, only_last
        self._inode = self._taken = 0  # of the file; bytes that were read
        self._end = b""  # the last of these

    def read(self) -> list[dict[str, Any]]:
        """Returns the next rows, none if there are no more.

        A run that continues shortens its file, or puts another one in its place, which is then read from its start.
        """
        try:
            file = opened(self._path)
        except ReadingError:
            return []
        if file is None:
            return []
        with file:
            found = os.fstat(file.fileno())
            taken = self._taken if self._is_same(file, found.st_ino) else 0
            if self._only_last:
                taken = max(taken, found.st_size - MOST_BYTES)
            file.seek(taken)
            complete, end, _ = file.read(MOST_BYTES).rpartition(b"\n")
        if end or taken < self._taken:
            self._inode, self._taken, self._end = found.st_ino, taken + len(complete + end), (complete + end)[-KEPT:]
        rows = []
        for line in complete.splitlines():
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def _is_same(self, file: BinaryIO, inode: int) -> bool:
        """Whether the file still has before the place where reading stopped what it had there."""
        file.seek(self._taken - len(self._end))
        return inode == self._inode and file.read(len(self._end)) == self._end
