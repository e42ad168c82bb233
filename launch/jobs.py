"""Runs train.py in processes of their own: finished runs are skipped, broken ones continued.

The only record are the run directories, so the same call continues wherever the last one ended. A process writes its
output to <run_dir>.log, beside its run directory. If the calling process is killed (SIGKILL), its processes get SIGTERM
from Linux, on which they save and end; on other systems they train to their end.

A run that a process of somebody else holds is left to it, and the other jobs go first: of an equal call, so that two
share their jobs, or of one that was killed. When that process has ended, its result is taken, or the run continued. A
run that hangs is ended, if it was started here, and its job fails.
"""

import math
import re
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import ConfigError, ReadingError, RunConfig, compose, differences
from configs.door import BAD_INPUT
from files.lock import holder, is_held
from launch.launcher import Ending, Launcher, Running, Start
from launch.local import Local
from launch.processes import GRACE_SECONDS, TRAIN, log_path, read_result
from launch.progress import Display, JobProgress
from launch.run_files import CONFIG, LOCK
from launch.run_rows import age
from launch.standstill import Standstill
from launch.statuses import EXIT_STATUS, FAILED
from launch.stopping import SignalCounter

POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0  # between two looks at whether runs make progress, and at those of others
AGAIN = "the same command continues it"


@dataclass(frozen=True)
class Job:
    """A run to do: `python train.py *overrides`; name: how it is shown."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    status: "finished", "diverged", "stopped" (it can be continued) or "failed". result: the content of
    result.json, None if there is none. message: the error that the process reported, None if it finished. seconds:
    wall-clock time of the process, 0 if none was started. exit_status: as train.py's; 128 + n if signal n ended it.
    """

    job: Job
    run_dir: Path
    status: str
    result: dict[str, Any] | None
    message: str | None
    seconds: float
    exit_status: int = 0


class Source(ABC):
    """Gives jobs one at a time, as there is room for them: the next may depend on how others ended."""

    @property
    @abstractmethod
    def sample(self) -> Job:
        """A job like those that it gives, for the launcher to check."""

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether it gives no more jobs."""

    @abstractmethod
    def next(self) -> Job | None:
        """Returns the next job, None if there is none now."""

    @abstractmethod
    def is_to_stop(self, job: Job) -> bool:
        """Whether the job, which runs, is to save and end; True once."""

    @abstractmethod
    def ended(self, outcome: Outcome) -> str:
        """Takes in how one of its jobs ended; returns what is to be shown beside it, if that is not its message."""


class Interrupted(SystemExit):
    """Raised after a signal, when all processes have ended; the same call continues. Uncaught, the command exits 75."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        super().__init__(EXIT_STATUS["stopped"])
        self.outcomes = list(outcomes)

    def __str__(self) -> str:
        return f"interrupted; the same command continues: {as_typed()}"


def as_typed() -> str:
    """The command of this process, quoted for a shell."""
    return shlex.join(sys.orig_argv)


def run_jobs(
    jobs: Sequence[Job],
    launcher: Launcher | None = None,
    *,
    show: bool = True,
    script: Path = TRAIN,
    alike: bool = False,
    provide: Callable[[RunConfig], object] | None = None,
    source: Source | None = None,
) -> list[Outcome]:
    """Runs the jobs in order, as the launcher has room, Local() if None; returns their outcomes in order.

    source: gives further jobs.

    A job whose run directory holds its run, finished or diverged, starts no process. If a job fails, the others
    run all the same, unless the jobs are alike and all would fail for the same reason (see _is_shared): those that have
    not started then have no outcome. provide: called with the configuration of every run that starts elsewhere, before
    any does; it makes what they read, or says what is missing. Call this from the main thread: it handles the signals
    of stopping.py meanwhile.

    Raises: ConfigError: before anything starts, if a job does not compose, two share a run directory, or the launcher
    cannot start it. Interrupted: after a signal; a second SIGINT does not wait for processes to save.
    """
    with SignalCounter() as signals:
        entries = [_entry(job) for job in jobs]
        _check_run_dirs(entries)
        launcher = launcher or Local()
        samples = [_entry(source.sample)] if source else []
        launcher.check([entry.start for entry in [*entries, *samples]])
        provide = provide if launcher.is_elsewhere else None
        if provide is not None:
            for entry in [*entries, *samples]:
                if not entry.has_ended_before():
                    provide(entry.config)
        runner = _Runner(entries, launcher, script, alike=alike, source=source, provide=provide)
        with Display(runner.progress, show=show, is_numbered=source is None) as display:
            _run(runner, signals, display)
    if signals.count:
        interrupted = Interrupted(runner.outcomes)
        display.say(str(interrupted))
        raise interrupted
    return runner.outcomes


