"""The signals that ask to stop: a run stops at the end of its step, a launcher once its runs have saved and ended."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from typing_extensions import override

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class SignalCounter:
    """Counts the signals of heeded() while it is entered; the handlers of before return on exit."""

    def __init__(self) -> None:
        self.count = self.interrupts = 0  # of all signals; of SIGINT, which a keyboard sends
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in heeded()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.count > 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.interrupts += number == signal.SIGINT


class StopRequest(SignalCounter):
    """Whether a run is asked to stop. A second SIGINT interrupts at once, for people at a keyboard."""

    @override
    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        if number == signal.SIGINT and self.interrupts > 1:
            raise KeyboardInterrupt


def heeded() -> list[signal.Signals]:
    """SIGNALS without SIGHUP, which says that the terminal is closed, where nohup made the process ignore it."""
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (is_nohup and number is signal.SIGHUP)]
