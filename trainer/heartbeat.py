"""Notices that a rank hangs, and names it.

Watch is what the rest of the program calls: progress() after each piece of work that all ranks do, busy() around what
may take long on one rank. Heartbeat is the one that watches several ranks: it ends the run with a message.
"""

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from typing_extensions import override

from trainer.ranks import Ranks

CONTINUES = "the same command continues from the last checkpoint, timeout_seconds sets how long is too long"
REPORTED = "heartbeat/reported"
T = TypeVar("T")
ROOT = str(Path(__file__).resolve().parents[1])


class Status(NamedTuple):
    """What a rank tells the others about itself."""

    messages: int  # how many it has sent
    progress: int  # how often it has made progress in work that all ranks do
    alone: int  # how often in work of its own, such as reading and writing files
    where: str  # the line of the program that it executes


class Busy(NamedTuple):
    """What a thread is doing that may take long."""

    what: str
    since: float
    warn_after: float  # seconds


class Watch:
    """Counts reports of progress; nothing acts on them here, as a single process waits for no other rank."""

    _timeout = math.inf  # seconds; a thread that is busy for longer is warned of

    def __init__(self) -> None:
        self._progress, self._alone = 0, 0
        self._busy: dict[int, Busy] = {}  # by thread

    def progress(self) -> None:
        """Records that this rank has done a piece of the work that all ranks do."""
        self._progress += 1

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While entered, this rank counts as working, however long it takes: for disks and networks, never for ranks.

        what: is shown to the user if it takes long.
        """
        thread = threading.get_ident()
        outer = self._busy.get(thread)
        self._busy[thread] = Busy(what, time.monotonic(), self._timeout)
        try:
            yield
        finally:
            self._alone += 1
            if outer is None:
                del self._busy[thread]
            else:
                self._busy[thread] = outer

    @property
    def reports(self) -> int:
        """How many reports there were."""
        return self._progress + self._alone

    @property
    def is_busy(self) -> bool:
        """Whether a thread of this rank is doing what may take long."""
        return bool(self._busy)

    def each(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, and is busy with `what` while it waits for the next one."""
        rest = iter(items)
        while True:
            with self.busy(what):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    def close(self) -> None:
        """Ends the watch."""


