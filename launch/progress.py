"""Reads how far jobs are from their run directories, and shows it: a live table on a terminal, else lines."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from files.reading import number
from launch.new_rows import NewRows

REFRESH_SECONDS = 0.5
LINE_SECONDS = 60.0  # between two lines about the same running job
GOING = ("running", "elsewhere")  # elsewhere: a process of somebody else runs it
COLOURS = {
    "running": "cyan",
    "queued": "blue",
    "elsewhere": "cyan",
    "hung": "red",
    "finished": "green",
    "diverged": "red",
    "failed": "red",
    "stopped": "yellow",
    "unfinished": "yellow",
}


@dataclass
class JobProgress:
    """How far a job is.

    state: "waiting", "queued", one of GOING, "hung", or an Outcome's status. note: is shown beside it.
    """

    name: str
    run_dir: Path
    max_steps: int
    state: str = "waiting"
    note: str = ""
    step: int = 0
    seconds: float = 0.0  # of training
    val_loss: float | None = None
    train_loss: float | None = None
    _rows: NewRows = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rows = NewRows(self.run_dir, only_last=True)

    def update(self) -> None:
        """Reads what the run has written to metrics.jsonl since the last call."""
        for row in self._rows.read():
            self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        """Takes over one row; damaged values are left out here, and reported by those who read the file to its end."""
        step, seconds = (number(row.get(key)) for key in ("step", "seconds"))
        self.step = self.step if step is None else int(step)
        self.seconds = self.seconds if seconds is None else seconds
        self.train_loss = number(row["train/loss"]) if "train/loss" in row else self.train_loss
        self.val_loss = number(row["val/loss"]) if "val/loss" in row else self.val_loss

    @property
    def eta(self) -> str:
        """The time that the remaining steps will take, without evaluations; empty if it is not known."""
        if self.state not in GOING or not self.step:
            return ""
        with suppress(OverflowError):
            return str(timedelta(seconds=round(self.seconds / self.step * (self.max_steps - self.step))))
        return ""


class Display:
    """Shows the progress of jobs, to which others may be added, while it is entered; show: false shows nothing."""

    def __init__(self, jobs: Sequence[JobProgress], *, show: bool, is_numbered: bool = True) -> None:
        self._jobs, self._show, self._is_numbered = jobs, show, is_numbered
        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if show and self._console.is_terminal else None
        self._refreshed = -REFRESH_SECONDS
        self._said: dict[int, tuple[str, float]] = {}  # state and time of the last line, by index

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh(at_once=True)
        if self._live:
            self._live.stop()

    def refresh(self, *, at_once: bool = False) -> None:
        """Updates what is shown, at most every REFRESH_SECONDS unless at_once."""
        now = time.monotonic()
        if not self._show or (now - self._refreshed < REFRESH_SECONDS and not at_once):
            return
        self._refreshed = now
        for progress in self._jobs:
            if progress.state in GOING or not progress.step:
                progress.update()
        if self._live:
            self._live.update(table(self._jobs, self._console.height - 6), refresh=True)
        else:
            self._print_news(now)

    def say(self, line: str) -> None:
        """Prints a line, above the table."""
        if self._show:
            self._console.print(line, markup=False, soft_wrap=True)

    def _print_news(self, now: float) -> None:
        for index, progress in enumerate(self._jobs):
            state, said = self._said.get(index, ("waiting", now))
            if progress.state == state and (state not in GOING or now - said < LINE_SECONDS):
                continue
            self._said[index] = progress.state, now
            number_of = f"[{index + 1}/{len(self._jobs)}] " if self._is_numbered else ""
            self.say(f"{number_of}{progress.name}: {line(progress)}")
        sys.stdout.flush()


def table(jobs: Sequence[JobProgress], rows: int) -> Group:
    """Returns a table of the most urgent jobs, at most so many rows, and the number of jobs in each state."""
    urgency = ("hung", "running", "failed", "diverged", "stopped", "elsewhere", "queued", "waiting", "finished")
    ranked = sorted(range(len(jobs)), key=lambda index: (urgency.index(jobs[index].state), index))
    shown = sorted(ranked[: max(rows, 1)])
    counts = Counter(progress.state for progress in jobs)
    counted = ", ".join(f"{counts[state]} {state}" for state in urgency if counts[state])
    if hidden := len(jobs) - len(shown):
        counted += f" ({hidden} not shown)"
    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("job", overflow="ellipsis", no_wrap=True)
    made.add_column("state", no_wrap=True)
    for column in ("step", "val/loss", "ETA"):
        made.add_column(column, justify="right", no_wrap=True)
    for progress in (jobs[index] for index in shown):
        made.add_row(
            Text(progress.name),
            Text(progress.state, style=COLOURS.get(progress.state, "")),
            f"{progress.step}/{progress.max_steps}" if progress.step else "",
            "" if progress.val_loss is None else f"{progress.val_loss:.4f}",
            progress.eta,
        )
    return Group(made, Text(f"  {counted}"))


def line(progress: JobProgress) -> str:
    """Returns how far a job is, as a line."""
    parts = [progress.state]
    if progress.step:
        parts.append(f"step {progress.step}/{progress.max_steps}")
    if progress.val_loss is not None:
        parts.append(f"val/loss {progress.val_loss:.4f}")
    if progress.eta:
        parts.append(f"ETA {progress.eta}")
    return ", ".join(parts) + (f" ({progress.note})" if progress.note else "")
