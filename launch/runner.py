"""Starts jobs where there is room, follows those that go on, and ends those that hang."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs import RunConfig
from configs.door import BAD_INPUT
from launch.entry import Entry, entry_of
from launch.job import Outcome, Source
from launch.launcher import Ending, Launcher, Running
from launch.run_rows import age
from launch.statuses import FAILED
from launch.watch import AGAIN, LOOK_SECONDS, Watch


class Started:
    """A job that was started. watch: what ends its run if it hangs."""

    def __init__(self, entry: Entry, running: Running) -> None:
        self.entry, self.running, self.watch = entry, running, Watch(entry.standstill, running)

    def look(self) -> None:
        """Ends a run that hangs."""
        self.watch.look()
        if self.watch.stood:
            self.entry.show("hung", f"{self.watch.stood}: it is asked to end")

    def settle(self, ending: Ending) -> None:
        """Records how it ended."""
        ending = self.watch.judged(ending)
        self.entry.settle(ending, ending.message or "")


class Runner:
    """Starts the jobs that have no outcome as long as some wait and the launcher has room."""

    def __init__(
        self,
        entries: Sequence[Entry],
        launcher: Launcher,
        script: Path,
        *,
        alike: bool,
        source: Source | None,
        provide: Callable[[RunConfig], object] | None,
    ) -> None:
        self._alike, self._source, self._provide, self._is_closed = alike, source, provide, False
        self._entries, self._launcher, self._script, self._looked = list(entries), launcher, script, time.monotonic()
        self._waiting = [entry for entry in entries if entry.outcome is None]
        self._asked_for: list[Entry] = []  # from the source, which does not know yet how they ended
        self.running: list[Started] = []
        self.progress = [entry.progress for entry in entries]
        for entry in list(self._waiting):
            self._follow(entry)

    @property
    def is_elsewhere(self) -> bool:
        """Whether what is running goes on when the command ends."""
        return self._launcher.is_elsewhere

    @property
    def is_done(self) -> bool:
        """Whether all jobs have ended."""
        return (
            not self._waiting and not self.running and (self._is_closed or self._source is None or self._source.is_done)
        )

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes of the jobs that have ended."""
        return [entry.outcome for entry in self._entries if entry.outcome is not None]

    def advance(self) -> None:
        """Records the jobs that have ended, and starts those that can start."""
        self.collect()
        if self._alike and (self._waiting or self._source) and is_shared(self.outcomes):
            self._waiting.clear()
            self._is_closed = True
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look()
        self._ask()
        if entries := self._next(self._launcher.room()):
            self._start(entries)

    def collect(self) -> None:
        """Records the processes that have ended."""
        for started in list(self.running):
            if (ending := started.running.ending()) is not None:
                self.running.remove(started)
                # A process fails if another one got the run directory before it.
                has_reported = ending.status == "failed" and ending.exit_status in (FAILED, BAD_INPUT)
                if has_reported and not started.watch.stood and started.entry.is_elsewhere():
                    self._waiting.insert(0, started.entry)
                else:
                    started.settle(ending)
            else:
                if not started.watch.stood:
                    started.entry.show(started.running.state, started.running.note)
                if self._source and self._source.is_to_stop(started.entry.job):
                    started.running.ask_to_stop()
        self._tell()

    def _ask(self) -> None:
        """Gets as many jobs from the source as can start."""
        while self._source and not self._is_closed and len(self._waiting) < self._launcher.room():
            if (job := self._source.next()) is None:
                break
            entry = entry_of(job)
            self._entries.append(entry)
            self._asked_for.append(entry)
            self.progress.append(entry.progress)
            if entry.has_ended_before():
                break  # what it found may matter to the next
            if self._provide is not None:
                self._provide(entry.config)
            self._waiting.append(entry)
            self._follow(entry)

    def _follow(self, entry: Entry) -> None:
        """Waits for the run of a job that goes on already, started by an earlier command, in place of starting it."""
        if (running := self._launcher.found(entry.start)) is not None:
            self._waiting.remove(entry)
            self.running.append(Started(entry, running))

    def _tell(self) -> None:
        """Tells the source which of its jobs have ended."""
        for entry in list(self._asked_for):
            if self._source and entry.outcome is not None:
                self._asked_for.remove(entry)
                entry.progress.note = self._source.ended(entry.outcome) or entry.progress.note

    def _look(self) -> None:
        """Looks at the runs that go on: ends those that hang, and sees which of somebody else have ended."""
        if not self.is_elsewhere:  # there slurm_task.py looks
            for started in self.running:
                started.look()
        for entry in [entry for entry in self._waiting if entry.progress.state == "elsewhere"]:
            if entry.has_ended_before():
                self._waiting.remove(entry)
            elif not entry.is_elsewhere():
                entry.show("waiting", "")
            elif entry.standstill.is_hung():
                self._waiting.remove(entry)
                entry.fail(
                    f"{entry.progress.note} holds {entry.run_dir} and has made no progress for "
                    f"{age(entry.standstill.seconds)}; end that process, and {AGAIN}"
                )

    def _next(self, most: int) -> list[Entry]:
        """The first jobs whose runs nobody else has."""
        found: list[Entry] = []
        for entry in [entry for entry in self._waiting if entry.progress.state != "elsewhere"]:
            if len(found) == most:
                break
            if entry.has_ended_before():
                self._waiting.remove(entry)
            elif not entry.is_elsewhere():
                self._waiting.remove(entry)
                found.append(entry)
        return found

    def _start(self, entries: Sequence[Entry]) -> None:
        for entry, running in zip(
            entries, self._launcher.start([entry.start for entry in entries], self._script), strict=True
        ):
            if isinstance(running, BlockingIOError):
                self._waiting.insert(0, entry)
            elif isinstance(running, OSError):
                entry.fail(str(running))
            else:
                self.running.append(Started(entry, running))
                entry.show(running.state, running.note)


def is_shared(outcomes: Sequence[Outcome]) -> bool:
    """Whether failures show that jobs which are alike would fail, too: bad input, or the same message from two jobs.

    A message that names the run directory concerns that job alone.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    is_own = [str(outcome.run_dir) in (outcome.message or "") for outcome in failed]
    if any(each.exit_status == BAD_INPUT and not own for each, own in zip(failed, is_own, strict=True)):
        return True
    messages = [re.sub(r"\d+", "0", each.message or "") for each, own in zip(failed, is_own, strict=True) if not own]
    return len(set(messages)) < len(messages)
