"""Metrics of a run: rows on their way to sinks.

A row is one step's flat mapping: "step" (updates done before what was measured), "tokens" (seen by then), "seconds"
(spent in training steps), "flops", then paths such as train/loss, val/loss (nats per token), lr, grad_norm, optim/...,
memory/.... A rank that does not log has no sinks.
"""

import errno
import json
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from files.reading import opened, read_text
from files.writing import finite, release, reserve, write_text

log = logging.getLogger(__name__)

RESERVED_BYTES = 1 << 19  # about a thousand rows

Row = Mapping[str, float]
MOST_BYTES = 1 << 44  # of a metrics.jsonl, which is continued however long it is
MOST_ID_BYTES = 1 << 12


class Sink(Protocol):
    """Somewhere rows go."""

    def write(self, row: Row) -> None:
        """Takes one row; must not block training and must not raise for its own troubles."""

    def close(self) -> None:
        """Ends the sink."""


class JsonLines:
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

    def write(self, row: Row) -> None:
        """See Sink."""
        self._waiting.append(_line(row).encode())
        error = self._written()
        if error is not None and len(self._waiting) == 1:
            log.warning("warning: %s cannot be written: %s; its rows are kept until they can be", self._path, error)

    def close(self) -> None:
        """See Sink."""
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


class Wandb:
    """Weights & Biases, beside the run directory and never in its way.

    A thread of its own starts the client and sends the rows, so a slow or absent network delays nothing but the end
    of the run, by close_seconds at most. Without an account (no API key) mode "online" warns and stays off.

    mode: "online", "offline" or "off"; None: what WANDB_MODE says, else online. project: None: what WANDB_PROJECT says,
    else nanodescent. WANDB_NAME, WANDB_RUN_ID and, if it can be written, WANDB_DIR take the place of the run
    directory's name, of an id that is drawn once and kept in the file wandb_id there, and of the run directory.
    settings: the run's configuration, by dotted key.

    Raises: ValueError: for another mode.
    """

    def __init__(
        self,
        *,
        mode: str | None = None,
        project: str | None = None,
        run_dir: Path,
        settings: Mapping[str, Any],
        close_seconds: float = 20.0,
    ) -> None:
        self._mode = _wandb_mode(mode)
        self._run_dir, self._close_seconds = run_dir, close_seconds
        ours = {"project": "nanodescent", "name": run_dir.name, "dir": str(run_dir), "resume": "allow"}
        self._settings: dict[str, Any] = {
            key: value for key, value in ours.items() if not os.environ.get(f"WANDB_{key.upper()}")
        }
        if self._mode != "off" and "dir" not in self._settings and not _can_be_written(os.environ["WANDB_DIR"]):
            log.warning("warning: WANDB_DIR=%s cannot be written; wandb writes to %s", os.environ["WANDB_DIR"], run_dir)
            self._settings["dir"] = str(run_dir)
        self._settings |= {"config": dict(settings), "mode": self._mode}
        self._settings |= {} if project is None else {"project": project}
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        if self._mode == "online" and not _has_wandb_account():
            log.warning("wandb is off: no API key; run `wandb login`, or use logging.wandb.mode=offline")
            self._mode = "off"
        if self._mode != "off":
            self._thread.start()

    def write(self, row: Row) -> None:
        """See Sink."""
        if self._thread.is_alive():
            self._rows.put(dict(row))

    def close(self) -> None:
        """See Sink."""
        if self._mode == "off":
            return
        self._rows.put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            log.warning("wandb did not finish within %.0f s; metrics.jsonl has everything", self._close_seconds)

    def _run(self) -> None:
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            run = wandb.init(id=os.environ.get("WANDB_RUN_ID") or _run_id(self._run_dir), **self._settings)
            while (row := self._rows.get()) is not None:
                run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
            run.finish()
        except Exception as error:  # whatever goes wrong there must not touch the run
            log.warning("wandb is off from here on: %s: %s", type(error).__name__, error)


def _wandb_mode(mode: str | None) -> str:
    words = {"disabled": "off", "dryrun": "offline", "run": "online", "shared": "online", "": "online"}  # the client's
    chosen = os.environ.get("WANDB_MODE", "").lower() if mode is None else mode
    chosen = words.get(chosen, chosen) if mode is None else chosen
    if chosen not in ("online", "offline", "off"):
        where = "the environment's WANDB_MODE" if mode is None else "logging.wandb.mode"
        raise ValueError(f"{where}={chosen!r} must be online, offline or {'disabled' if mode is None else 'off'}")
    return chosen


def _can_be_written(folder: str) -> bool:
    """Whether a folder is or can be made there: the client would silently take one for temporary files instead."""
    path = os.path.expanduser(folder)  # noqa: PTH111  # as the client does: an unknown user is no error
    with suppress(OSError):
        Path(path).mkdir(parents=True, exist_ok=True)
    return os.access(path, os.W_OK)


def _run_id(run_dir: Path) -> str:
    """The id of the run, the same whenever it continues; unlike the folder's name it is unique and legal."""
    file = run_dir / "wandb_id"
    if not file.is_file():
        write_text(file, f"{secrets.token_hex(8)}\n")
    found = (read_text(file, most_bytes=MOST_ID_BYTES) or "").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise ValueError(f"{file} holds {found[:64]!r}, which is no id of a run; delete it")
    return found


def _has_wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    with suppress(Exception):  # a client without an account raises, or returns None, as its version has it
        return wandb.api.api_key is not None
    return False
