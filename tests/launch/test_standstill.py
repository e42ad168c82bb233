"""When a run hangs, for those who may end it."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from files.lock import Lock
from launch import standstill
from launch.standstill import Standstill


def test_a_run_hangs_if_it_was_seen_to_stand_still_for_twice_its_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(standstill, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    (tmp_path / "config.yaml").write_text("timeout_seconds: 6")
    (tmp_path / "heartbeat").touch()
    os.utime(tmp_path / "heartbeat", (1e9, 1e9))  # of a process that was killed
    still = Standstill(tmp_path)

    def looks(*, every: float, times: int) -> list[bool]:
        nonlocal now
        found = []
        for _ in range(times):
            now += every
            found.append(still.is_hung())
        return found

    assert looks(every=1.0, times=30) == [False] * 30  # nobody holds it
    lock = Lock(tmp_path / "lock")
    assert looks(every=1.0, times=14) == [False] * 13 + [True]  # the first look begins to count
    (tmp_path / "heartbeat").touch()
    assert looks(every=3600.0, times=4) == [False] * 3 + [True]  # the machine slept: 5 s count of each
    (tmp_path / "heartbeat").unlink()
    assert looks(every=1.0, times=30) == [False] * 30  # another process, which compiles
    lock.release()


def test_ranks_have_a_minute_to_say_themselves_which_one_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "time", SimpleNamespace(monotonic=iter(range(10**6)).__next__, time=time.time))
    (tmp_path / "heartbeat").touch()
    lock, still, looks = Lock(tmp_path / "lock"), Standstill(tmp_path), 0
    while not still.is_hung():
        looks += 1
    lock.release()
    assert looks == 600 + 60 + 1
