import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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


def renewals(
    monkeypatch: pytest.MonkeyPatch,
    watch: Watch,
    actions: list[Callable[[], Any]],
    has_begun: Callable[[], bool] = lambda: True,
) -> int:
    """How often the file's time is renewed while the actions happen, one in each period."""
    renewed: list[int] = []
    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=lambda: Periods(actions), Thread=threading.Thread))
    path = SimpleNamespace(touch=lambda: renewed.append(1), unlink=lambda missing_ok: None)
    file = HeartbeatFile(cast(Path, path), watch, has_begun)
    file._thread.join(10)
    return len(renewed)


def test_its_time_is_renewed_in_every_period_with_progress_and_in_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()

    def done_alone() -> None:
        with watch.busy("reading"):
            pass

    idle: Callable[[], Any] = lambda: None  # noqa: E731
    assert renewals(monkeypatch, watch, [idle, idle]) == 0
    assert renewals(monkeypatch, watch, [watch.progress, idle, watch.progress, idle]) == 2
    assert renewals(monkeypatch, watch, [idle, done_alone, idle]) == 1
    with watch.busy("writing a checkpoint"):  # however long it takes
        assert renewals(monkeypatch, watch, [idle, idle, idle]) == 3


def test_it_appears_when_the_run_has_begun_whatever_is_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, begun = Watch(), threading.Event()
    assert renewals(monkeypatch, watch, [watch.progress, watch.progress], begun.is_set) == 0
    assert renewals(monkeypatch, watch, [watch.progress, begun.set, watch.progress], begun.is_set) == 2


def test_it_is_gone_at_the_end(tmp_path: Path) -> None:
    watch = Watch()
    file = HeartbeatFile(tmp_path / "heartbeat", watch, lambda: True, period_seconds=0.001)
    with watch.busy("reading"):
        while not (tmp_path / "heartbeat").is_file():
            pass
    file.close()
    assert list(tmp_path.iterdir()) == []
    assert not file._thread.is_alive()


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path / "no folder" / "heartbeat", Watch(), lambda: True)
    file.close()
    assert "heartbeat file" not in {thread.name for thread in threading.enumerate()}
