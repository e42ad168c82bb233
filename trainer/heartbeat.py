"""Noticing that a rank hangs, and saying which."""

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
TOLD = "heartbeat/told"
T = TypeVar("T")
ROOT = str(Path(__file__).resolve().parents[1])


class Sign(NamedTuple):
    """What a rank says of itself."""

    words: int  # how often it has said something
    progress: int  # how much it has done that all ranks do
    alone: int  # and how much beside that: busy with files, for instance
    where: str  # its place in the program


class Busy(NamedTuple):
    """What a thread is doing that may last."""

    what: str
    since: float
    told_after: float  # seconds


class Watch:
    """What tells a hanging run from one that takes its time; this one watches nothing, as one process cannot wait."""

    def beat(self) -> None:
        """Something was done."""

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While entered, this rank is not hanging, however long it takes; for waiting for a disk, never for ranks."""
        yield

    def each(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """The items; busy with what until the next one is there."""
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
    """Ends the process, with a message that names the ranks to blame, after timeout_seconds without progress anywhere.

    Every rank tells all others through the store, from a thread, how far it is. One that is silent has stopped; else
    those behind the others are what the others wait for. While some rank makes progress, the others may wait for it;
    one that is busy for longer than timeout_seconds says with what, and goes on.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float) -> None:
        self._ranks, self._timeout, self._store = ranks, timeout_seconds, ranks.store
        self._period = min(timeout_seconds / 5, 5.0)
        self._progress, self._alone, self._words, self._is_ending = 0, 0, 0, False
        self._busy: dict[int, Busy] = {}  # by thread
        self._main, self._over = threading.main_thread(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    @override
    def beat(self) -> None:
        self._progress += 1

    @override
    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
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

    @override
    def close(self) -> None:
        """Ends the watch, unless it is about to end the process: then this waits, so that its message comes."""
        self._over.set()
        self._thread.join(None if self._is_ending else self._period)  # else no longer: the store may hang

    def _watch(self) -> None:
        seen, since, others = (-1, -1), time.monotonic(), None
        self._say()
        while not self._over.wait(self._period):
            self._count_busy()
            self._say()
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
        """What a thread is busy with is progress; of what lasts, the user is told."""
        for thread, (what, since, told_after) in list(self._busy.items()):
            self._alone += 1
            seconds = time.monotonic() - since
            if seconds > told_after:
                self._busy[thread] = Busy(what, since, told_after + self._timeout)
                line = f"warning: rank {self._ranks.rank} has been {what} for {seconds:.0f} s; the run waits for it"
                print(line, file=sys.stderr, flush=True)

    def _progress_of_all(self) -> int:
        """How much all ranks have done together; -1 if nobody can tell."""
        with self._patience(self._timeout / 2), suppress(RuntimeError):
            heard = [self._heard(rank) for rank in range(self._ranks.world_size)]
            return sum(sign.progress + sign.alone for sign in heard)
        return -1

    @contextmanager
    def _patience(self, more_seconds: float = 0.0) -> Iterator[None]:
        """Ends the process if what is done meanwhile takes too long: the store may hang, too."""
        seconds = more_seconds + 3 * self._period + min(self._timeout, 30.0)
        timer = threading.Timer(seconds, self._end_alone)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _say(self) -> None:
        self._words += 1
        sign = f"{self._words}\t{self._progress}\t{self._alone}\t{self._where()}"
        try:
            if self._store is not None:
                self._store.set(f"heartbeat/{self._ranks.rank}", sign)
        except RuntimeError:  # its keeper is gone; whatever ended that will end this
            self._store = None

    def _keep_saying(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._say()
            time.sleep(self._period / 2)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._main.ident or 0)
        own = [each for each in traceback.extract_stack(frame) if each.filename.startswith(ROOT)]
        return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} ({own[-1].name})" if own else "unknown"

    def _heard(self, rank: int) -> Sign:
        if self._store is None:
            raise RuntimeError("the store is gone")
        key = f"heartbeat/{rank}"
        if not self._store.check([key]):
            return Sign(0, -1, 0, "unknown, it has never said anything")
        words, progress, alone, where = self._store.get(key).decode().split("\t")
        return Sign(int(words), int(progress), int(alone), where)

    def _end(self) -> None:
        everyone = range(self._ranks.world_size)
        try:
            with self._patience():
                before = [self._heard(rank) for rank in everyone]
                self._keep_saying(3 * self._period)
                after = [self._heard(rank) for rank in everyone]
        except RuntimeError:
            self._end_alone()
            return
        if self._over.is_set() or any(a[1:3] != b[1:3] for a, b in zip(before, after, strict=True)):
            return  # somebody moved after all
        self._is_ending = True
        line, named = blame(before, after, self._ranks.rank, self._timeout)
        if self._ranks.rank == min((rank for rank in everyone if rank not in named), default=0):
            self._tell(line)
        else:
            self._wait_until_told()
        os._exit(1)

    def _tell(self, line: str) -> None:
        with suppress(RuntimeError):  # it is gone
            if self._store is not None and self._store.add(TOLD, 1) > 1:
                return
        print(line, file=sys.stderr, flush=True)
        time.sleep(4 * self._period)  # others may still use the store, if this process keeps it

    def _wait_until_told(self) -> None:
        """One message is enough, and the rank that has the word may have moved later than this one."""
        until = time.monotonic() + self._timeout
        with suppress(RuntimeError):  # it is gone
            while time.monotonic() < until and self._store is not None and not self._store.check([TOLD]):
                self._keep_saying(self._period)

    def _end_alone(self) -> None:
        if self._over.is_set():
            return
        print(
            f"error: no progress for {self._timeout:g} s: rank {self._ranks.rank} is at {self._where()}; the process "
            f"through which ranks hear of each other (rank 0 or the launcher) does not answer; {CONTINUES}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def blame(before: list[Sign], after: list[Sign], rank: int, seconds: float) -> tuple[str, set[int]]:
    """What to tell the user, and the ranks that the others wait for; before and after are some periods apart."""
    pairs = list(zip(before, after, strict=True))
    silent = {r for r, (old, new) in enumerate(pairs) if old.words == new.words and r != rank}
    least = min(sign.progress for sign in after)
    named = silent or {r for r, sign in enumerate(after) if sign.progress == least}
    doing = "does not answer; it was last at" if silent else "is at"
    words = "; ".join(f"rank {r} {doing} {after[r].where}" for r in sorted(named))
    return (
        f"error: no progress for {seconds:g} s (rank {rank} waits at {after[rank].where}): {words}; {CONTINUES}"
    ), named
