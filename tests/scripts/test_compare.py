import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from report.results import read, write
from scripts import compare
from tests.report.samples import rich

Write = Callable[..., Path]
TARGETS = ("torch.optim.AdamW", "torch.optim.RAdam")


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


def test_a_pattern_stands_for_its_runs_and_what_is_none_is_skipped_and_named(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run("sweep/a"), write_run("sweep/b", 3.0), write_run("sweep/c")]
    for name in ("a.log", "sweep-1234.csv"):
        (tmp_path / "sweep" / name).write_text("no run")
    (tmp_path / "sweep" / "empty").mkdir()
    for given in ([tmp_path / "sweep*" / "*"], sorted((tmp_path / "sweep").iterdir()), [*runs, tmp_path / "s*" / "*"]):
        assert compare.main(arguments(*given, out=tmp_path / "out")) == 0
        printed = capsys.readouterr().out
        assert [series.arm for series in read(tmp_path / "out" / "results.json").figures[0].series] == ["a", "b", "c"]
        for name in ("a.log", "sweep-1234.csv", "empty"):
            assert f"sweep/{name}" in printed.partition("Skipped, as no run: ")[2]


def test_paths_may_have_a_home_and_variables(write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run("a")
    write_run("b")
    assert compare.main(["~/a", "$HOME/b", "out=~/out"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_runs_are_called_what_they_are_and_not_after_their_folders(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(f"nano-x-adamw-{n}", 4.0 - n, optim={"_target_": target}) for n, target in enumerate(TARGETS)]
    assert compare.main(arguments(*runs, out=tmp_path / "out")) == 0
    results = read(tmp_path / "out" / "results.json")
    for n, target in enumerate(TARGETS):
        assert results.arms[n].label.startswith(f"nano-x-adamw-{n} (optim._target_={target}, ")
    assert "val/loss is nano-x-adamw-1 (optim._target_=torch.optim.RAdam, " in results.sentence
    assert results.tables[1].rows[0][-1].startswith("optim._target_=torch.optim.RAdam ")


def test_a_default_written_down_is_no_difference(write_run: Write, tmp_path: Path) -> None:
    optim = {"_target_": "optim.Lion", "lr": 1e-3}
    runs = [write_run("a", optim=optim), write_run("b", optim={**optim, "weight_decay": 0.0, "execution": "auto"})]
    assert compare.compare(runs).tables[0].rows == []


def test_a_foreign_run_is_not_looked_up_nor_run(
    write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    target = {"_target_": "psutil.Popen", "args": ["touch", str(tmp_path / "PWNED")]}
    runs = [write_run("a"), write_run("b", device="${oc.env:HF_TOKEN}", data={"source": target})]
    before = contents(tmp_path)
    assert compare.main(arguments(*runs, out=tmp_path / "out")) == 0
    report = "".join(
        path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".html", ".md", ".json")
    )
    assert "hf_SECRET" not in report and "${oc.env:HF_TOKEN}" in report
    assert not (tmp_path / "PWNED").exists()
    shutil.rmtree(tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", '{"status": "finished", "val/loss": "x"}'),
        ("result.json", '{"status": "won", "val/loss": 1}'),
        ("result.json", "[1]"),
        ("env.json", "[1]"),
        ("env.json", '{"data": [1]}'),
        ("env.json", '{"data": {"val": 5}}'),
        ("metrics.jsonl", "5\n"),
        ("metrics.jsonl", '{"step": -1}\n'),
        ("metrics.jsonl", '{"step": 1, "val/loss": [1]}\n'),
        ("config.yaml", "[1]"),
        ("config.yaml", "a: ["),
    ],
)
def test_a_damaged_run_is_one_line_with_its_file_and_leaves_no_trace(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    runs = [write_run("a"), write_run("b")]
    (runs[1] / file).write_text(content)
    before = contents(tmp_path)
    assert compare.main(arguments(*runs, "--different-data", out=tmp_path / "out")) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and str(runs[1] / file) in printed and len(printed.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_loss_that_is_no_number_comes_last_and_its_run_has_diverged(write_run: Write, tmp_path: Path) -> None:
    runs = [write_run("a", float("nan")), write_run("b", 4.0), write_run("c", float("-inf"))]
    results = compare.compare(runs)
    assert [row[:2] for row in results.tables[1].rows] == [["b", "finished"], ["a", "diverged"], ["c", "diverged"]]
    assert [row.estimate for row in results.protocols[0].measures] == [4.0, None, None]
    assert "the lowest final val/loss is b's" in results.sentence


@pytest.mark.parametrize("out", ["run", "file", "claim"])
def test_the_report_is_not_written_over_something_else(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    runs = [write_run("a"), write_run("b"), write_run("run")]
    (tmp_path / "file").write_text("")
    (tmp_path / "claim").mkdir()
    write(rich(), tmp_path / "claim" / "results.json")
    before = contents(tmp_path)
    assert compare.main(arguments(*runs[:2], out=tmp_path / out)) == 2
    assert capsys.readouterr().err.startswith(f"error: out={tmp_path / out} ")
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", "nothing"], ["a", "no*"]])
def test_bad_input_gets_one_line(
    names: list[str], write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run("a")
    assert compare.main(arguments(*(tmp_path / name for name in names), out=tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("file", ["config.yaml", "env.json", "metrics.jsonl", "result.json"])
def test_a_run_whose_files_lie_elsewhere_is_refused_unread(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run, other = write_run("a"), write_run("b")
    (run / file).rename(tmp_path / "secret")
    (run / file).symlink_to(tmp_path / "secret")
    assert compare.main(arguments(run, other, out=tmp_path / "out")) == 2
    printed = capsys.readouterr()
    assert f"{file} is a symbolic link to" in printed.err and len(printed.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_directory_may_be_a_link(write_run: Write, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_run("scratch/a"))
    assert compare.main(arguments(tmp_path / "link", write_run("b"), out=tmp_path / "out")) == 0
