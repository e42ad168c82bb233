"""Notices that a run's process lives and makes no progress any more."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from files.errors import ReadingError
from files.lock import is_held
from files.reading import number, read_yaml
from launch.run_files import CONFIG, HEARTBEAT, LOCK, time_of

TIMEOUT_SECONDS = 600.0  # where a config.yaml has none, as schema.py
OWN_SECONDS = 60.0  # in which ranks that wait for another one say which, and end the run themselves
MOST_SECONDS = 5.0  # that count between two looks


class Standstill:
    """For how long a run stands still, as far as somebody looked: call is_hung() about every second.

    Only the time between two looks counts, and at most MOST_SECONDS of it, so neither a machine that was suspended nor
    two whose clocks differ make a run hang. A run that nobody holds, or that has not done its first step, does not
    stand still.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._looked, self._watched = run_dir, time.monotonic(), 0.0
        self._beat: float | None = None  # when the run last made progress, by its file system's clock
        self._timeout: float | None = None

    def is_hung(self) -> bool:
        """Looks again; whether the run stands still for its timeout_seconds and OWN_SECONDS, or twice its timeout."""
        beat, now = self._last_beat(), time.monotonic()
        self._watched = (
            0.0 if beat is None or beat != self._beat else self._watched + min(now - self._looked, MOST_SECONDS)
        )
        self._beat, self._looked = beat, now
        if beat is None:
            self._timeout = None  # of the next process
        return self._watched > self.timeout_seconds + min(self.timeout_seconds, OWN_SECONDS)

    @property
    def timeout_seconds(self) -> float:
        """The run's own."""
        if self._timeout is None:
            self._timeout = TIMEOUT_SECONDS
            with suppress(ReadingError):
                self._timeout = timeout_in(read_yaml(self._run_dir / CONFIG) or {})
        return self._timeout

    @property
    def seconds(self) -> float:
        """Since the last progress."""
        return max(self._watched, time.time() - (self._beat or time.time()))

    def _last_beat(self) -> float | None:
        with suppress(OSError):  # a file system that does not answer: look again later
            if is_held(self._run_dir / LOCK):
                return time_of(self._run_dir / HEARTBEAT)
        return None


def timeout_in(settings: Mapping[str, Any]) -> float:
    """The timeout_seconds of a run with these settings."""
    return number(settings.get("timeout_seconds")) or TIMEOUT_SECONDS
