"""Handles the signals that ask a run to stop.

While modules are imported     exit_at_once(): the process ends, as nothing is open yet
While a run is set up          interruptible(): KeyboardInterrupt, so that files are closed and locks released
While it trains                StopRequest: the loop asks for it at the end of each step, then saves and stops
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from typing_extensions import override

from configs.door import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class SignalCounter:
    """Counts the signals of stop_signals() while it is entered; restores the earlier handlers on exit."""

    def __init__(self) -> None:
        self.count = self.interrupts = 0  # all signals; SIGINT alone, which Ctrl-C sends
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = _handle(self._answer)
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

    def _answer(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.interrupts += number == signal.SIGINT


class StopRequest(SignalCounter):
    """Whether a run is asked to stop. A second SIGINT interrupts at once, for a second Ctrl-C."""

    @override
    def _answer(self, number: int, frame: FrameType | None) -> None:
        super()._answer(number, frame)
        if number == signal.SIGINT and self.interrupts > 1:
            raise KeyboardInterrupt


def leave(status: int) -> NoReturn:
    """Ends the process when all its files are closed, and spares it taking torch apart, which costs a second or more.

    Nor can threads of gloo abort the exit then (github.com/pytorch/pytorch/issues/190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_at_once() -> None:
    """Makes SIGNALS end this process with exit status 75, for good."""

    def exit_process(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(STOPPED)

    _handle(exit_process)


@contextmanager
def interruptible() -> Iterator[None]:
    """While entered, SIGNALS raise KeyboardInterrupt; restores the earlier handlers on exit."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = _handle(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Callable[[int, FrameType | None], Any]) -> dict[signal.Signals, Any]:
    """Sets the handler for all stop_signals(); returns the earlier handlers."""
    return {number: signal.signal(number, handler) for number in stop_signals()}


def stop_signals() -> list[signal.Signals]:
    """Returns SIGNALS, without SIGHUP (the terminal is closed) if nohup made the process ignore it."""
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (is_nohup and number is signal.SIGHUP)]
