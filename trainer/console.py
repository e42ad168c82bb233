"""The console as a sink: a line per row of metrics, and on a terminal a live line below them.

Both fit into 80 columns; in a file no line is broken, however long it is, so that a line is a row.
"""

import sys
import time
from datetime import timedelta

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from typing_extensions import override

from trainer.metrics import Row, Sink

ROOM_FOR_BAR = 100  # columns of a terminal; with fewer the numbers need them all
MOST_DIGITS = 100_000  # tokens/s from which they are shown in thousands or millions


class Console(Sink):
    """Shows losses, tokens/s between two rows, and the remaining time; on a terminal it keeps the lines with val/loss.

    max_steps: where the bar ends. first_step: where it starts.
    """

    def __init__(self, *, max_steps: int, first_step: int) -> None:
        self._console = RichConsole(file=sys.stdout, highlight=False)
        self._started, self._first_step, self._max_steps = time.monotonic(), first_step, max_steps
        self._last: Row = {}
        self._losses: dict[str, float] = {}
        bar: list[ProgressColumn] = [BarColumn(bar_width=None)] if self._console.width >= ROOM_FOR_BAR else []
        self._progress = Progress(
            MofNCompleteColumn(),
            *bar,
            TextColumn("{task.fields[status]}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            expand=bool(bar),
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=max_steps, completed=first_step, status="")
        self._progress.start()

    @override
    def write(self, row: Row) -> None:
        self._losses |= _losses_in(row)
        status = self._status(row, self._losses)
        self._progress.update(self._task, completed=row["step"], status=status)
        if "val/loss" in row or not self._console.is_terminal:
            step, width = f"{int(row['step'])}/{self._max_steps}", 2 * len(str(self._max_steps)) + 1
            line = self._status(row, _losses_in(row))  # an older val/loss would look like one of this step
            self._console.print(f"step {step:<{width}}  {line}{self._eta(row)}", markup=False, soft_wrap=True)
        self._last = row

    @override
    def close(self) -> None:
        self._progress.stop()

    def _status(self, row: Row, shown: dict[str, float]) -> str:
        losses = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
        seconds = row["seconds"] - self._last.get("seconds", row["seconds"])
        tokens = row["tokens"] - self._last.get("tokens", row["tokens"])
        return f"{losses}  {_rate(tokens / seconds)} tokens/s" if seconds > 0 else losses

    def _eta(self, row: Row) -> str:
        done = row["step"] - self._first_step
        if self._console.is_terminal or done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._max_steps - row["step"])
        return f"  ETA {timedelta(seconds=int(seconds))}"


def _losses_in(row: Row) -> dict[str, float]:
    return {key: row[key] for key in ("train/loss", "val/loss") if key in row}


def _rate(per_second: float) -> str:
    """In at most six characters below a billion."""
    if per_second < MOST_DIGITS:
        return f"{per_second:,.0f}"
    return f"{per_second / 1e3:,.0f}k" if per_second < 1e6 else f"{per_second / 1e6:.2f}M"
