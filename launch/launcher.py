"""Where runs are started: what launch=local, launch=slurm and others are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from configs import RunConfig

T = TypeVar("T")


class Ending(NamedTuple):
    """How a run that was started ended; the fields are those of job.Outcome."""

    status: str
    result: dict[str, Any] | None
    message: str | None
    seconds: float
    exit_status: int


class Start(NamedTuple):
    """A run to start: `python train.py *overrides`. config: what the overrides make."""

    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return Path(self.config.run_dir)


class Running(ABC):
    """A run that was started. state: running, or queued. note: where it runs and what it says, for the user."""

    state: str = "running"
    note: str

    @abstractmethod
    def ending(self) -> Ending | None:
        """Returns how it ended, None while it runs."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Makes it save and end."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once."""


class Launcher(ABC):
    """Starts runs; its constructor's arguments are the keys launch.*. at_once: runs at a time, None: no limit."""

    at_once: int | None
    ranks: int

    # Whether runs are on other machines: they go on when the command that started them ends, and what they read must be
    # there before.
    is_elsewhere: ClassVar[bool] = False

    @abstractmethod
    def check(self, runs: Sequence[Start]) -> None:
        """Raises ConfigError, before anything is started, if the runs cannot be."""

    @abstractmethod
    def room(self) -> int:
        """How many more runs can be started now."""

    def found(self, run: Start) -> Running | None:
        """The run, if an earlier command started it and it goes on; only where they are elsewhere."""
        return None

    @abstractmethod
    def start(self, runs: Sequence[Start], script: Path) -> "list[Running | OSError]":
        """Starts at most room() runs; an error in place of one that cannot be started.

        BlockingIOError: another command has just started it.
        """

    def called(self, what: str, function: Callable[[], T]) -> T:
        """What a function returns, called on a machine on which runs are, in one process with the share of one rank.

        what: what that is, for the user. Raises: as the function; ValueError: if it could not be called there.
        """
        return function()
