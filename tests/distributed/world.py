"""Ranks for tests: real processes, forked from one that has torch imported already, so that they start at once."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
# what DDP imports late is a second of every start
CONTEXT.set_forkserver_preload(["train", "laws", "faults", "torch._dynamo"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
LIMIT = 60  # seconds; far more than any of these tests takes


class World:
    """world_size processes that run function(*arguments), as a launcher would start them.

    output: where they write what they print.
    """

    def __init__(
        self, world_size: int, function: Callable[..., Any], *arguments: Any, output: Path | None = None
    ) -> None:
        port = _free_port()
        self.processes: list[ForkServerProcess] = []
        self._results = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_rank, args=(variables, output, theirs, function, arguments))
            process.start()
            theirs.close()
            self.processes.append(process)
            self._results.append(ours)

    def wait(self, seconds: float = LIMIT) -> list[int]:
        """Waits for all to end; their exit codes, -9 for one that was killed."""
        remaining = {process.sentinel for process in self.processes}
        while remaining:
            ended = wait(list(remaining), seconds)
            if not ended:
                self.kill()
                raise TimeoutError(f"processes still run after {seconds} s")
            remaining -= set(ended)  # type: ignore[arg-type]  # sentinels
        for process in self.processes:
            process.join()
        return [process.exitcode or 0 for process in self.processes]

    def results(self, seconds: float = LIMIT) -> list[Any]:
        """What function returned, by rank; an error if one failed."""
        found = []
        for rank, pipe in enumerate(self._results):
            if not pipe.poll(seconds):
                self.kill()
                raise TimeoutError(f"rank {rank} has no result after {seconds} s")
            try:
                is_fine, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                self.kill()
                raise RuntimeError(f"rank {rank} ended without a result") from None
            if not is_fine:
                self.kill()
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            found.append(value)
        self.wait(seconds)
        return found

    def kill(self) -> None:
        """kill -9 for all."""
        for process in self.processes:
            process.kill()


def run(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(*arguments) returns on each of world_size ranks."""
    return World(world_size, function, *arguments).results()


def _rank(
    variables: Mapping[str, str],
    output: Path | None,
    pipe: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= variables
    if output is not None:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import torch

    torch.set_num_threads(1)
    try:
        answer = True, function(*arguments)
    except Exception:
        answer = False, traceback.format_exc()
    pipe.send_bytes(pickle.dumps(answer))  # by value: torch would share memory with a process that is gone by then
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may abort a normal exit


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
