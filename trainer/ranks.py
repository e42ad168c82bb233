"""The processes of a run: which rank this one is, and what they exchange beside tensors of the training itself.

Ranks.join() joins the processes that torchrun started; without a launcher the world is this process alone. Values
are exchanged over gloo, through host memory, whatever the device: so agreeing on files never waits for an accelerator.
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
CAUSE_SECONDS = 3.0  # in which the rank that failed prints its error
BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
NO_TIMEOUT = timedelta(days=7)  # of collectives: the heartbeat decides what takes too long


class MainRankError(ValueError):
    """An error of the main rank, raised on the others, which need not report it."""


class Ranks:
    """This process and the others of its run; alone unless joined.

    group: all processes, over gloo. store: what they share beside it. Both are None unless joined.
    """

    def __init__(self) -> None:
        self.rank, self.world_size, self.local_rank = 0, 1, 0
        self.group: dist.ProcessGroup | None = None
        self.store: Store | None = None
        self.busy: Callable[[str], AbstractContextManager[Any]] = nullcontext  # see heartbeat.Watch
        self._vote: tuple[dist.Work, torch.Tensor] | None = None

    @classmethod
    def join(cls, device_type: str, timeout_seconds: float) -> "Ranks":
        """Joins the processes that the environment describes (torchrun's variables); without them, a world of one.

        timeout_seconds: how long the others may take to join. Later the heartbeat decides what takes too long: a
        collective also waits while a rank hashes its data or writes to a slow disk.

        Raises: ValueError: if torch cannot exchange tensors between devices of that type.
        """
        backend = _backend(device_type)
        ranks = cls()
        ranks.rank, ranks.world_size = int(os.environ.get("RANK", "0")), started_processes()
        ranks.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        ranks.store = _store(ranks, timedelta(seconds=timeout_seconds)) if ranks.world_size > 1 else HashStore()
        if device_type != "cpu":
            torch.get_device_module(device_type).set_device(ranks.local_rank)
        dist.init_process_group(
            backend,
            store=ranks.store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=NO_TIMEOUT,
        )
        ranks.group = ranks.new_group()
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def new_group(self) -> dist.ProcessGroup | None:
        """Returns another group of all processes, for use in another thread; None if alone."""
        return dist.new_group(backend="gloo", timeout=NO_TIMEOUT) if dist.is_initialized() else None

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Returns the values of all ranks, in the order of ranks; every rank must call this."""
        group = group or self.group
        if group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=group)
        return values

    def from_main(self, function: Callable[[], T], doing: str = "working for all ranks") -> T:
        """Calls function on the main rank alone and returns its result on all ranks; every rank must call this.

        A ValueError on the main rank is a MainRankError on the others. They wait however long it takes; doing: what the
        user is told if it takes long.
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
        """Calls function on every rank, on the main rank first, and returns its result; if it fails there, all fail."""
        if not self.is_main:
            self.from_main(lambda: None)
            with self.busy(doing):
                return function()
        found: list[T] = []
        self.from_main(lambda: found.append(function()), doing)
        return found[0]

    def any_so_far(self, flag: bool) -> bool:
        """Whether any rank's flag was set at the previous call: the same answer on all ranks, without waiting for them.

        Alone, the flag of this call. Every rank must call this.
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
        """Waits until all ranks have called this."""
        if self.group is not None:
            dist.barrier(group=group or self.group)

    def leave(self) -> None:
        """Leaves the other processes; every rank must call this."""
        if self._vote is not None:
            self._vote[0].wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.group = None


def started_processes() -> int:
    """Returns how many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error only says that another rank has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def wait_for_the_cause(rank: int) -> None:
    """Waits, unless rank is 0: the launcher ends this process as soon as the rank that failed has reported why."""
    if rank:
        time.sleep(CAUSE_SECONDS)


def _backend(device_type: str) -> str:
    """What exchanges tensors between such devices, and over the host beside it, as torch names them."""
    if device_type == "cpu":
        return "gloo"
    own = BACKENDS.get(device_type)
    if own is None or not dist.is_backend_available(own):
        lack = f"this build of torch lacks {own}" if own else "torch has no collectives for it"
        raise ValueError(f"device={device_type} trains on one process here, as {lack}; use parallel=single")
    return f"cpu:gloo,{device_type}:{own}"


def _store(ranks: Ranks, timeout: timedelta) -> Store:
    """torchrun's store, with a prefix for each restart: gloo would connect to the addresses of processes that ended."""
    is_server = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and ranks.rank == 0
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, ranks.world_size, is_master=is_server, timeout=timeout)
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
