"""Jobs, runs to do, and how they ended."""

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.statuses import EXIT_STATUS


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
