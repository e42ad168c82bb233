"""scripts/reproduce.py with claims of the tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import jobs
from reproduce import claims
from scripts import reproduce as command

SHORT = {"fractions": [0.25, 0.5, 0.75, 1.0], "seeds": [1], "tuning_seeds": [7], "tuned_axes": 1}


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
    assert reproduced(monkeypatch, write_claim(**SHORT), *arguments) == 2
    *progress, printed = capsys.readouterr().err.splitlines()
    assert message in printed and printed.startswith("error: ")
    assert not any("error" in line for line in progress)
    assert not (tmp_path / "out").exists()


def test_runs_under_slurm_may_want_a_device_that_the_login_node_has_not(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = [f"out={tmp_path / 'out'}", "data=synthetic", "eval_sequences=8", "device=cuda"]
    arguments += [f"data.root={tmp_path / 'data'}", "launch=slurm"]
    assert reproduced(monkeypatch, write_claim(**SHORT), *arguments) == 2
    assert "error: launch=slurm: there is no SLURM here" in capsys.readouterr().err  # which is asked after the checks


def test_a_failure_that_all_runs_would_share_ends_the_claim(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('error: no luck'); raise SystemExit(2)")
    monkeypatch.setattr("reproduce.preconditions.check", lambda claim, **how: None)
    monkeypatch.setitem(jobs.run_jobs.__kwdefaults__, "script", script)
    assert reproduced(monkeypatch, write_claim(**SHORT), f"out={tmp_path / 'out'}", "data=synthetic") == 1
    printed = capsys.readouterr().err
    assert printed.count("error: no luck") == 1
    assert "more were not started, as they would fail in the same way" in printed


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch, simulate: Any) -> Any:
    """Runs that are done, in place of those of the command."""
    found = simulate(2.0)
    monkeypatch.setattr("launch.jobs.unfinished", lambda jobs: [])
    monkeypatch.setattr("launch.jobs.run_jobs", lambda jobs, launcher, **how: found(jobs))
    return found


@pytest.mark.usefixtures("quick", "without_report")
def test_a_claim_whose_runs_are_done_needs_no_data_and_ends_with_tuning_and_verdict(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    simulation: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("reproduce.preconditions.check", lambda claim, **how: pytest.fail("the data are checked"))
    monkeypatch.setattr("reproduce.timing.ratios", lambda claim, **how: {})
    arguments = [f"out={tmp_path / 'out'}", f"atlas={tmp_path / 'shared'}"]
    assert reproduced(monkeypatch, write_claim(**SHORT), *arguments) == 0
    printed = capsys.readouterr().out.split("\n\n")
    assert printed[0].strip().startswith("Tuning alone: ")
    assert printed[1].startswith("out of regime at nano: ")
    (folder,) = (tmp_path / "shared").iterdir()
    assert {path.name for path in folder.iterdir()} == set(simulation.started)


@pytest.mark.usefixtures("quick", "without_report", "simulation")
def test_step_times_are_measured_where_the_runs_are(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("reproduce.timing.ratios", lambda claim, **how: pytest.fail("step times are measured here"))
    monkeypatch.setattr("launch.slurm.Slurm.called", lambda self, what, function: ({}, f"a node, for {what}"))
    assert reproduced(monkeypatch, write_claim(**SHORT), f"out={tmp_path / 'out'}", "launch=slurm") == 0
    assert json.loads((tmp_path / "out" / "step_times.json").read_text())["device"] == "a node, for step times"
    monkeypatch.undo()
    assert command.main(["claim=smmf_96", "scale=nano", f"out={tmp_path / 'b'}", "launch=slurm"]) == 2
    assert "error: smmf_96 trains nothing and measures where it is started" in capsys.readouterr().err


def test_a_dry_run_prints_the_checks_that_are_known_before_and_leaves_nothing_on_disk(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    own = [each for each in tiny if not each.startswith(("data.root", "max_steps", "schedule"))]
    average = {"label": "momentum", "beta": "optim.betas.1", "settled": 0.99}
    arms = {
        "a": {"label": "A", "role": "baseline", "overrides": ["optim=adamw"], "memories": ["optim.betas.1"]},
        "b": {"label": "B", "role": "candidate", "overrides": ["optim=lion"], "itself": [average]},
    }
    for arm in arms.values():
        arm["axes"] = {"rate": {"sets": ["optim.lr={}"], "start": 1e-3}}
    folder = write_claim(overrides=own, arms=arms, paper_batch_tokens=1e6, **SHORT)
    assert reproduced(monkeypatch, folder, "--dry-run") == 0
    printed = capsys.readouterr().out.splitlines()
    checks = [line for line in printed if line.startswith("R")]
    assert [line.split()[:2] for line in checks] == [["R5", "FAILS"], ["R6", "FAILS"], ["R8", "FAILS"], ["R10", "open"]]
    assert "starts at 8 steps; A (betas) needs 40 (wanted: " in checks[0]
    assert "B: momentum settled to 0.961 (0.99 wanted)" in checks[1]  # 1 - .98^160
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("less", "message"),
    [
        ({"fractions": [0.5, 1.0]}, "fractions=[0.5, 1.0] must be four or more lengths"),
        ({"evaluations": 3}, "no multiple of 54 steps"),
        ({"comparisons": [{"candidate": "b", "baseline": "a", "claims": {"size": {"claimed": 2, "least": 2}}}]},
         "there is no rule for a part in 'size'"),
    ],
)  # fmt: skip
def test_a_claim_that_cannot_be_judged_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
    write_claim: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    less: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("launch.jobs.run_jobs", lambda *jobs, **how: pytest.fail("a run started"))
    for dry in ([], ["--dry-run"]):
        assert reproduced(monkeypatch, write_claim(**less), f"out={tmp_path / 'out'}", *dry) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_names_a_claim_whose_file_is_damaged(
    monkeypatch: pytest.MonkeyPatch, write_claim: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_claim()
    (folder / "odd.yaml").write_text("a: [")
    assert reproduced(monkeypatch, folder, "--help") == 0
    printed = capsys.readouterr().out
    assert "odd                    cannot be read: " in printed and "B needs half of A's steps" in printed
