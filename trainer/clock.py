"""The time a run spends in training steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Counts seconds from its creation on, except while paused.

    seconds: what earlier parts of the run took. synchronize: waits for the device, so that its work is counted where
    it belongs.
    """

    def __init__(self, seconds: float, synchronize: Callable[[], None]) -> None:
        self._counted, self._since, self._synchronize = seconds, time.perf_counter(), synchronize

    @property
    def seconds(self) -> float:
        """Seconds so far; while paused, those until then."""
        return self._counted + max(time.perf_counter() - self._since, 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation, saving and logging do not count."""
        self._synchronize()
        self._counted, self._since = self.seconds, math.inf
        try:
            yield
        finally:
            self._synchronize()
            self._since = time.perf_counter()
