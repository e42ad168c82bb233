import json
import logging
import math
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainer.metrics import JsonLines, Wandb, read_rows


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "seconds": 0.5 * step, **values}


def write(path: Path, first: int, last: int) -> None:
    sink = JsonLines(path, first)
    for step in range(first, last):
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    sink.close()


def test_a_continued_run_leaves_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "whole.jsonl", 0, 9)
    write(tmp_path / "cut.jsonl", 0, 7)
    write(tmp_path / "cut.jsonl", 4, 9)
    assert (tmp_path / "cut.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 3)
    for end in ('{"step": 3, "tok', '{"step": 3}'):
        path.write_text(path.read_text() + end)
        assert [found["step"] for found in read_rows(path)] == [0, 1, 2]
        write(path, 3, 3)
        assert len(path.read_text().splitlines()) == 3


def test_rows_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    sink.close()


def test_a_value_that_is_no_number_is_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0, **{"train/loss": math.nan, "grad_norm": math.inf}))
    sink.close()
    found = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["train/loss"] is None and found["grad_norm"] is None


def fake_wandb(monkeypatch: pytest.MonkeyPatch, init: Any, api_key: str | None = None) -> None:
    module = ModuleType("wandb")
    module.init, module.api = init, SimpleNamespace(api_key=api_key)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_wandb_gets_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    finished = threading.Event()
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=finished.set)
    fake_wandb(monkeypatch, lambda **settings: run)
    sink = Wandb(mode="offline", project="p", run_dir=tmp_path, settings={"seed": 1})
    for step in range(3):
        sink.write(row(step))
    sink.close()
    assert finished.is_set()
    assert logged == [(n, {"tokens": 10 * n, "seconds": 0.5 * n}) for n in range(3)]


def test_wandb_that_hangs_delays_the_end_by_its_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()
    fake_wandb(monkeypatch, lambda **settings: never.wait(60), api_key="key")
    sink = Wandb(mode="online", project="p", run_dir=tmp_path, settings={}, close_seconds=0.1)
    started = time.monotonic()
    sink.write(row(0))
    sink.close()
    assert time.monotonic() - started < 30
    assert "did not finish within" in caplog.text
    never.set()


def test_wandb_that_fails_warns_and_lets_the_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**settings: Any) -> None:
        raise RuntimeError("no route to host")

    fake_wandb(monkeypatch, init)
    sink = Wandb(mode="offline", project="p", run_dir=tmp_path, settings={})
    sink.close()
    sink.write(row(1))
    assert "wandb is off from here on: RuntimeError: no route to host" in caplog.text


def test_wandb_without_an_account_is_off_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_wandb(monkeypatch, lambda **settings: pytest.fail("asked"))
    with caplog.at_level(logging.WARNING):
        sink = Wandb(mode="online", project="p", run_dir=tmp_path, settings={})
        sink.write(row(0))
        sink.close()
    assert "wandb is off: no API key" in caplog.text


def test_wandb_offline_leaves_its_file_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    sink = Wandb(mode="offline", project="p", run_dir=tmp_path, settings={"seed": 1}, close_seconds=60)
    sink.write(row(0, **{"train/loss": 1.0}))
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logging.wandb.mode='on' must be online, offline or off"):
        Wandb(mode="on", project="p", run_dir=tmp_path, settings={})