def _run(runner: "_Runner", signals: SignalCounter, display: Display) -> None:
    try:
        while not runner.is_done and not signals.count:
            runner.advance()
            display.refresh()
            time.sleep(POLL_SECONDS)
    finally:
        _stop(runner, signals, display)  # does nothing if all have ended


@dataclass(eq=False)
class _Entry:
    """A job with its configuration and its progress."""

    job: Job
    config: RunConfig
    progress: JobProgress
    standstill: Standstill
    outcome: Outcome | None = None

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.progress.run_dir

    @property
    def start(self) -> Start:
        """What the launcher gets."""
        return Start(self.job.overrides, self.config)

    def settle(self, ending: Ending, note: str) -> None:
        """Records how the job ended."""
        self.outcome = Outcome(self.job, self.run_dir, *ending)
        self.show(ending.status, note)
        self.progress.update()

    def fail(self, message: str) -> None:
        """Records that it failed without a result, or with one that does not count."""
        self.settle(Ending("failed", None, message, 0.0, FAILED), message)

    def show(self, state: str, note: str) -> None:
        """Shows how it stands."""
        self.progress.state, self.progress.note = state, note

    def has_ended_before(self) -> bool:
        """Whether the run directory holds this run, finished or diverged; records that as the outcome."""
        saved, found = self.run_dir / CONFIG, read_result(self.run_dir)
        if found is None or found.get("status") not in ("finished", "diverged") or not saved.is_file():
            return False
        with suppress(ReadingError):
            if not differences(self.config, saved):
                self._settle_as(found)
                return True
        return False  # train.py will report the difference, or what is wrong with the file

    def _settle_as(self, found: dict[str, Any]) -> None:
        """Records the outcome from a result.json of another process."""
        status = found["status"]
        message = None if status == "finished" else f"diverged at step {found.get('step')}"
        note = "elsewhere" if self.progress.state == "elsewhere" else "before"
        self.settle(Ending(status, found, message, 0.0, EXIT_STATUS[status]), note)

    def is_elsewhere(self) -> bool:
        """Whether a live process of somebody else holds the run, or is about to; shows which."""
        owner = holder(self.run_dir / LOCK)
        if owner is None and is_held(log_path(self.run_dir)):
            owner = "a process that begins"
        if owner is not None:
            self.show("elsewhere", owner)
        return owner is not None


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs whose run directory does not hold their run, finished or diverged. Raises: ConfigError."""
    return [entry.job for entry in map(_entry, jobs) if not entry.has_ended_before()]


def _entry(job: Job) -> _Entry:
    try:
        config = compose(job.overrides)
    except ConfigError as error:
        raise ConfigError(f"job {job.name!r}: {error}") from None
    run_dir = Path(config.run_dir)
    return _Entry(job, config, JobProgress(job.name, run_dir, config.max_steps), Standstill(run_dir))


def _check_run_dirs(entries: Sequence[_Entry]) -> None:
    owners: dict[Path, _Entry] = {}
    for entry in entries:
        owner = owners.setdefault(entry.run_dir.resolve(), entry)
        if owner is not entry:
            raise ConfigError(
                f"jobs {owner.job.name!r} and {entry.job.name!r} would both write run_dir={entry.run_dir}; leave "
                "run_dir out and let them differ in what they train, or give each its own"
            )


@dataclass(eq=False)
class _Started:
    """A job that was started. hung: the message if it hangs; it was asked to stop then, and is killed at kill_at."""

    entry: _Entry
    running: Running
    hung: str = ""
    kill_at: float = math.inf

    def look(self) -> None:
        """Ends a run that hangs: it is asked to stop, and killed after GRACE_SECONDS."""
        still = self.entry.standstill
        if not self.hung and still.is_hung():
            stood = f"no progress for {age(still.seconds)}, timeout_seconds={still.timeout_seconds:g}"
            self.hung = f"{stood}: it was ended; {AGAIN}; {self.running.note}"
            self.entry.show("hung", f"{stood}: it is asked to end")
            self.kill_at = time.monotonic() + GRACE_SECONDS
            self.running.ask_to_stop()
        if time.monotonic() > self.kill_at:
            self.running.kill()

    def settle(self, ending: Ending) -> None:
        """Records how it ended."""
        if self.hung and ending.status not in ("finished", "diverged"):
            ending = Ending("failed", ending.result, self.hung, ending.seconds, FAILED)
        self.entry.settle(ending, ending.message or "")


class _Runner:
    """Starts jobs as long as some wait and the launcher has room."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        launcher: Launcher,
        script: Path,
        *,
        alike: bool,
        source: Source | None,
        provide: Callable[[RunConfig], object] | None,
    ) -> None:
        self._alike, self._source, self._provide, self._is_closed = alike, source, provide, False
        self._entries, self._launcher, self._script, self._looked = list(entries), launcher, script, time.monotonic()
        self._waiting = [entry for entry in entries if not entry.has_ended_before()]
        self._asked_for: list[_Entry] = []  # from the source, which does not know yet how they ended
        self.running: list[_Started] = []
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
        if self._alike and (self._waiting or self._source) and _is_shared(self.outcomes):
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
                if has_reported and not started.hung and started.entry.is_elsewhere():
                    self._waiting.insert(0, started.entry)
                else:
                    started.settle(ending)
            else:
                if not started.hung:
                    started.entry.show(started.running.state, started.running.note)
                if self._source and self._source.is_to_stop(started.entry.job):
                    started.running.ask_to_stop()
        self._tell()

    def _ask(self) -> None:
        """Gets as many jobs from the source as can start."""
        while self._source and not self._is_closed and len(self._waiting) < self._launcher.room():
            if (job := self._source.next()) is None:
                break
            entry = _entry(job)
            self._entries.append(entry)
            self._asked_for.append(entry)
            self.progress.append(entry.progress)
            if entry.has_ended_before():
                break  # what it found may matter to the next
            if self._provide is not None:
                self._provide(entry.config)
            self._waiting.append(entry)
            self._follow(entry)

    def _follow(self, entry: _Entry) -> None:
        """Waits for the run of a job that goes on already, started by an earlier command, in place of starting it."""
        if (running := self._launcher.found(entry.start)) is not None:
            self._waiting.remove(entry)
            self.running.append(_Started(entry, running))

    def _tell(self) -> None:
        """Tells the source which of its jobs have ended."""
        for entry in list(self._asked_for):
            if self._source and entry.outcome is not None:
                self._asked_for.remove(entry)
                entry.progress.note = self._source.ended(entry.outcome) or entry.progress.note

    def _look(self) -> None:
        """Looks at the runs that go on: ends those that hang, and sees which of somebody else have ended."""
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

    def _next(self, most: int) -> list[_Entry]:
        """The first jobs whose runs nobody else has."""
        found: list[_Entry] = []
        for entry in [entry for entry in self._waiting if entry.progress.state != "elsewhere"]:
            if len(found) == most:
                break
            if entry.has_ended_before():
                self._waiting.remove(entry)
            elif not entry.is_elsewhere():
                self._waiting.remove(entry)
                found.append(entry)
        return found

    def _start(self, entries: Sequence[_Entry]) -> None:
        for entry, running in zip(
            entries, self._launcher.start([entry.start for entry in entries], self._script), strict=True
        ):
            if isinstance(running, BlockingIOError):
                self._waiting.insert(0, entry)
            elif isinstance(running, OSError):
                entry.fail(str(running))
            else:
                self.running.append(_Started(entry, running))
                entry.show(running.state, running.note)


