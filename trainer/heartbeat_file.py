"""Shows other programs that a run makes progress: by the time of the file heartbeat in its directory."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer.heartbeat import Watch

PERIOD_SECONDS = 5.0


class HeartbeatFile:
    """Renews the time of a file every period_seconds if there was progress meanwhile, until close() deletes it.

    The file appears when has_begun(), as nobody can say how long it may take until then: for example to compile. What
    counts is what the watch of the main rank is told: progress() and busy(). A thread does it, so that a file
    system that hangs does not hold up training, and then shows as a hang. A file that cannot be written is no error.
    """

    def __init__(
        self, path: Path, watch: Watch, has_begun: Callable[[], bool], period_seconds: float = PERIOD_SECONDS
    ) -> None:
        self._path, self._watch, self._has_begun, self._period = path, watch, has_begun, period_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat file", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Deletes the file; waits for a file system that hangs for one period at most."""
        self._over.set()
        self._thread.join(self._period)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        seen = self._watch.reports
        while not self._over.wait(self._period):
            if self._has_begun() and ((found := self._watch.reports) != seen or self._watch.is_busy):
                seen = found
                with suppress(OSError):  # a full disk
                    self._path.touch()
