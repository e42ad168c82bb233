"""The processes of a run: who they are, and what their hosts tell each other beside the training's own collectives.

Ranks.join() makes one process a world of its own, or takes part in the one that torchrun started. Hosts talk over gloo,
whatever the device, so that nobody waits for an accelerator to say something about files.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

T = TypeVar("T")
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed")
PATIENCE = 3.0  # seconds
PATIENT = timedelta(days=7)


class MainRankError(ValueError):
    """The main rank's error; it tells the user, this process need not."""


class Ranks:
    """This process among its peers; alone unless joined.

    group: for hosts; None if alone.
    """

    def __init__(self) -> None:
        self.rank, self.world_size, self.local_rank = 0, 1, 0
        self.group: dist.ProcessGroup | None = None
        self.store: Store | None = None
        self.busy: Callable[[str], AbstractContextManager[Any]] = nullcontext  # entered while others wait for one rank
        self._vote: tuple[dist.Work, torch.Tensor] | None = None

    @classmethod
    def join(cls, device_type: str, timeout_seconds: float) -> "Ranks":
        """The world that the environment describes (torchrun's variables), else one of this process alone.

        timeout_seconds: how long the others may take to come. Later the heartbeat decides what takes too long: a
        collective also waits while a rank hashes its data or writes to a slow disk.
        """
        ranks = cls()
        ranks.rank, ranks.world_size = int(os.environ.get("RANK", "0")), started_processes()
        ranks.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        ranks.store = _store(ranks, timedelta(seconds=timeout_seconds)) if ranks.world_size > 1 else HashStore()
        if device_type == "cuda":
            torch.cuda.set_device(ranks.local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=ranks.store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=PATIENT,
        )
        ranks.group = ranks.new_group()
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def new_group(self) -> dist.ProcessGroup | None:
        """Another group of all hosts, for a thread of its own; None if alone."""
        return dist.new_group(backend="gloo", timeout=PATIENT) if dist.is_initialized() else None

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Everybody's value, by rank, on all ranks."""
        group = group or self.group
        if group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=group)
        return values

    def from_main(self, function: Callable[[], T], doing: str = "working for all ranks") -> T:
        """What function returns on the main rank, on all; a ValueError there is a MainRankError on the others.

        The others wait however long it takes, and the user is told what it is doing.
        """
        error, value = None, None
        if self.is_main:
            try:
                with self.busy(doing):
                    value = function()
            except ValueError as raised:
                error = raised
        if self.group is not None:
            told = [(value, None if error is None else str(error))]
            dist.broadcast_object_list(told, src=0, group=self.group)
            value, message = told[0]
            error = error or (None if message is None else MainRankError(message))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # function's own

    def main_first(self, function: Callable[[], T], doing: str) -> T:
        """What function returns here; the main rank calls it before the others, and if it fails there, all fail."""
        if not self.is_main:
            self.from_main(lambda: None)
            with self.busy(doing):
                return function()
        found: list[T] = []
        self.from_main(lambda: found.append(function()), doing)
        return found[0]

    def any_so_far(self, flag: bool) -> bool:
        """Whether any rank's flag was set when all last called this: the same answer everywhere, without waiting.

        Alone, the flag itself.
        """
        if self.group is None or self.world_size == 1:
            return flag
        agreed = False
        if self._vote is not None:
            work, votes = self._vote
            work.wait()
            agreed = bool(votes)
        votes = torch.tensor(int(flag))
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._vote = (work, votes)
        return agreed

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Waits for all."""
        if self.group is not None:
            dist.barrier(group=group or self.group)

    def leave(self) -> None:
        """Ends the world."""
        if self._vote is not None:
            self._vote[0].wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.group = None


def started_processes() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def wait_for_the_cause(rank: int) -> None:
    """Leaves the word to the rank whose error it is: the launcher ends this process before it would speak."""
    if rank:
        time.sleep(PATIENCE)


def _store(ranks: Ranks, timeout: timedelta) -> Store:
    """torchrun's store. Restarted processes must not meet the keys of those before them, which gloo would dial."""
    is_host = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and ranks.rank == 0
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, ranks.world_size, is_master=is_host, timeout=timeout)
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
