"""launch=local: runs as processes on this machine."""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from configs import ConfigError
from launch.launcher import Launcher, Running, Start
from launch.processes import Process, capacity, cuda_devices, environments


class Local(Launcher):
    """Processes of this machine, which end with the command.

    at_once: runs at a time, each with its share of the cores and of the CUDA devices; None: as many as there are.
    ranks: processes of each run, under torchrun if several.

    Raises: ConfigError: if one of them is < 1.
    """

    def __init__(self, at_once: int | None = 1, ranks: int = 1) -> None:
        if ranks < 1 or (at_once is not None and at_once < 1):
            raise ConfigError(f"at_once={at_once} and ranks={ranks} must be >= 1")
        self._places = capacity(ranks) if at_once is None else at_once
        self.at_once, self.ranks = self._places, ranks
        self._slots: list[dict[str, str]] = []  # the variables of every run that can be started
        self._taken: dict[int, Process] = {}  # by the slot's index

    @override
    def check(self, runs: Sequence[Start]) -> None:
        on_cuda = any(run.config.device in ("auto", "cuda") for run in runs)
        self._slots = environments(self._places, self.ranks, cuda_devices() if on_cuda else [])

    @override
    def room(self) -> int:
        return len(self._free())

    @override
    def start(self, runs: Sequence[Start], script: Path) -> list[Running | OSError]:
        return [self._started(run, slot, script) for run, slot in zip(runs, self._free(), strict=False)]

    def _free(self) -> list[int]:
        return [i for i in range(len(self._slots)) if i not in self._taken or self._taken[i].has_ended]

    def _started(self, run: Start, slot: int, script: Path) -> Running | OSError:
        try:
            process = Process(script, run.overrides, run.run_dir, ranks=self.ranks, environment=self._slots[slot])
        except OSError as error:
            return error
        self._taken[slot] = process
        return process
