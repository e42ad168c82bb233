"""The console as a sink: a live progress bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from trainer.metrics import Row, Sink


class Console(Sink):
    """Shows losses, tokens/s between two rows, and the remaining time.

    max_steps: where the bar ends. first_step: where it starts.
    """

    def __init__(self, *, max_steps: int, first_step: int) -> None:
        self._console = RichConsole(file=sys.stdout, highlight=False)
        self._started, self._first_step, self._max_steps = time.monotonic(), first_step, max_steps
        self._last: Row = {}
        self._losses: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=max_steps, completed=first_step, status="")
        self._progress.start()

    @override
    def write(self, row: Row) -> None:
        self._losses |= {key: row[key] for key in ("train/loss", "val/loss") if key in row}
        status = self._status(row)
        self._progress.update(self._task, completed=row["step"], status=status)
        if "val/loss" in row or not self._console.is_terminal:
            self._console.print(f"step {int(row['step'])}/{self._max_steps}  {status}{self._eta(row)}")
        self._last = row

    @override
    def close(self) -> None:
        self._progress.stop()

    def _status(self, row: Row) -> str:
        losses = "  ".join(f"{key} {value:.4f}" for key, value in self._losses.items())
        seconds = row["seconds"] - self._last.get("seconds", row["seconds"])
        tokens = row["tokens"] - self._last.get("tokens", row["tokens"])
        return f"{losses}  {tokens / seconds:,.0f} tokens/s" if seconds > 0 else losses

    def _eta(self, row: Row) -> str:
        done = row["step"] - self._first_step
        if self._console.is_terminal or done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._max_steps - row["step"])
        return f"  ETA {int(seconds // 60)}:{int(seconds % 60):02d}"
