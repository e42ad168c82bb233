"""Weights & Biases as a sink."""

import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import override

from files.reading import read_text
from files.writing import write_text
from trainer.metrics import Row, Sink

log = logging.getLogger(__name__)

MOST_ID_BYTES = 1 << 12


class Wandb(Sink):
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
        self._mode = _chosen_mode(mode)
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
        if self._mode == "online" and not _has_account():
            log.warning("wandb is off: no API key; run `wandb login`, or use logging.wandb.mode=offline")
            self._mode = "off"
        if self._mode != "off":
            self._thread.start()

    @override
    def write(self, row: Row) -> None:
        if self._thread.is_alive():
            self._rows.put(dict(row))

    @override
    def close(self) -> None:
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


def _chosen_mode(mode: str | None) -> str:
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


def _has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    with suppress(Exception):  # a client without an account raises, or returns None, as its version has it
        return wandb.api.api_key is not None
    return False
