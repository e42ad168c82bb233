"""Ends runs that hang."""

import math
import time

from launch.launcher import Ending, Running
from launch.processes import GRACE_SECONDS
from launch.run_rows import age
from launch.standstill import Standstill
from launch.statuses import FAILED

LOOK_SECONDS = 1.0  # between two looks
AGAIN = "the same command continues it"


class Watch:
    """Ends a run that hangs: it is asked to stop, and killed after GRACE_SECONDS. stood: how it hangs, for the user."""

    def __init__(self, standstill: Standstill, running: Running) -> None:
        self._standstill, self._running, self._kill_at = standstill, running, math.inf
        self.stood = ""

    def look(self) -> None:
        """Looks again; call it about every LOOK_SECONDS."""
        still = self._standstill
        if not self.stood and still.is_hung():
            self.stood = f"no progress for {age(still.seconds)}, timeout_seconds={still.timeout_seconds:g}"
            self._kill_at = time.monotonic() + GRACE_SECONDS
            self._running.ask_to_stop()
        if time.monotonic() > self._kill_at:
            self._running.kill()

    def judged(self, ending: Ending) -> Ending:
        """How the run ended: failed, if it hung and did not come to its end after all."""
        if not self.stood or ending.status in ("finished", "diverged"):
            return ending
        message = f"{self.stood}: it was ended; {AGAIN}; {self._running.note}"
        return Ending("failed", ending.result, message, ending.seconds, FAILED)
