"""What a task of a SLURM job does, on a compute node: a rank of one run, or several runs side by side.

submitit pickles a Task when the job is submitted, and calls it in every task that srun starts. Before the job's time
ends, or when SLURM wants its nodes, submitit calls checkpoint(): the runs save and end, and the job goes back to the
queue, from where the same Task continues them. A run that hangs is ended here, so that its job frees its nodes also
when nobody follows it, and so that the others of its job go on.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launch.processes import GRACE_SECONDS, Process, cuda_devices, environments, log_path
from launch.standstill import Standstill
from launch.statuses import FAILED
from launch.watch import LOOK_SECONDS, Watch

ROOT = Path(__file__).resolve().parents[1]  # of the code that runs on the node
POLL_SECONDS = 0.2
FIRST_PORT, PORTS = 20_000, 10_000  # of the rendezvous; jobs that share a node have different ids


class Task:
    """Runs train.py; runs: overrides and directory of each. ranks: of each, processes under torchrun if runs > 1.

    A single run has as many ranks as the job has tasks.
    """

    def __init__(self, script: Path, runs: Sequence[tuple[Sequence[str], Path]], ranks: int) -> None:
        self.script, self.runs, self.ranks = script, list(runs), ranks
        self._processes: list[Process] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processes": []}

    def __call__(self) -> int:
        """Runs them; returns the first exit status that is not 0."""
        signal.signal(signal.SIGTERM, self._stop)  # scancel, and preemption without submitit's signal
        started = {
            run_dir: self._started(overrides, run_dir, *place)
            for (overrides, run_dir), place in zip(self.runs, self._places(), strict=True)
        }
        processes = {run_dir: process for run_dir, process in started.items() if process is not None}
        statuses = [FAILED] * (len(started) - len(processes)) + self._endings(processes)
        return next((status for status in statuses if status), 0)

    def checkpoint(self) -> Any:
        """What submitit queues again, when the runs have saved and ended."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        deadline = time.monotonic() + GRACE_SECONDS
        while not all(process.has_ended for process in self._processes) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return DelayedSubmission(self)

    def _places(self) -> list[tuple[int, Mapping[str, str]]]:
        """For each run, how many ranks torchrun starts, and the variables that it gets."""
        if len(self.runs) == 1:
            return [(1, rank_variables(os.environ))]
        shares = environments(len(self.runs), self.ranks, cuda_devices())
        return [(self.ranks, share) for share in shares]

    def _started(
        self, overrides: Sequence[str], run_dir: Path, ranks: int, environment: Mapping[str, str]
    ) -> Process | None:
        """The process of a run; None if it cannot be started: the others of the job go on."""
        is_first = environment.get("RANK", "0") == "0"
        try:
            process = Process(self.script, overrides, run_dir, ranks=ranks, environment=environment, is_first=is_first)
        except OSError as error:
            print(f"failed: log {log_path(run_dir)}: {error}", flush=True)
            return None
        self._processes.append(process)
        return process

    def _endings(self, processes: Mapping[Path, Process]) -> list[int]:
        """Waits for all to end, and ends those that hang; returns their exit statuses."""
        watches = {process: Watch(Standstill(run_dir), process) for run_dir, process in processes.items()}
        statuses, looked = [], time.monotonic()
        while watches:
            time.sleep(POLL_SECONDS)
            if is_time := time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
            for process, watch in list(watches.items()):
                if (found := process.ending()) is not None:
                    ending = watch.judged(found)
                    said = f": {ending.message}" if ending.message else ""
                    print(f"{ending.status}: {process.note}{said}", flush=True)
                    statuses.append(ending.exit_status)
                    del watches[process]
                elif is_time:
                    watch.look()
        return statuses

    def _stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        for process in self._processes:
            process.ask_to_stop()


class Call:
    """Calls a function; a ValueError, which is an answer, too, it returns as such."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        """What the function returns, or the ValueError that it raises."""
        try:
            return self.function()
        except ValueError as error:
            return error


def rank_variables(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed reads, from what srun says of a task; the first node's address is where ranks meet."""
    found = {"PYTHONUNBUFFERED": "1"}
    if "OMP_NUM_THREADS" not in slurm:
        found["OMP_NUM_THREADS"] = slurm.get("SLURM_CPUS_PER_TASK", "1")
    if int(slurm.get("SLURM_NTASKS", "1")) > 1:
        found |= {
            "RANK": slurm["SLURM_PROCID"],
            "LOCAL_RANK": slurm["SLURM_LOCALID"],
            "WORLD_SIZE": slurm["SLURM_NTASKS"],
            "LOCAL_WORLD_SIZE": str(int(slurm["SLURM_NTASKS"]) // int(slurm["SLURM_NNODES"])),
            "MASTER_ADDR": slurm["SLURM_LAUNCH_NODE_IPADDR"],
            "MASTER_PORT": str(FIRST_PORT + int(slurm["SLURM_JOB_ID"]) % PORTS),
        }
    return found
