import errno
import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from corpora import Texts, content, numbered_texts, prepared

import data.locks
from data.locks import locked

ERRORS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.locks, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(data.locks, "HEARTBEAT_SECONDS", 0.005)


@pytest.fixture(params=["flock", *ERRORS], ids=lambda kind: kind if kind == "flock" else errno.errorcode[kind])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With flock, or without it in one of the ways that there are."""
    if request.param != "flock":
        unsupported(monkeypatch, request.param)
    return request.param


def unsupported(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("file_system")
def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    inside, most, order = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with locked(tmp_path / "lock", "working"):
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
    assert not list(tmp_path.glob("lock.*"))


@pytest.mark.usefixtures("file_system")
def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", "working"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", "working"):
        pass


@pytest.mark.parametrize("number", ERRORS)
def test_a_file_system_without_locks_costs_one_line_of_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    unsupported(monkeypatch, number)
    with locked(tmp_path / "lock", "working"):
        pass
    assert len(caplog.messages) == 1
    assert "the file system has no locks" in caplog.text


def test_other_errors_of_a_lock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock", "working"):
        pass


def left_behind(file: Path, owner: str, age: float = 0.0) -> None:
    file.write_text(owner)
    os.utime(file, (time.time() - age, time.time() - age))


def test_an_owner_that_was_killed_on_this_machine_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsupported(monkeypatch)
    left_behind(tmp_path / "lock.owner", f"host {2**22 + 1} {data.locks._system()} abc")
    with locked(tmp_path / "lock", "working"):
        assert f" {os.getpid()} " in (tmp_path / "lock.owner").read_text()


def test_an_owner_elsewhere_is_followed_when_its_heartbeat_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsupported(monkeypatch)
    left_behind(tmp_path / "lock.owner", "host 1 another-system abc", age=data.locks.STALE_SECONDS + 5)
    with locked(tmp_path / "lock", "working"):
        assert f" {os.getpid()} " in (tmp_path / "lock.owner").read_text()


def test_an_owner_elsewhere_is_waited_for_while_it_has_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unsupported(monkeypatch)
    owner, polls = tmp_path / "lock.owner", iter(range(100))
    left_behind(owner, "host 1 another-system abc")
    sleep = time.sleep

    def ends_at_the_fifth(seconds: float) -> None:
        if next(polls) == 5:
            owner.unlink()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", ends_at_the_fifth)
    with locked(tmp_path / "lock", "preparing"):
        assert next(polls) >= 6
    assert "another process is preparing" in caplog.text
    assert len(caplog.messages) == 2


def test_a_living_owner_renews_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported(monkeypatch)
    with locked(tmp_path / "lock", "working"):
        os.utime(tmp_path / "lock.owner", (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / "lock.owner").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_an_owner_taken_for_dead_leaves_its_follower_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unsupported(monkeypatch)
    with locked(tmp_path / "lock", "working"):
        (tmp_path / "lock.owner").write_text("host 1 another-system abc")
        deadline = time.monotonic() + 5
        while "taken for dead" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert (tmp_path / "lock.owner").read_text() == "host 1 another-system abc"


def test_preparation_works_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = content(prepared(Texts(numbered_texts(20)), tmp_path / "with"))
    unsupported(monkeypatch)
    caplog.set_level(logging.WARNING)
    assert content(prepared(Texts(numbered_texts(20)), tmp_path / "without")) == expected
    assert len(caplog.messages) == 1
