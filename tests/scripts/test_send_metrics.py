import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import as_yaml, compose
from files.lock import Lock
from scripts import send_metrics

ROWS = [
    {"step": 0, "tokens": 0, "seconds": 0.0, "val/loss": 8.25},
    {"step": 10, "tokens": 100, "seconds": 1.5, "train/loss": None, "lr": 1e-3},
    {"step": 20, "tokens": 200, "seconds": 3.0, "train/loss": 6.5, "val/loss": 6.75},
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(compose(["seed=7", f"run_dir={folder}"])))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the client is given, in place of the client."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    found = SimpleNamespace(settings={}, rows=[], is_finished=False)

    def init(**settings: Any) -> Any:
        found.settings = settings
        return SimpleNamespace(log=lambda row, step: found.rows.append((step, row)), finish=lambda: None)

    module = ModuleType("wandb")
    module.init, module.api = init, SimpleNamespace(api_key=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return found


def test_tensorboard_has_the_rows_of_a_run_that_was_trained_without_it_once(run_dir: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert send_metrics.main([str(tmp_path / "runs"), "logging=tensorboard"]) == 0
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(0, 8.25), (20, 6.75)]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(20, 6.5)]


def test_wandb_gets_rows_settings_and_the_same_id_every_time(run_dir: Path, wandb: SimpleNamespace) -> None:
    assert send_metrics.main([str(run_dir), "logging=wandb", "logging.wandb.mode=offline"]) == 0
    assert wandb.rows == [
        (row["step"], {k: v for k, v in row.items() if k != "step" and v is not None}) for row in ROWS
    ]
    assert (wandb.settings["name"], wandb.settings["config"]["seed"]) == ("a", 7)
    first = wandb.settings["id"]
    assert send_metrics.main([str(run_dir), "logging=wandb", "logging.wandb.mode=offline"]) == 0
    assert wandb.settings["id"] == first


def test_rows_that_did_not_arrive_are_no_success(
    run_dir: Path, wandb: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send_metrics.main([str(run_dir), "logging=wandb"]) == 1
    printed = capsys.readouterr()
    assert "wandb is off: no API key" in printed.err and "rows to" not in printed.out


def test_damaged_rows_are_left_out_with_a_warning(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step"', '{"stp"', 1))
    assert send_metrics.main([str(run_dir), "logging=tensorboard"]) == 1
    assert "metrics.jsonl: 1 damaged lines are left out" in capsys.readouterr().err


def test_a_sink_that_raises_is_told_and_the_others_get_their_rows(
    run_dir: Path, wandb: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(sink: Any, row: Any) -> None:
        raise KeyError("row")

    monkeypatch.setattr("trainer.tensorboard.TensorBoard.write", fail)
    arguments = [str(run_dir), "logging=[tensorboard,wandb]", "logging.wandb.mode=offline"]
    assert send_metrics.main(arguments) == 1
    printed = capsys.readouterr()
    assert "warning: the sink tensorboard failed (KeyError: 'row')" in printed.err
    assert "3 rows to wandb" in printed.out


def test_a_run_that_goes_on_is_refused_and_left_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(run_dir / "lock")
    assert send_metrics.main([str(run_dir), "logging=tensorboard"]) == 2
    lock.release()
    assert "is in use by process" in capsys.readouterr().err
    assert not (run_dir / "tensorboard").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "logging= is missing"),
        (["runs", "logging=tensorbord"], "logging=tensorbord does not exist; the nearest valid one is 'tensorboard'"),
        (["logging=wandb"], "give the directories of runs: there is none in nothing"),
        (["--all", "logging=wandb"], "--all is no option"),
        (["nowhere", "logging=wandb"], "nowhere: there is no such folder"),
    ],
)
def test_bad_input_gets_one_line(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert send_metrics.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}") and len(printed.splitlines()) == 1
