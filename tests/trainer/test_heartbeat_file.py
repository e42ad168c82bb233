import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainer.heartbeat_file as module
from trainer.heartbeat import Watch
from trainer.heartbeat_file import HeartbeatFile


class Periods:
    """In place of threading.Event: each period is one of the actions."""

    def __init__(self, actions: list[Callable[[], Any]]) -> None:
        self.actions = list(actions)

    def wait(self, seconds: float) -> bool:
        if not self.actions:
            return True
        self.actions.pop(0)()
        return False

    def set(self) -> None:
        pass


def renewals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch, actions: list[Callable[[], Any]]) -> int:
    """How often the file's time is renewed while the actions happen, one in each period."""
    renewed: list[int] = []
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=lambda: Periods(actions), Thread=threading.Thread))
    monkeypatch.setattr(module, "os", SimpleNamespace(utime=lambda path: renewed.append(1)))
    file = HeartbeatFile(tmp_path / "heartbeat", watch)
    file._thread.join(10)
    return len(renewed)


def test_its_time_is_renewed_in_every_period_with_progress_and_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()

    def done_alone() -> None:
        with watch.busy("reading"):
            pass

    idle: Callable[[], Any] = lambda: None  # noqa: E731
    assert renewals(tmp_path, monkeypatch, watch, [idle, idle]) == 0
    assert renewals(tmp_path, monkeypatch, watch, [watch.progress, idle, watch.progress, idle]) == 2
    assert renewals(tmp_path, monkeypatch, watch, [idle, done_alone, idle]) == 1
    with watch.busy("writing a checkpoint"):  # however long it takes
        assert renewals(tmp_path, monkeypatch, watch, [idle, idle, idle]) == 3


def test_it_is_there_from_the_start_and_gone_at_the_end(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path / "heartbeat", Watch())
    assert (tmp_path / "heartbeat").is_file()
    file.close()
    assert list(tmp_path.iterdir()) == []
    assert not file._thread.is_alive()


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path / "no folder" / "heartbeat", Watch())
    file.close()
    assert "heartbeat file" not in {thread.name for thread in threading.enumerate()}
