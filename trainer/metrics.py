"""Metrics of a run: their rows, what a sink is, and metrics.jsonl, the sink that every run has.

A row holds what was measured at one step, as a flat mapping: "step" (updates done before it was measured), "tokens"
(seen by then), "seconds" (spent in training steps), "flops", then paths such as train/loss, val/loss (nats per token),
val/bits_per_byte, lr, grad_norm, optim/..., memory/.... Other sinks: console.py, wandb.py, tensorboard.py. Only the
main rank has sinks.
"""

import errno
import json
import logging
import math
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
MOST_BYTES = 1 << 44  # of a metrics.jsonl; in effect no limit, as a run continues its file however long it is


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float | None:
    """Returns the loss in bits per byte of text, by which models with different tokenizers compare; None: no text.

    As Gao et al. 2020, arXiv:2101.00027, section 3.1. bytes_per_token: means are over the same tokens; the end of a
    document is a token without bytes.
    """
    return nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None


class Sink(Protocol):
    """A destination of rows."""

    def write(self, row: Row) -> None:
        """Writes one row; must neither block training nor raise when the destination fails."""

    def close(self) -> None:
        """Writes what is still waiting, and closes the sink."""


class JsonLines(Sink):
    """metrics.jsonl, from which plots, tables and reports are made.

    step: the step at which the run continues; rows of that step and later are removed, as these steps are done again.
    Values that are not finite (a diverged loss) are written as null. While the disk is full rows are kept in memory and
    written with a later one; close() writes them to disk space that was reserved at the beginning.

    Raises: OSError: if rows cannot be removed.
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
        """Writes the waiting rows; returns the error if that fails. The file then still ends with a complete row."""
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
    """Returns the rows of a metrics.jsonl, without damaged lines: a killed run may leave an incomplete one.

    Raises: ReadingError: if it is a link to another folder, or no file. FileNotFoundError: if there is none.
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
    """Replaces the file's content; if it only has to become shorter, this needs no disk space."""
    before = path.read_bytes() if path.is_file() else b""
    if before != content and before.startswith(content):
        os.truncate(path, len(content))
    elif before != content:
        write_text(path, content.decode())
