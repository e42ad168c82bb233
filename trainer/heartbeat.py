"""Noticing that a rank hangs, and saying which."""

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from trainer.ranks import Ranks

ROOT = str(Path(__file__).resolve().parents[1])


class Sign(NamedTuple):
    """What a rank says of itself."""

    words: int  # how often it has said something
    progress: int  # how much it has done
    where: str  # its place in the program


class Heartbeat:
    """Ends the process, with a message that names the ranks to blame, after timeout_seconds without progress.

    Every rank tells all others through the store, from a thread, how far it is. One that is silent has stopped; else
    those behind the others are what the others wait for.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float) -> None:
        self._ranks, self._timeout = ranks, timeout_seconds
        self._period = min(timeout_seconds / 5, 5.0)
        self._progress, self._words = 0, 0
        self._main, self._over = threading.main_thread(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Something was done."""
        self._progress += 1

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._over.wait(self._period):
            self._say()
            if self._progress != seen:
                seen, since = self._progress, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._end()

    def _say(self) -> None:
        self._words += 1
        sign = f"{self._words}\t{self._progress}\t{self._where()}"
        assert self._ranks.store is not None
        self._ranks.store.set(f"heartbeat/{self._ranks.rank}", sign)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._main.ident or 0)
        own = [each for each in traceback.extract_stack(frame) if each.filename.startswith(ROOT)]
        return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} ({own[-1].name})" if own else "unknown"

    def _heard(self, rank: int) -> Sign:
        assert self._ranks.store is not None
        key = f"heartbeat/{rank}"
        if not self._ranks.store.check([key]):
            return Sign(0, -1, "unknown, it has never said anything")
        words, progress, where = self._ranks.store.get(key).decode().split("\t")
        return Sign(int(words), int(progress), where)

    def _end(self) -> None:
        everyone = range(self._ranks.world_size)
        before = [self._heard(rank) for rank in everyone]
        time.sleep(3 * self._period)
        self._say()
        after = [self._heard(rank) for rank in everyone]
        if self._progress != before[self._ranks.rank].progress:
            return  # it moved after all
        line, named = blame(before, after, self._ranks.rank, self._timeout)
        if self._ranks.rank != min((rank for rank in everyone if rank not in named), default=0):
            time.sleep(2)  # one message is enough
        else:
            print(line, file=sys.stderr, flush=True)
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
        f"error: no progress for {seconds:g} s (rank {rank} waits at {after[rank].where}): {words}; the same command "
        "continues from the last checkpoint, timeout_seconds sets how long is too long"
    ), named
