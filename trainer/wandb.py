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
    """Sends the rows to Weights & Biases.

    A thread starts the client and sends the rows, so a slow or absent network delays only the end of the run, by
    close_seconds at most. Without an account (no API key) mode "online" warns and stays off.

    mode: "online", "offline" or "off"; None: WANDB_MODE, else online. project: None: WANDB_PROJECT, else nanodescent.
    The run's name is WANDB_NAME, else that of the run directory; its id WANDB_RUN_ID, else a random one that is kept
    in the file wandb_id of the run directory; its folder WANDB_DIR if that can be written, else the run directory.
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
            log.warning(
                "wandb did not finish within %.0f s (logging.wandb.close_seconds); metrics.jsonl has everything, and "
                "scripts/send_metrics.py sends it",
                self._close_seconds,
            )

    def _run(self) -> None:
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            run = wandb.init(id=os.environ.get("WANDB_RUN_ID") or _run_id(self._run_dir), **self._settings)
            while (row := self._rows.get()) is not None:
                run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
            run.finish()
        except Exception as error:  # no error of the client may end the run
            log.warning("wandb is off from here on: %s: %s", type(error).__name__, error)


def _chosen_mode(mode: str | None) -> str:
    names = {"disabled": "off", "dryrun": "offline", "run": "online", "shared": "online", "": "online"}  # the client's
    chosen = os.environ.get("WANDB_MODE", "").lower() if mode is None else mode
    chosen = names.get(chosen, chosen) if mode is None else chosen
    if chosen not in ("online", "offline", "off"):
        where = "the environment's WANDB_MODE" if mode is None else "logging.wandb.mode"
        raise ValueError(f"{where}={chosen!r} must be online, offline or {'disabled' if mode is None else 'off'}")
    return chosen


def _can_be_written(folder: str) -> bool:
    """Whether the folder can be written, made if need be: else the client would silently use a temporary one."""
    path = os.path.expanduser(folder)  # noqa: PTH111  # as the client does: an unknown user is no error
    with suppress(OSError):
        Path(path).mkdir(parents=True, exist_ok=True)
    return os.access(path, os.W_OK)


def _run_id(run_dir: Path) -> str:
    """Returns the id of the run, the same whenever it continues; a folder's name may not be unique, or not allowed."""
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

    with suppress(Exception):  # without an account some versions raise, others return None
        return wandb.api.api_key is not None
    return False