class Heartbeat(Watch):
    """Ends the process after timeout_seconds without progress on any rank, with a message that names those that hang.

    A thread of every rank tells the others, through the store, how far the rank is. A rank that sends nothing any more
    has stopped; if there is none, the ranks with the least progress are those that the others wait for. As long as one
    rank makes progress nothing happens. A rank that is busy for longer than timeout_seconds warns, and goes on.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float) -> None:
        super().__init__()
        self._ranks, self._timeout, self._store = ranks, timeout_seconds, ranks.store
        self._period = min(timeout_seconds / 5, 5.0)
        self._messages, self._is_ending = 0, False
        self._main, self._over = threading.main_thread(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    @override
    def close(self) -> None:
        """Ends the watch; if it is just ending the process, this waits, so that its message is printed."""
        self._over.set()
        self._thread.join(None if self._is_ending else self._period)  # no longer: the store may hang

    def _watch(self) -> None:
        seen, since, others = (-1, -1), time.monotonic(), None
        self._send()
        while not self._over.wait(self._period):
            self._count_busy()
            self._send()
            waited = time.monotonic() - since
            if (self._progress, self._alone) != seen:
                seen, since, others = (self._progress, self._alone), time.monotonic(), None
            elif others is None and waited > self._timeout / 2:
                others = self._progress_of_all()
            elif waited > self._timeout:
                if self._progress_of_all() == others:
                    self._end()
                since, others = time.monotonic() - self._timeout / 2, None

    def _count_busy(self) -> None:
        """Counts what threads are busy with as progress, and warns of what takes long."""
        for thread, (what, since, warn_after) in list(self._busy.items()):
            self._alone += 1
            seconds = time.monotonic() - since
            if seconds > warn_after:
                self._busy[thread] = Busy(what, since, warn_after + self._timeout)
                line = f"warning: rank {self._ranks.rank} has been {what} for {seconds:.0f} s; the run waits for it"
                print(line, file=sys.stderr, flush=True)

    def _progress_of_all(self) -> int:
        """The sum of the progress of all ranks; -1 if the store does not answer."""
        with self._limit(self._timeout / 2), suppress(RuntimeError):
            statuses = [self._status_of(rank) for rank in range(self._ranks.world_size)]
            return sum(each.progress + each.alone for each in statuses)
        return -1

    @contextmanager
    def _limit(self, more_seconds: float = 0.0) -> Iterator[None]:
        """Ends the process if it is not left in time: the store may hang, too."""
        seconds = more_seconds + 3 * self._period + min(self._timeout, 30.0)
        timer = threading.Timer(seconds, self._end_alone)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _send(self) -> None:
        self._messages += 1
        status = f"{self._messages}\t{self._progress}\t{self._alone}\t{self._where()}"
        try:
            if self._store is not None:
                self._store.set(f"heartbeat/{self._ranks.rank}", status)
        except RuntimeError:  # the process that holds it is gone; what ended that will end this one
            self._store = None

    def _keep_sending(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._send()
            time.sleep(self._period / 2)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._main.ident or 0)
        own = [each for each in traceback.extract_stack(frame) if each.filename.startswith(ROOT)]
        return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} ({own[-1].name})" if own else "unknown"

    def _status_of(self, rank: int) -> Status:
        if self._store is None:
            raise RuntimeError("the store is gone")
        key = f"heartbeat/{rank}"
        if not self._store.check([key]):
            return Status(0, -1, 0, "unknown, it has never sent anything")
        messages, progress, alone, where = self._store.get(key).decode().split("\t")
        return Status(int(messages), int(progress), int(alone), where)

    def _end(self) -> None:
        all_ranks = range(self._ranks.world_size)
        try:
            with self._limit():
                before = [self._status_of(rank) for rank in all_ranks]
                self._keep_sending(3 * self._period)
                after = [self._status_of(rank) for rank in all_ranks]
        except RuntimeError:
            self._end_alone()
            return
        if self._over.is_set() or any(a[1:3] != b[1:3] for a, b in zip(before, after, strict=True)):
            return  # a rank made progress after all
        self._is_ending = True
        line, named = diagnose(before, after, self._ranks.rank, self._timeout)
        if self._ranks.rank == min((rank for rank in all_ranks if rank not in named), default=0):
            self._report(line)
        else:
            self._wait_for_report()
        os._exit(1)

    def _report(self, line: str) -> None:
        with suppress(RuntimeError):  # the store is gone
            if self._store is not None and self._store.add(REPORTED, 1) > 1:
                return
        print(line, file=sys.stderr, flush=True)
        time.sleep(4 * self._period)  # others may still use the store, if it is this process's

    def _wait_for_report(self) -> None:
        """Waits until the rank that reports has done so, which may notice the hang later than this one."""
        until = time.monotonic() + self._timeout
        with suppress(RuntimeError):  # the store is gone
            while time.monotonic() < until and self._store is not None and not self._store.check([REPORTED]):
                self._keep_sending(self._period)

    def _end_alone(self) -> None:
        if self._over.is_set():
            return
        print(
            f"error: no progress for {self._timeout:g} s: rank {self._ranks.rank} is at {self._where()}; the process "
            f"that holds the ranks' common store (rank 0 or the launcher) does not answer; {CONTINUES}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def diagnose(before: list[Status], after: list[Status], rank: int, seconds: float) -> tuple[str, set[int]]:
    """The message for the user, and the ranks that the others wait for.

    before, after: the statuses of all ranks, some periods apart. rank: this one. seconds: without progress.
    """
    pairs = list(zip(before, after, strict=True))
    silent = {r for r, (old, new) in enumerate(pairs) if old.messages == new.messages and r != rank}
    least = min(each.progress for each in after)
    named = silent or {r for r, each in enumerate(after) if each.progress == least}
    doing = "does not answer; it was last at" if silent else "is at"
    blamed = "; ".join(f"rank {r} {doing} {after[r].where}" for r in sorted(named))
    return (
        f"error: no progress for {seconds:g} s (rank {rank} waits at {after[rank].where}): {blamed}; {CONTINUES}"
    ), named
