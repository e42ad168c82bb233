"""How runs stand, read from their directories alone."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError
from files.lock import Lock
from launch.listing import RunList, by
from launch.loss_curves import MOST_POINTS, LossCurves
from launch.run_rows import age, columns_of, differing, row_of

Write = Callable[..., Path]
ROWS = [{"step": n, "tokens": 10 * n, "seconds": n / 2, "flops": n, "train/loss": 6 - n / 10} for n in (0, 10, 20)]


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """A run directory with rows, and with a result if there is a status; settings as YAML."""

    def write(name: str, status: str = "", rows: list[dict[str, Any]] = ROWS, yaml: str = "max_steps: 100\n") -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml)
        (folder / "env.json").write_text("{}")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if status:
            loss = 4.0 if status == "finished" else None
            result = {"status": status, "step": 100, "val/loss": loss, "train/loss": 4.5}
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def found(tmp_path: Path) -> dict[str, Any]:
    return {run.progress.name: run for run in RunList([str(tmp_path / "runs")]).refresh()}


@pytest.mark.parametrize(
    ("status", "state"),
    [("finished", "finished"), ("diverged", "diverged"), ("stopped", "stopped"), ("", "unfinished")],
)
def test_a_run_that_no_process_holds_stands_as_its_result_says(
    write_run: Write, tmp_path: Path, status: str, state: str
) -> None:
    write_run("a", status)
    run = found(tmp_path)["a"]
    assert (run.state, run.heartbeat_seconds) == (state, None)
    assert run.progress.step == (100 if status else 20)


def test_settings_in_which_a_few_runs_differ_are_found_and_of_many_differences_none(
    write_run: Write, tmp_path: Path
) -> None:
    for n, lr in enumerate((1e-3, 2e-3, 2e-3)):
        write_run(f"{n}", yaml=f"max_steps: 100\nseed: {n}\noptim: {{lr: {lr}, eps: 1.0e-8}}\nlog_every: {n + 1}\n")
    assert differing(list(found(tmp_path).values())) == ["optim.lr"]
    write_run("other", yaml="max_steps: 50\noptim: {betas: [0.9, 0.99], weight_decay: 0.1}\n")
    assert differing(list(found(tmp_path).values())) == []


@pytest.mark.parametrize(
    ("seconds", "timeout", "state"), [(3, "600", "running"), (700, "600", "hung"), (700, "1000", "running")]
)
def test_a_run_hangs_if_its_process_lives_without_progress_for_the_runs_own_timeout(
    write_run: Write, tmp_path: Path, seconds: float, timeout: str, state: str
) -> None:
    folder = write_run("a", yaml=f"max_steps: 100\ntimeout_seconds: {timeout}\n")
    (folder / "heartbeat").touch()
    then = time.time() - seconds
    os.utime(folder / "heartbeat", (then, then))
    lock = Lock(folder / "lock")
    run = found(tmp_path)["a"]
    lock.release()
    assert run.state == state
    assert run.heartbeat_seconds == pytest.approx(seconds, abs=2)
    cells = row_of(run, columns_of({}, ""))
    assert (cells["step"], cells["train/loss"], cells["ETA"]) == ("20/100", "4.0000", "0:00:40" * (state == "running"))
    assert cells["last progress"] == f"{age(seconds)} ago"


def test_a_run_that_goes_on_is_followed_by_the_same_list(write_run: Write, tmp_path: Path) -> None:
    folder, runs = write_run("a"), RunList([str(tmp_path / "runs")])
    assert [run.progress.step for run in runs.refresh()] == [20]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "seconds": 15.0, "val/loss": 3.5}) + "\n")
    (run,) = runs.refresh()
    assert (run.progress.step, run.progress.train_loss, run.progress.val_loss) == (30, 4.0, 3.5)
    write_run("b", "finished")
    assert {run.progress.name for run in runs.refresh()} == {"a", "b"}


def test_runs_are_found_below_folders_by_patterns_and_once_each(write_run: Write, tmp_path: Path) -> None:
    write_run("sweep/a", "finished")
    write_run("b")
    (tmp_path / "runs" / "sweep" / "a.log").write_text("no run")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "b")
    for places in ([tmp_path / "runs"], [tmp_path / "runs" / "*"], [tmp_path / "runs", tmp_path / "runs" / "b"]):
        runs = RunList(list(map(str, places))).refresh()
        assert sorted(run.path.resolve().name for run in runs) == ["a", "b"]
    with pytest.raises(ConfigError, match="there is no such folder"):
        RunList([str(tmp_path / "nothing")])
    assert RunList([str(tmp_path / "nothing")], may_be_missing=True).refresh() == []


def test_a_damaged_run_is_left_out_and_named(write_run: Write, tmp_path: Path) -> None:
    write_run("good", "finished")
    write_run("no-yaml", yaml="a: [")
    (write_run("no-result") / "result.json").write_text("[1]")
    runs = RunList([str(tmp_path / "runs")])
    assert [run.progress.name for run in runs.refresh()] == ["good"]
    assert len(runs.notes) == 2
    assert any("no-yaml/config.yaml" in note for note in runs.notes)
    assert any("no-result/result.json" in note for note in runs.notes)


def test_runs_are_sorted_by_any_key_and_those_without_it_come_last(write_run: Write, tmp_path: Path) -> None:
    for name, lr in (("a", "0.1"), ("b", "0.001"), ("d", "0.02")):
        write_run(name, yaml=f"max_steps: 100\noptim:\n  lr: {lr}\n")
    write_run("c", yaml="max_steps: 100\n")
    runs = list(found(tmp_path).values())
    assert [run.progress.name for run in by(runs, "optim.lr")] == ["b", "d", "a", "c"]
    assert [run.progress.name for run in by(runs, "-optim.lr")] == ["a", "d", "b", "c"]
    assert [run.progress.name for run in by(runs, "name")] == ["a", "b", "c", "d"]


def test_a_curve_is_thinned_and_keeps_its_first_and_newest_point(write_run: Write) -> None:
    folder = write_run("a", rows=[{**ROWS[0], "step": n, "train/loss": float(n)} for n in range(5000)])
    curves = LossCurves(folder)
    curves.update()
    steps = [point["step"] for point in curves.points["train/loss"]]
    assert len(steps) <= MOST_POINTS
    assert (steps[0], steps[-1]) == (0, 4999)
    assert set(map(lambda one, two: two - one, steps[:-2], steps[1:-1])) == {16}
    assert all(point["train/loss"] == point["step"] for point in curves.points["train/loss"])


def test_steps_that_are_done_again_replace_what_a_curve_had_of_them(write_run: Write) -> None:
    folder = write_run("a")
    curves = LossCurves(folder)
    curves.update()
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    again = [json.dumps({**ROWS[2], "step": step, "train/loss": 9.0}) + "\n" for step in (15, 25)]
    (folder / "metrics.jsonl").write_text("".join(kept + again))
    curves.update()
    assert [(point["step"], point["train/loss"]) for point in curves.points["train/loss"]] == [
        (0, 6.0),
        (10, 5.0),
        (15, 9.0),
        (25, 9.0),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 3.5, "3 d"), (-1, "0 s")]
)
def test_an_age_is_in_its_largest_unit(seconds: float, words: str) -> None:
    assert age(seconds) == words
