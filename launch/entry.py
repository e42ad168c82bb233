"""A job of jobs.py with its configuration, its progress and what its run directory holds."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import ConfigError, ReadingError, RunConfig, compose, differences
from files.lock import holder, is_held
from launch.job import Job, Outcome
from launch.launcher import Ending, Start
from launch.processes import log_path, read_result
from launch.progress import JobProgress
from launch.run_files import CONFIG, LOCK
from launch.standstill import Standstill
from launch.statuses import EXIT_STATUS, FAILED


@dataclass(eq=False)
class Entry:
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


def entry_of(job: Job) -> Entry:
    """Raises: ConfigError: if the job does not compose."""
    try:
        config = compose(job.overrides)
    except ConfigError as error:
        raise ConfigError(f"job {job.name!r}: {error}") from None
    run_dir = Path(config.run_dir)
    return Entry(job, config, JobProgress(job.name, run_dir, config.max_steps), Standstill(run_dir))


def check_run_dirs(entries: Sequence[Entry]) -> None:
    """Raises: ConfigError: if two share a run directory."""
    owners: dict[Path, Entry] = {}
    for entry in entries:
        owner = owners.setdefault(entry.run_dir.resolve(), entry)
        if owner is not entry:
            raise ConfigError(
                f"jobs {owner.job.name!r} and {entry.job.name!r} would both write run_dir={entry.run_dir}; leave "
                "run_dir out and let them differ in what they train, or give each its own"
            )
