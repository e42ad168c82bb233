import logging
import re
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainer.wandb import Wandb


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "seconds": 0.5 * step, **values}


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


def test_a_wandb_folder_that_cannot_be_written_gives_way_to_the_run_directory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_DIR", "/proc/nowhere")
    assert initialised(monkeypatch, tmp_path, mode="offline")["dir"] == str(tmp_path)
    assert f"warning: WANDB_DIR=/proc/nowhere cannot be written; wandb writes to {tmp_path}" in caplog.messages
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "new" / "folder"))  # which the client would not make either
    assert "dir" not in initialised(monkeypatch, tmp_path, mode="offline")
    assert (tmp_path / "new" / "folder").is_dir()
