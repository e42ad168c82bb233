import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from files import lock
from files.lock import InUseError, Lock, holder, is_held, lock_while_open, locked


@pytest.fixture(params=["flock", "no flock"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a lock file, on a file system with locks and on one without."""
    if request.param == "no flock":
        refuse_locks(monkeypatch)
    return tmp_path / "lock"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(lock, "READER_SECONDS", 0.01)


def refuse_locks(patch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)


def test_one_at_a_time_has_it(file: Path) -> None:
    held = Lock(file)
    held.sign()
    assert is_held(file)
    assert holder(file) == f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(InUseError, match=f"^process {os.getpid()}$"):
        Lock(file)
    held.release()
    assert not is_held(file)
    assert holder(file) is None
    Lock(file).release()


def test_a_file_stays_locked_until_those_that_inherit_it_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("w") as mine:
        assert lock_while_open(mine)
        heir = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=[mine.fileno()])
    with path.open() as other:
        assert is_held(path) and not lock_while_open(other)
        heir.communicate()
        assert not is_held(path) and lock_while_open(other)


def test_a_file_that_cannot_be_locked_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open("w") as one, Path("/dev/null").open("w") as two:
        assert lock_while_open(one) and lock_while_open(two)
    refuse_locks(monkeypatch)
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as two:
        assert lock_while_open(one) and lock_while_open(two)


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


def claim(folder: Path, age: float, **owner: Any) -> Path:
    """A lock without flock, whose owner was last heard of so many seconds ago."""
    (folder / "lock").touch()
    file = folder / "lock.owner"
    file.write_text(json.dumps(owner))
    when = file.stat().st_mtime - age
    os.utime(file, (when, when))
    return folder / "lock"


ELSEWHERE = {"host": "elsewhere", "pid": 1, "system": "another", "started": 1.0}


@pytest.mark.parametrize(("age", "is_alive"), [(lock.STALE_SECONDS - 5, True), (lock.STALE_SECONDS + 5, False)])
def test_an_owner_elsewhere_lives_as_long_as_it_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, is_alive: bool
) -> None:
    refuse_locks(monkeypatch)
    file = claim(tmp_path, age, **ELSEWHERE)
    assert is_held(file) == is_alive
    if is_alive:
        with pytest.raises(InUseError, match="process 1 on elsewhere"):
            Lock(file)
    else:
        Lock(file).release()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("lock.")] == ["lock.owner"] * is_alive


def test_an_owner_here_is_gone_as_soon_as_its_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, started in ((ended.pid, 1.0), (os.getpid(), 1.0), (None, None)):  # ended; its number given again; damaged
        file = claim(tmp_path, 0, host=socket.gethostname(), pid=pid, system=lock._system(), started=started)
        assert not is_held(file)
        Lock(file).release()


def test_the_time_stamp_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    held = Lock(tmp_path / "lock")
    file = tmp_path / "lock.owner"
    os.utime(file, (0, 0))
    until(lambda: file.stat().st_mtime > 0)
    held.release()


def test_an_owner_that_was_taken_for_gone_leaves_its_follower_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_locks(monkeypatch)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    held = Lock(tmp_path / "lock")
    file = claim(tmp_path, 0, **ELSEWHERE)
    until(lambda: "this process was taken for gone" in caplog.text)
    held.release()
    assert is_held(file)


def test_of_two_that_follow_a_dead_owner_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes its name last, while this one waits for that."""
    refuse_locks(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: claim(tmp_path, 0, **ELSEWHERE))
    with pytest.raises(InUseError, match="process 1 on elsewhere"):
        Lock(claim(tmp_path, lock.STALE_SECONDS + 5, **ELSEWHERE))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline


def test_those_that_wait_have_it_one_after_the_other(file: Path) -> None:
    inside, most, order = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with locked(file, "working"):
                with order:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with order:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (inside, most) == (0, 1)
    assert not list(file.parent.glob("lock.*"))


def test_a_lock_is_free_after_an_error(file: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(file, "working"):
        raise ZeroDivisionError
    assert not is_held(file)


def test_who_is_waited_for_is_said_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = Lock(file)
    held.sign()
    waiting = threading.Timer(0.05, held.release)
    waiting.start()
    caplog.clear()
    with locked(file, "preparing"):
        pass
    said = [message for message in caplog.messages if "waiting" in message]
    assert said == [f"another process is preparing (process {os.getpid()} has {file}): waiting for it"]


def test_whoever_looks_at_a_lock_refuses_it_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "READER_SECONDS", 5.0)
    path, is_over = tmp_path / "lock", threading.Event()

    def look() -> None:
        while not is_over.is_set():
            is_held(path)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(300):
            Lock(path).release()
    finally:
        is_over.set()
        for reader in readers:
            reader.join()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match="symbolic link"):
        Lock(tmp_path / "lock")
    assert (tmp_path / "notes").read_text() == "mine"
