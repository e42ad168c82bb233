"""A profile of ten steps of a run: a trace for a browser, and the time that each phase of a step takes."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from files.writing import write_text

WAIT, WARM_UP, STEPS = 3, 2, 10  # steps: compiling and first uses; the profiler's own; those that are profiled
TRACE, TABLE = "trace.json.gz", "phases.txt"
NOTHING = nullcontext()
log = logging.getLogger(__name__)


class Phases:
    """What the parts of a step report to; without a profile nothing listens."""

    def begin_step(self) -> None:
        """Says that a step begins."""

    def named(self, name: str) -> AbstractContextManager[None]:
        """The context of one phase of a step; a phase within another is shown in the trace alone."""
        return NOTHING

    def close(self) -> None:
        """Ends the profile."""


class Profile(Phases):
    """Profiles the steps from the sixth on, and writes trace.json.gz and phases.txt to a folder.

    The trace opens in ui.perfetto.dev and chrome://tracing. A phase's time on the device is that between its first and
    its last piece of work there, measured by events that nobody waits for. apart: makes the context of writing.
    A profile that cannot be written costs a warning.
    """

    def __init__(self, folder: Path, device: torch.device, apart: Callable[[], AbstractContextManager[Any]]) -> None:
        self._folder, self._device, self._apart = folder, device, apart
        self._begun, self._depth, self._is_over = 0, 0, False
        self._host: dict[str, list[float]] = defaultdict(list)  # seconds of every occurrence
        self._on_device: dict[str, list[tuple[Any, Any]]] = defaultdict(list)  # events before and after it
        self._steps: list[tuple[float, Any]] = []  # when profiled steps began, and when the last one ended
        kinds = torch.profiler.ProfilerActivity
        activities = [kinds.CPU] + [getattr(kinds, device.type.upper())] * self._has_events
        schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1)
        self._profiler = torch.profiler.profile(
            activities=activities, schedule=schedule, on_trace_ready=lambda _: self._write()
        )

    @override
    def begin_step(self) -> None:
        if self._is_over:
            return
        if self._begun == WAIT + WARM_UP + STEPS:
            self._end()
            return
        if self._begun:
            self._profiler.step()
        else:
            self._profiler.start()
        self._begun += 1
        if self._is_profiled:
            self._steps.append((time.perf_counter(), self._event()))

    @override
    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        is_counted = self._is_profiled and self._depth == 0
        self._depth += 1
        began, before = time.perf_counter(), self._event() if is_counted else None
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            self._depth -= 1
            if is_counted:
                self._host[name].append(time.perf_counter() - began)
                self._on_device[name].append((before, self._event()))

    @override
    def close(self) -> None:
        if self._begun and not self._is_over:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        if self._is_profiled:
            self._steps.append((time.perf_counter(), self._event()))
        else:
            log.warning("warning: no profile: the run ended before its step %d", WAIT + WARM_UP + 1)
        self._profiler.stop()  # writes, if steps were profiled
        del self._profiler  # which has kept all that it saw

    @property
    def _is_profiled(self) -> bool:
        """Whether the step that has begun is profiled."""
        return WAIT + WARM_UP < self._begun <= WAIT + WARM_UP + STEPS

    @property
    def _has_events(self) -> bool:
        return self._device.type in ("cuda", "xpu")

    def _event(self) -> Any:
        """An event of now in the device's queue; None on a CPU."""
        if not self._has_events:
            return None
        event = torch.get_device_module(self._device).Event(enable_timing=True)
        event.record()
        return event

    def _write(self) -> None:
        with self._apart():
            try:
                self._profiler.export_chrome_trace(str(self._folder / TRACE))
                table = "\n".join(self._table())
                write_text(self._folder / TABLE, f"{table}\n")
                print(f"{table}\n{self._folder / TRACE} opens in ui.perfetto.dev", flush=True)
            except Exception as error:  # of the profiler, or a full disk
                log.warning("warning: the profile failed (%s: %s)", type(error).__name__, error)

    def _table(self) -> Iterator[str]:
        """Lines: a phase's occurrences and milliseconds per step, on the host and on the device."""
        n = len(self._steps) - 1
        if self._has_events:
            torch.get_device_module(self._device).synchronize()
        whole = self._row([self._steps[-1][0] - self._steps[0][0]], [(self._steps[0][1], self._steps[-1][1])])
        rows = {name: self._row(host, self._on_device[name]) for name, host in self._host.items()}
        rows["the rest"] = [total - sum(own) for total, *own in zip(whole, *rows.values(), strict=True)]
        rows["a step"] = whole
        columns = ("host ms", "device ms")[: len(whole)]
        yield f"{n} steps after {WAIT + WARM_UP} others; per step:"
        yield "".join((f"{'phase':12}{'times':>8}", *(f"{column:>12}" for column in columns), f"{'share':>8}"))
        for name, found in rows.items():
            times = f"{len(self._host[name]) / n:g}" if name in self._host else ""
            cells = "".join(f"{1e3 * seconds / n:12.2f}" for seconds in found)
            yield f"{name:12}{times:>8}{cells}{found[-1] / whole[-1]:8.1%}"

    def _row(self, host: Sequence[float], events: Sequence[tuple[Any, Any]]) -> list[float]:
        """The sum of seconds on the host and, if that is not the same, on the device."""
        if not self._has_events:
            return [sum(host)]
        return [sum(host), sum(before.elapsed_time(after) for before, after in events) / 1e3]  # it gives milliseconds
