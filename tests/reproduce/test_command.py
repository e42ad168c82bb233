"""scripts/reproduce.py with claims of the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import jobs
from reproduce import claims
from scripts import reproduce as command


def reproduced(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """The command, with the claims in that folder."""
    monkeypatch.setattr(claims, "FOLDER", folder)
    for function in (claims.names, claims.scales, claims.title):
        monkeypatch.setattr(function, "__defaults__", (folder,))
    monkeypatch.setitem(claims.load.__kwdefaults__, "folder", folder)
    return command.main(["claim=twice", "scale=nano", "jobs=1", *arguments])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=files", "data.source.pattern=/nowhere/*.txt"], "run `python scripts/prepare_data.py"),
        (["data=openwebtext"], "run `python scripts/prepare_data.py"),
        (["data=synthetic", "eval_sequences=1000000"], "evaluation wants 1000000 sequences"),
        (["data=synthetic", "model.vocab_size=5"], "model.vocab_size=5 is smaller than the data's vocabulary"),
        (["data=synthetic", "device=cuda"], "torch sees no CUDA"),
        (["data=synthetic", "schedule=wsd", "schedule.decay_fraction=1"], "must fit into max_steps"),
        (["data=synthetic", "optim.weight_decay=-1"], "weight_decay"),
    ],
)
def test_what_all_runs_need_is_checked_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("launch.jobs.run_jobs", lambda *jobs, **how: pytest.fail("a run started"))
    arguments = [f"out={tmp_path / 'out'}", f"data.root={tmp_path / 'data'}", *overrides]
    assert reproduced(monkeypatch, write_claim(), *arguments) == 2
    *progress, printed = capsys.readouterr().err.splitlines()
    assert message in printed and printed.startswith("error: ")
    assert not any("error" in line for line in progress)
    assert not (tmp_path / "out").exists()


def test_a_failure_that_all_runs_would_share_ends_the_claim(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('error: no luck'); raise SystemExit(2)")
    monkeypatch.setattr("reproduce.preconditions.check", lambda claim: None)
    monkeypatch.setitem(jobs.run_jobs.__kwdefaults__, "script", script)
    assert reproduced(monkeypatch, write_claim(), f"out={tmp_path / 'out'}", "data=synthetic") == 1
    printed = capsys.readouterr().err
    assert printed.count("error: no luck") == 1
    assert "more were not started, as they would fail in the same way" in printed


def test_a_claim_whose_runs_are_done_needs_no_data(
    monkeypatch: pytest.MonkeyPatch, write_claim: Callable[..., Path], simulate: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("reproduce.preconditions.check", lambda claim: pytest.fail("the data are checked"))
    monkeypatch.setattr("reproduce.timing.ratios", lambda claim, **how: {})
    monkeypatch.setattr("launch.jobs.unfinished", lambda jobs: [])
    simulation = simulate(2.0)
    monkeypatch.setattr("launch.jobs.run_jobs", lambda jobs, **how: simulation(jobs))
    assert reproduced(monkeypatch, write_claim(), f"out={tmp_path / 'out'}") == 0


def test_a_dry_run_leaves_nothing_on_disk(
    monkeypatch: pytest.MonkeyPatch, write_claim: Callable[..., Path], tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = write_claim(
        overrides=[each for each in tiny if not each.startswith(("data.root", "max_steps", "schedule"))]
    )
    assert reproduced(monkeypatch, folder, "--dry-run") == 0
    assert list((tmp_path / "here").iterdir()) == []


def test_help_names_a_claim_whose_file_is_damaged(
    monkeypatch: pytest.MonkeyPatch, write_claim: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_claim()
    (folder / "odd.yaml").write_text("a: [")
    assert reproduced(monkeypatch, folder, "--help") == 0
    printed = capsys.readouterr().out
    assert "odd                    cannot be read: " in printed and "B needs half of A's steps" in printed
