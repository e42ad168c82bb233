import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from reproduce.results import read
from scripts import compare

Write = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """A run directory: name, final loss (None: unfinished), checksum of the validation data, settings."""

    def write(name: str, loss: float | None = 4.0, val: str = "v", **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"seed": 1, "max_steps": 4, "run_dir": name, "optim": {"lr": 1e-3}, "eval_sequences": 8, **settings}
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        rows = [{"step": n, "tokens": n, "seconds": n, "flops": n, "val/loss": 5 - n / 4} for n in (0, 4)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "env.json").write_text(json.dumps({"device": "a CPU", "data": {"train": "t", "val": val}}))
        if loss is not None:
            result = {"status": "finished", "step": 4, "seconds": 4.0, "flops": 4.0, "val/loss": loss}
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def arguments(*parts: object, out: Path) -> list[str]:
    return [*map(str, parts), f"out={out}"]


def test_differences_come_first_then_the_runs_by_their_loss(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run("a", 4.5), write_run("b", 4.0, optim={"lr": 2e-3, "rho": 0.1}), write_run("c", None)]
    assert compare.main(arguments(*runs, out=tmp_path / "out")) == 0
    text = capsys.readouterr().out
    assert text.index("How the configurations differ") < text.index("optim.lr") < text.index("How they ended")
    results = read(tmp_path / "out" / "results.json")
    differences, ended = results.tables
    assert differences.rows == [["optim.lr", "0.001", "0.002", "0.001"], ["optim.rho", "–", "0.1", "–"]]
    assert [row[:2] for row in ended.rows] == [["b", "finished"], ["a", "finished"], ["c", "unfinished"]]
    assert [series.name for series in results.figures[0].series] == [
        "a (optim.lr=0.001)",
        "b (optim.lr=0.002, optim.rho=0.1)",
        "c (optim.lr=0.001)",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "report.md", "curves.csv"}
    assert "\n>" not in (tmp_path / "out" / "report.md").read_text()  # no paper, so nothing to quote


def test_different_validation_data_are_refused_unless_asked_for(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run("a"), write_run("b", val="another")]
    assert compare.main(arguments(*runs, out=tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "a and b have different validation data" in error and "--different-data" in error
    assert not (tmp_path / "out").exists()
    assert compare.main(arguments(*runs, "--different-data", out=tmp_path / "out")) == 0
    assert "different validation data" in (tmp_path / "out" / "report.md").read_text()


def test_another_slice_of_the_validation_data_is_noted(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run("a"), write_run("b", eval_sequences=16)]
    assert compare.main(arguments(*runs, out=tmp_path / "out")) == 0
    assert "note: The runs measured val/loss on different parts" in capsys.readouterr().out


def test_runs_of_the_same_name_are_told_apart(write_run: Write) -> None:
    folders = [write_run("one/run"), write_run("two/run")]
    assert compare.unique_names(folders) == ["one/run", "two/run"]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", "nothing"]])
def test_bad_input_gets_one_line(
    names: list[str], write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run("a")
    assert compare.main(arguments(*(tmp_path / name for name in names), out=tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: ")
