import json
import logging
import math
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from files.errors import ReadingError
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


def test_rows_that_a_full_disk_does_not_take_are_written_once_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "whole.jsonl", 0, 9)
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    for step in range(9):
        if step == 4:  # in the middle of a line
            limit = (tmp_path / "metrics.jsonl").stat().st_size + 20
            before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        if step == 7:
            assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    (record,) = caplog.records
    assert "metrics.jsonl cannot be written: " in record.getMessage()


def test_rows_that_wait_till_the_end_go_where_room_was_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full as long as the reserved room is taken."""
    write(tmp_path / "whole.jsonl", 0, 9)
    sink, written = JsonLines(tmp_path / "metrics.jsonl", 0), JsonLines._written
    reserved = tmp_path / ".metrics.jsonl.reserved"
    assert reserved.stat().st_size > 100_000

    def full(sink: JsonLines) -> OSError | None:
        return OSError(28, "No space left on device") if reserved.exists() else written(sink)

    monkeypatch.setattr(JsonLines, "_written", full)
    for step in range(9):
        sink.write(row(step, **{"train/loss": 1 / (step + 1)}))
    assert read_rows(tmp_path / "metrics.jsonl") == []
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_rows_that_are_lost_at_the_end_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write(row(0))
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(JsonLines, "_written", lambda self: full)
    for step in (1, 2):
        sink.write(row(step))
    sink.close()
    assert "metrics.jsonl lacks its last 2 rows: [Errno 28] No space left on device" in caplog.text
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_continued_run_needs_no_room_for_the_rows_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "metrics.jsonl", 0, 9)
    monkeypatch.setattr("trainer.metrics.write_text", lambda path, content: pytest.fail("wrote"))
    JsonLines(tmp_path / "metrics.jsonl", 4).close()
    assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [b"5", b"[1]", b"null", b'{"step": "3"}', b'{"step": 3}', b"\xff\xfe", b"{", b"[" * 10**5, b'{"step": true}', b""],
)
def test_a_line_that_is_no_row_is_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 4)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    assert [found["step"] for found in read_rows(path)] == [0, 1, 2, 3]
    JsonLines(path, 4).close()
    assert "has 1 lines that are no rows of metrics" in caplog.text
    assert path.read_bytes().splitlines() == lines


def test_numbers_that_json_lacks_are_read_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "tokens": 0, "seconds": 0.0, "val/loss": NaN, "lr": -Infinity}\n')
    (found,) = read_rows(path)
    assert found["val/loss"] is None and found["lr"] is None


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


def test_an_unknown_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="logging.wandb.mode='on' must be online, offline or off"):
        Wandb(mode="on", run_dir=tmp_path, settings={})
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="WANDB_MODE='ofline' must be online, offline or disabled"):
        Wandb(run_dir=tmp_path, settings={})


def initialised(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, *, mode: str | None = None, project: str | None = None
) -> dict[str, Any]:
    """What wandb.init is given, by a run of that directory; nothing if it is not called."""
    given: dict[str, Any] = {}
    run = SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    fake_wandb(monkeypatch, lambda **settings: given.update(settings) or run, api_key="key")
    run_dir.mkdir(parents=True, exist_ok=True)
    Wandb(mode=mode, project=project, run_dir=run_dir, settings={"seed": 1}).close()
    return given


def test_without_wandbs_variables_our_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "PROJECT", "NAME", "RUN_ID", "DIR", "RESUME"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    given = initialised(monkeypatch, tmp_path / "a")
    assert len(given.pop("id")) == 16
    assert given == {
        "mode": "online",
        "project": "nanodescent",
        "name": "a",
        "dir": str(tmp_path / "a"),
        "resume": "allow",
        "config": {"seed": 1},
    }


def test_wandbs_variables_win_over_our_defaults_and_the_configuration_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {"MODE": "offline", "PROJECT": "theirs", "NAME": "n", "RUN_ID": "r1", "DIR": "d", "RESUME": "must"}
    for name, value in found.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    given = initialised(monkeypatch, tmp_path / "a")
    assert (given["mode"], given["id"]) == ("offline", "r1")
    assert not given.keys() & {"project", "name", "dir", "resume"}  # the client takes them from the environment
    given = initialised(monkeypatch, tmp_path / "a", mode="online", project="ours")
    assert (given["mode"], given["project"]) == ("online", "ours")


@pytest.mark.parametrize(("word", "mode"), [("disabled", None), ("dryrun", "offline"), ("", "online")])
def test_wandbs_own_words_for_modes_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, mode: str | None
) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    assert initialised(monkeypatch, tmp_path).get("mode") == mode


def test_a_run_keeps_its_wandb_id_and_folders_of_one_name_have_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    folders = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "lr:1e-3#x"]
    ids = [initialised(monkeypatch, folder, mode="offline")["id"] for folder in [*folders, *folders]]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)


def test_a_damaged_wandb_id_costs_wandb_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    (tmp_path / "wandb_id").write_text("a/b")
    assert initialised(monkeypatch, tmp_path, mode="offline") == {}
    assert "which is no id of a run; delete it" in caplog.text


def test_rows_that_lie_elsewhere_are_neither_read_nor_cut(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.write_text("what nobody may lose\n")
    (run / "metrics.jsonl").symlink_to(elsewhere)
    with pytest.raises(ReadingError, match="metrics.jsonl is a symbolic link"):
        JsonLines(run / "metrics.jsonl", 0)
    assert elsewhere.read_text() == "what nobody may lose\n"


def test_a_wandb_folder_that_cannot_be_written_gives_way_to_the_run_directory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_DIR", "/proc/nowhere")
    assert initialised(monkeypatch, tmp_path, mode="offline")["dir"] == str(tmp_path)
    assert f"warning: WANDB_DIR=/proc/nowhere cannot be written; wandb writes to {tmp_path}" in caplog.messages
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "new" / "folder"))  # which the client would not make either
    assert "dir" not in initialised(monkeypatch, tmp_path, mode="offline")
    assert (tmp_path / "new" / "folder").is_dir()
