"""Finds run directories and says how their runs stand; changes nothing on disk, and executes nothing of them.

A run is "running" while a process holds its lock, and "hung" if that process has done a step and then made no progress
for the run's own timeout_seconds. Else result.json says how it ended: finished, diverged or stopped. Without one it is
"unfinished": it was killed, and the same command continues it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from configs import ConfigError, flat, read_config
from files.errors import printable, shown
from files.lock import is_held
from files.paths import expanded
from files.reading import number
from launch.progress import JobProgress
from launch.run_files import CONFIG, ENVIRONMENT, HEARTBEAT, LOCK, METRICS, STATUSES, is_run, read_result, time_of
from launch.standstill import timeout_in

DEPTH = 4  # of folders below a given one that are searched
LIVE = ("running", "hung")
STATES = (*LIVE, *STATUSES, "unfinished")
FACTS = ("name", "state", "step", "train/loss", "val/loss", "changed")


@dataclass(eq=False)
class ListedRun:
    """A run and how it stands.

    settings: its configuration by dotted key. heartbeat_seconds: since its last progress, None unless it is running.
    changed: when it last wrote, in seconds since the epoch.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    progress: JobProgress
    heartbeat_seconds: float | None = None
    changed: float = 0.0

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.progress.run_dir

    @property
    def state(self) -> str:
        """running, hung, finished, diverged, stopped or unfinished."""
        return self.progress.state

    @property
    def facts(self) -> dict[str, Any]:
        """What runs are filtered and sorted by: FACTS and the settings."""
        own = self.progress
        values = (own.name, own.state, own.step, own.train_loss, own.val_loss, self.changed)
        return {**self.settings, **dict(zip(FACTS, values, strict=True))}

    def update(self) -> None:
        """Reads how the run stands now. Raises: ReadingError: if result.json is damaged."""
        self.changed = max(time_of(self.path / name) or 0.0 for name in (CONFIG, ENVIRONMENT, METRICS, HEARTBEAT))
        own, result = self.progress, None
        if is_held(self.path / LOCK):
            beat = time_of(self.path / HEARTBEAT)
            self.heartbeat_seconds = None if beat is None else max(time.time() - beat, 0.0)
            is_hung = (self.heartbeat_seconds or 0.0) > timeout_in(self.settings)
            own.state = "hung" if is_hung else "running"
        else:
            result, self.heartbeat_seconds = read_result(self.path), None
            own.state = result["status"] if result else "unfinished"
        if result is None:
            own.update()
        else:
            own.step, own.train_loss, own.val_loss = result["step"] or 0, result["train/loss"], result["val/loss"]


class RunList:
    """The runs in some folders. places: run directories, folders that hold some, or patterns, which become their paths.

    may_be_missing: a folder that is not there holds no runs yet. Raises: ConfigError: if a place is not there.
    """

    def __init__(self, places: Sequence[str], *, may_be_missing: bool = False) -> None:
        self.places = (
            list(map(Path, places)) if may_be_missing else [each for place in places for each in paths_of(place)]
        )
        self._known: dict[Path, tuple[float | None, ListedRun]] = {}  # time of config.yaml, and the run
        self.notes: list[str] = []  # on runs that cannot be read

    def refresh(self) -> list[ListedRun]:
        """Returns the runs as they stand now: those that are running first, then the one that wrote last."""
        self.notes, found = [], []
        for name, path in self._found().items():
            try:
                run = self._run(name, path)
                run.update()
                found.append(run)
            except (ValueError, OSError) as error:
                self.notes.append(printable(f"left out: {error}"))
        return sorted(found, key=lambda run: (run.state not in LIVE, -run.changed))

    def _found(self) -> dict[str, Path]:
        """Every run directory once, under its path below the folder that was given."""
        found: dict[Path, tuple[str, Path]] = {}
        for place in self.places:
            for path in run_directories(place):
                name = str(path.relative_to(place)) if path != place else path.name
                found.setdefault(path.resolve(), (name, path))
        names = [name for name, _ in found.values()]
        return {name if names.count(name) == 1 else str(path): path for name, path in found.values()}

    def _run(self, name: str, path: Path) -> ListedRun:
        written = time_of(path / CONFIG)
        known = self._known.get(path)
        if known is None or known[0] != written:
            config = read_config(path / CONFIG)
            steps = number(config.get("max_steps"))
            progress = JobProgress(name, path, int(steps or 0))
            known = written, ListedRun(config, flat(config), progress)
            self._known[path] = known
        return known[1]


def paths_of(place: str) -> Iterator[Path]:
    """The paths that an argument names: a path, or a pattern. Raises: ConfigError: if it names none."""
    path = expanded(place, "run")
    if path.exists():
        yield path
    elif has_magic(str(path)) and (matches := sorted(glob(str(path), recursive=True))):  # noqa: PTH207  # absolute too
        yield from map(Path, matches)
    else:
        what = "nothing matches" if has_magic(str(path)) else "there is no such folder"
        raise ConfigError(f"{shown(place)}: {what}")


def run_directories(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yields the folder if it is a run directory, else those below it, sorted."""
    if is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if path.is_dir() and not path.name.startswith("."):
                    yield from run_directories(path, depth - 1)


def by(runs: Sequence[ListedRun], key: str) -> list[ListedRun]:
    """The runs in the order of a fact or setting, "-key" the other way round; those that do not have it come last."""
    name = key.removeprefix("-")

    def rank(run: ListedRun) -> tuple[bool, float, str]:
        value = run.facts.get(name)
        amount = number(value)
        return amount is None, amount or 0.0, "" if value is None else str(value)

    known = [run for run in runs if run.facts.get(name) is not None]
    ordered = sorted(known, key=rank, reverse=key != name)
    return ordered + [run for run in runs if run.facts.get(name) is None]


def keys_of(runs: Sequence[ListedRun]) -> list[str]:
    """Every key by which at least one of the runs can be filtered or sorted."""
    return list(dict.fromkeys(key for run in runs for key in run.facts))
