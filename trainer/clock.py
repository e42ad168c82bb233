"""Measures the time that a run spends in training steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Counts seconds from its creation on, except while paused.

    seconds: the count to start from, of a run that continues. synchronize: waits for the device, so that its work is
    counted when it is done.
    """

    def __init__(self, seconds: float, synchronize: Callable[[], None]) -> None:
        self._counted, self._since, self._synchronize = seconds, time.perf_counter(), synchronize

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._counted + max(time.perf_counter() - self._since, 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops counting while it is entered: during evaluation, saving and logging."""
        self._synchronize()
        self._counted, self._since = self.seconds, math.inf
        try:
            yield
        finally:
            self._synchronize()
            self._since = time.perf_counter()
