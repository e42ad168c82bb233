"""Runs in SLURM's queue, each with a record of its job beside its run directory, by which later commands find it."""

import math
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import override

from configs import ConfigError
from files.reading import read_json
from launch.launcher import Ending, Running
from launch.processes import end_of, log_path, read_result, reported, said_in, stamp
from launch.slurm_queue import Queue, said
from launch.slurm_task import ROOT
from launch.statuses import EXIT_STATUS, FAILED

RECORD, RECORD_BYTES = ".slurm.json", 1 << 12  # what is added to a run directory's name, and the longest
POLL_SECONDS = 0.2
SETTLING_SECONDS = 10.0  # without a job in the queue before a run that has not finished counts as ended


class SlurmRun(Running):
    """A run in SLURM's queue.

    job: its name there, such as 12_3. before: stamp() of the run when the job was submitted. logs: the folder of what
    jobs print.
    """

    state = "queued"

    def __init__(self, run_dir: Path, job: str, queue: Queue, *, before: Any, logs: Path) -> None:
        self.job, self._run_dir, self._queue, self._logs = job, run_dir, queue, logs
        self._began, self.note = time.monotonic(), f"job {job}"
        self._before = list(before) if isinstance(before, tuple | list) else None
        self._gone_since: float | None = None

    @override
    def ending(self) -> Ending | None:
        if (there := self._queue.job(self.job)) is not None:
            self.state = "running" if there.state in ("RUNNING", "COMPLETING") else "queued"
            where = f"on {there.nodes}, log {log_path(self._run_dir)}" if there.nodes else f"waits: {there.reason}"
            self.note, self._gone_since = f"job {self.job} {where}", None
            return None
        if self._queue.answered < self._began:  # SLURM has not said that the job is gone
            self.note = f"job {self.job}; {self._queue.error}"
            return None
        self._gone_since = self._gone_since or self._queue.answered
        result, found = read_result(self._run_dir), stamp(self._run_dir)
        status, message = "failed", ""
        if result is not None and found is not None and list(found) != self._before:
            status, message = str(result["status"]), said_in(log_path(self._run_dir))
        if status not in ("finished", "diverged") and (told := self._told()) is not None:
            status, message = told  # also where it was stopped before it wrote anything, or hung
        if status not in ("finished", "diverged") and self._queue.answered - self._gone_since < SETTLING_SECONDS:
            return None  # a job that goes back to the queue is in none of its states for a moment
        said = None if status == "finished" else message or self._last_words()
        return Ending(status, result, said, time.monotonic() - self._began, EXIT_STATUS.get(status, FAILED))

    def _told(self) -> tuple[str, str] | None:
        """How the run ended and why, as the job's task printed it last; None if it did not."""
        begins = re.compile(rf"(stopped|failed): log {re.escape(str(log_path(self._run_dir.absolute())))}(?:: (.*))?")
        found = [match for line in self._printed().splitlines() if (match := begins.fullmatch(line))]
        return (found[-1][1], found[-1][2] or "") if found else None

    def _printed(self) -> str:
        """What the job printed, of every time that it was in the queue."""
        return "\n".join(end_of(path) for path in sorted(self._logs.glob(f"{self.job}_*_log.out")))

    def _last_words(self) -> str:
        """What the job printed last, where nothing says why there is no result."""
        if not (printed := self._printed().strip()):
            return (
                f"job {self.job} has printed nothing in {self._logs}: it was cancelled before it began, or its node "
                f"does not see that folder or {ROOT}"
            )
        last = reported(printed)
        return f"job {self.job} left SLURM's queue without a result; it printed last, in {self._logs}: {last}"

    @override
    def ask_to_stop(self) -> None:
        with suppress(ConfigError):  # it has ended, or SLURM does not answer
            said("scancel", "--signal=TERM", self.job)

    @override
    def kill(self) -> None:
        with suppress(ConfigError):
            said("scancel", self.job)


def wait_for(what: str, job: str, answer: Path, queue: Queue, logs: Path) -> None:
    """Waits until a job has written its answer, and shows how it stands; if this is interrupted, the job is cancelled.

    what: what the answer is, for the user. Raises: ValueError: if the job has ended without.
    """
    began, gone_since, note = time.monotonic(), math.inf, ""
    try:
        while not answer.exists():
            there = queue.job(job)
            if there is not None:
                gone_since = math.inf
                now = f"runs on {there.nodes}" if there.nodes else f"waits: {there.reason}"
                if now != note:
                    print(f"{what}: job {job} {now}", flush=True)
                note = now
            elif queue.answered >= began:
                gone_since = min(gone_since, queue.answered)
            if queue.answered - gone_since > SETTLING_SECONDS:
                raise ValueError(f"job {job} of SLURM ended without an answer; see {logs}")
            time.sleep(POLL_SECONDS)
    finally:
        if not answer.exists():
            with suppress(ConfigError):
                said("scancel", job)


def queued(places: Sequence[Path]) -> dict[Path, str]:
    """Of each run at these places that is in SLURM's queue: its job, and where it runs or why it waits.

    places: run directories, or folders that hold some. Raises: ConfigError: if some may be and SLURM does not answer.
    """
    beside = {record_path(place) for place in places if place.name}
    records = beside | {path for place in places for path in place.glob(f"**/*{RECORD}")}
    run_dirs = [path.with_name(path.name.removesuffix(RECORD)) for path in sorted(records) if path.is_file()]
    if not run_dirs or shutil.which("squeue") is None:
        return {}
    queue = Queue(math.inf)
    queue.refresh()
    if queue.error:
        raise ConfigError(queue.error)
    known = {run_dir: str((read_record(run_dir) or {}).get("job")) for run_dir in run_dirs}
    return {
        run_dir: f"job {job} {there.state.lower()} {f'on {there.nodes}' if there.nodes else f'({there.reason})'}"
        for run_dir, job in known.items()
        if (there := queue.job(job)) is not None
    }


def record_path(run_dir: Path) -> Path:
    """The file beside a run directory that says in which job the run is."""
    return run_dir.with_name(f"{run_dir.name}{RECORD}")


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """What that file holds, None if there is none, or a damaged one."""
    try:
        return read_json(record_path(run_dir), most_bytes=RECORD_BYTES)
    except ValueError:
        return None
