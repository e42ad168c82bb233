import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import lock
from trainer.lock import InUseError, Lock, is_held


@pytest.fixture(params=["flock", "no flock"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a lock file, on a file system with locks and on one without."""
    if request.param == "no flock":
        refuse_locks(monkeypatch)
    return tmp_path / "lock"


def refuse_locks(patch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)


def test_one_at_a_time_has_it(file: Path) -> None:
    held = Lock(file)
    held.sign()
    assert is_held(file)
    with pytest.raises(InUseError, match=f"^process {os.getpid()}$"):
        Lock(file)
    held.release()
    assert not is_held(file)
    Lock(file).release()


def test_a_lock_that_is_not_there_is_held_by_nobody(file: Path) -> None:
    assert not is_held(file)
    assert not list(file.parent.iterdir())


@pytest.mark.parametrize("was_there", [False, True])
def test_no_trace_is_left_of_one_that_was_not_needed(file: Path, was_there: bool) -> None:
    if was_there:
        file.touch()
    Lock(file).release(leave_no_trace=True)
    assert [path.name for path in file.parent.iterdir()] == ["lock"] * was_there


def test_a_lock_file_deleted_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, times = fcntl.flock, iter(range(9))

    def deleted_first(file: Any, operation: int) -> None:
        if next(times) == 0:
            (tmp_path / "lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_first)
    held = Lock(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    held.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_one_line_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    Lock(tmp_path / "lock").release()
    (record,) = caplog.records
    assert f"the file system of {tmp_path} has no file locks ({os.strerror(number)})" in record.getMessage()


def test_an_error_that_says_something_else_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        Lock(tmp_path / "lock")


def owned(folder: Path, age: float, **owner: Any) -> Path:
    """A lock without flock, whose owner was last heard of so many seconds ago."""
    (folder / "lock").touch()
    file = folder / "lock.owner"
    file.write_text(json.dumps(owner))
    when = file.stat().st_mtime - age
    os.utime(file, (when, when))
    return folder / "lock"


@pytest.mark.parametrize(("age", "is_alive"), [(lock.STALE_SECONDS - 5, True), (lock.STALE_SECONDS + 5, False)])
def test_an_owner_elsewhere_lives_as_long_as_it_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, is_alive: bool
) -> None:
    refuse_locks(monkeypatch)
    file = owned(tmp_path, age, host="elsewhere", pid=1, started=1.0)
    assert is_held(file) == is_alive
    if is_alive:
        with pytest.raises(InUseError, match="process 1 on elsewhere"):
            Lock(file)
    else:
        Lock(file).release()


def test_an_owner_here_is_gone_as_soon_as_its_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, started in ((ended.pid, 1.0), (os.getpid(), 1.0), (None, None)):  # ended; its number given again; damaged
        file = owned(tmp_path, 0, host=socket.gethostname(), pid=pid, started=started)
        assert not is_held(file)
        Lock(file).release()


def test_the_time_stamp_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    held = Lock(tmp_path / "lock")
    file = tmp_path / "lock.owner"
    os.utime(file, (0, 0))
    while file.stat().st_mtime == 0:
        pass
    held.release()
