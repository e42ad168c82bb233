"""Metrics of a run: rows on their way to sinks.

A row is one step's flat mapping: "step" (updates done before what was measured), "tokens" (seen by then), "seconds"
(spent in training steps), "flops", then paths such as train/loss, val/loss (nats per token), lr, grad_norm, optim/...,
memory/.... A rank that does not log has no sinks.
"""

import json
import logging
import math
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

log = logging.getLogger(__name__)

Row = Mapping[str, float]


class Sink(Protocol):
    """Somewhere rows go."""

    def write(self, row: Row) -> None:
        """Takes one row; must not block training and must not raise for its own troubles."""

    def close(self) -> None:
        """Ends the sink."""


class JsonLines:
    """metrics.jsonl: the record that everything else is derived from.

    step: the step the run continues at; rows of that step and later belong to work that was lost, and go. Values that
    JSON has no number for (a diverged loss) are written as null.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in read_rows(path) if row["step"] < step] if path.is_file() else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(_line(row) for row in rows))
        temporary.replace(path)
        self._file: TextIO = path.open("a", buffering=1)

    def write(self, row: Row) -> None:
        """See Sink."""
        self._file.write(_line(row))

    def close(self) -> None:
        """See Sink."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl; a last line that a killed run left half written is dropped."""
    lines = path.read_text().splitlines(keepends=True)
    rows = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line) if line.endswith("\n") else {})
    return [row for row in rows if row]


def _line(row: Row) -> str:
    return json.dumps({k: v if v is None or math.isfinite(v) else None for k, v in row.items()}) + "\n"


class Wandb:
    """Weights & Biases, beside the run directory and never in its way.

    A thread of its own starts the client and sends the rows, so a slow or absent network delays nothing but the end
    of the run, by close_seconds at most. Without an account (no API key) mode "online" warns and stays off.

    settings: the run's configuration, by dotted key. Raises: ValueError: if mode is not "online", "offline" or "off".
    """

    def __init__(
        self, *, mode: str, project: str, run_dir: Path, settings: Mapping[str, Any], close_seconds: float = 20.0
    ) -> None:
        if mode not in ("online", "offline", "off"):
            raise ValueError(f"logging.wandb.mode={mode!r} must be online, offline or off")
        self._settings: dict[str, Any] = {
            "project": project,
            "dir": str(run_dir),
            "name": run_dir.name,
            "config": dict(settings),
        }
        self._mode, self._close_seconds = mode, close_seconds
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        if mode == "online" and not _has_wandb_account():
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
            mode: Any = self._mode
            run = wandb.init(mode=mode, id=self._settings["name"], resume="allow", **self._settings)
            while (row := self._rows.get()) is not None:
                run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
            run.finish()
        except Exception as error:  # whatever goes wrong there must not touch the run
            log.warning("wandb is off from here on: %s: %s", type(error).__name__, error)


def _has_wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    with suppress(Exception):  # a client without an account raises, or returns None, as its version has it
        return wandb.api.api_key is not None
    return False
