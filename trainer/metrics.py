"""Metrics of a run: their rows, what a sink is, and metrics.jsonl, the sink that every run has.

A row holds what was measured at one step, as a flat mapping: "step" (updates done before it was measured), "tokens"
(seen by then), "seconds" (spent in training steps), "flops", then paths such as train/loss, val/loss (nats per token),
lr, grad_norm, optim/..., memory/.... Other sinks: console.py, wandb.py, tensorboard.py. Only the main rank has sinks.
"""

import errno
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from files.reading import opened
from files.writing import finite, release, reserve, write_text

log = logging.getLogger(__name__)

RESERVED_BYTES = 1 << 19  # about a thousand rows

Row = Mapping[str, float]
MOST_BYTES = 1 << 44  # of a metrics.jsonl, which is continued however long it is


class Sink(Protocol):
    """Somewhere rows go."""

    def write(self, row: Row) -> None:
        """Takes one row; must not block training and must not raise for its own troubles."""

    def close(self) -> None:
        """Ends the sink."""


class JsonLines(Sink):
    """metrics.jsonl: the record that everything else is derived from.

    step: the step the run continues at; rows of that step and later belong to work that was lost, and go. Values that
    JSON has no number for (a diverged loss) are written as null. Rows that a full disk does not take are kept and
    written with a later one, at the end in room that was reserved for them at the beginning.

    Raises: OSError: if rows of lost work cannot be removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = read_rows(path) if path.is_file() else []
        if path.is_file() and (damaged := path.read_bytes().count(b"\n") - len(rows)):
            log.warning("warning: %s has %d lines that are no rows of metrics; they are left out", path, damaged)
        rows = [row for row in rows if row["step"] < step]
        kept = "".join(map(_line, rows)).encode()
        _make_content(path, kept)
        self._path, self._file, self._size = path, path.open("ab", buffering=0), len(kept)
        self._waiting: list[bytes] = []
        with suppress(OSError):
            reserve(path, RESERVED_BYTES)

    @override
    def write(self, row: Row) -> None:
        self._waiting.append(_line(row).encode())
        error = self._written()
        if error is not None and len(self._waiting) == 1:
            log.warning("warning: %s cannot be written: %s; its rows are kept until they can be", self._path, error)

    @override
    def close(self) -> None:
        if self._waiting:
            release(self._path)
        if (error := self._written()) is not None:
            log.warning("warning: %s lacks its last %d rows: %s", self._path, len(self._waiting), error)
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()
        release(self._path)

    def _written(self) -> OSError | None:
        """Writes what waits; why that failed, if it did: the file then ends with the last row that is complete."""
        content = b"".join(self._waiting)
        try:
            if self._file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            return error
        self._size += len(content)
        self._waiting.clear()
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl; lines that are none are left out, as one that a killed run left half written.

    Raises: ReadingError: if it is no file of this folder. FileNotFoundError: if there is none.
    """
    file = opened(path, most_bytes=MOST_BYTES)
    if file is None:
        raise FileNotFoundError(f"there is no {path}")
    with file:
        found = (_row(line) for line in file.read().splitlines(keepends=True))
        return [row for row in found if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and all(_is_number(row.get(key)) for key in ("step", "tokens", "seconds"))
    return row if is_row and all(value is None or _is_number(value) for value in row.values()) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(row: Row) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"


def _make_content(path: Path, content: bytes) -> None:
    """Makes that the file's content; one that only has to end earlier needs no room on the disk for it."""
    before = path.read_bytes() if path.is_file() else b""
    if before != content and before.startswith(content):
        os.truncate(path, len(content))
    elif before != content:
        write_text(path, content.decode())