def _is_shared(outcomes: Sequence[Outcome]) -> bool:
    """Whether failures show that jobs which are alike would fail, too: bad input, or the same message from two jobs.

    A message that names the run directory concerns that job alone.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    is_own = [str(outcome.run_dir) in (outcome.message or "") for outcome in failed]
    if any(each.exit_status == BAD_INPUT and not own for each, own in zip(failed, is_own, strict=True)):
        return True
    messages = [re.sub(r"\d+", "0", each.message or "") for each, own in zip(failed, is_own, strict=True) if not own]
    return len(set(messages)) < len(messages)


def _stop(runner: _Runner, signals: SignalCounter, display: Display) -> None:
    """Asks the processes to end, and kills them after GRACE_SECONDS or a second SIGINT."""
    if not runner.running:
        return
    if runner.is_elsewhere:
        display.say(f"{len(runner.running)} not ended: they go on without this command; given again, it follows them")
        return
    display.say(f"stopping: {len(runner.running)} running, they save and end; interrupt again to kill them")
    for started in runner.running:
        started.running.ask_to_stop()
    deadline = time.monotonic() + GRACE_SECONDS
    while runner.running:
        if time.monotonic() > deadline or signals.interrupts > 1:
            for started in runner.running:
                started.running.kill()
        time.sleep(POLL_SECONDS)
        runner.collect()
        display.refresh()
