"""Runs as the rows of a table, for a terminal and for the live page alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from configs.runs import identity
from files.errors import shown
from launch.listing import FACTS, ListedRun, RunList

NARROW = 100  # a terminal with fewer columns leaves out train/loss, so that names keep their room
MOST = 3  # settings that are shown because they differ
COLUMNS = ("run", "state", "step", "train/loss", "val/loss", "ETA", "last progress")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Chosen:
    """The runs of a list that are shown. select: which, and in which order."""

    def __init__(self, runs: RunList, select: Callable[[Sequence[ListedRun]], list[ListedRun]]) -> None:
        self._runs, self._select = runs, select

    @property
    def notes(self) -> list[str]:
        """On runs that cannot be read."""
        return self._runs.notes

    @property
    def places(self) -> list[Path]:
        """Where they were looked for."""
        return self._runs.places

    def refresh(self) -> list[ListedRun]:
        """Returns them as they stand now."""
        return self._select(self._runs.refresh())


def columns_of(filters: Mapping[str, Sequence[str]], sort: str, *, is_narrow: bool = False) -> list[str]:
    """The columns of the table: also settings that a filter gives several values, or that runs are sorted by."""
    more = [key for key, values in filters.items() if len(values) > 1] + [sort.removeprefix("-")] * bool(sort)
    found = dict.fromkeys([*COLUMNS, *(key for key in more if key not in FACTS)])
    return [column for column in found if not (is_narrow and column == "train/loss")]


def differing(runs: Sequence[ListedRun]) -> list[str]:
    """The settings in which runs of one sweep differ, at most MOST of them; nothing if they differ in more."""
    alike = [{**identity(run.config), "seed": None} for run in runs]
    keys = sorted({key for each in alike for key in each})
    found = [key for key in keys if len({shown(each.get(key)) for each in alike}) > 1]
    return found if len(found) <= MOST else []


def row_of(run: ListedRun, columns: Sequence[str]) -> dict[str, str]:
    """The cells of a run, by column."""
    own = run.progress
    quiet = time.time() - run.changed if run.heartbeat_seconds is None else run.heartbeat_seconds
    cells = {
        "run": own.name,
        "state": own.state,
        "step": f"{own.step}/{own.max_steps}",
        "train/loss": _loss(own.train_loss),
        "val/loss": _loss(own.val_loss),
        "ETA": own.eta,
        "last progress": f"{age(quiet)} ago",
    }
    return {column: cells.get(column, shown(run.facts.get(column, ""))) for column in columns}


def age(seconds: float) -> str:
    """A duration in the largest unit of which there is at least one."""
    whole = timedelta(seconds=max(seconds, 0.0)).total_seconds()
    name, size = next((unit for unit in UNITS if whole >= unit[1]), UNITS[-1])
    return f"{int(whole // size)} {name}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
