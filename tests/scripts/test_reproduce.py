import contextlib
import json
from pathlib import Path

import pytest

from report.ledger import BEGIN, END
from report.results import read
from reproduce import claims
from reproduce.forecast import Forecast, Line
from scripts import reproduce as command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["claim=sofia", "scale=nano"], "there is no claim 'sofia'"),
        (["claim=sophia_2x", "scale=giant"], "has no scale 'giant'"),
        (["claim=sophia_2x"], "scale= is missing"),
        (["sophia_2x"], "'sophia_2x' must read key=value"),
        (["claim=logicnest", "scale=nano", "runs=others"], "runs=others must be own or published"),
        (["claim=logicnest", "scale=nano", "jobs=0"], "jobs=0 must be a whole number"),
        (["claim=logicnest", "scale=nano", "jobs=99999"], "jobs=99999 must be a whole number"),
        (["claim=logicnest", "scale=nano", "out="], "out= is empty; give a path"),
        (
            ["claim=logicnest", "scale=nano", "out=$NO_SUCH_VARIABLE"],
            "environment variable NO_SUCH_VARIABLE, which is not set",
        ),
        (["claim=sophia_clip", "scale=nano", "optim.lr=fast"], "optim.lr=fast must be a number"),
        (["claim=logicnest", "scale=nano", "seeds=2"], "trains nothing: leave seeds= out"),
        (["claim=sophia_clip", "scale=nano", "grad_clipp=1"], "unknown key 'grad_clipp'"),
        (["claim=sophia_clip", "scale=nano", "gpu=H100"], "gpu= names the GPU whose hours a dry run counts"),
        (["claim=sophia_clip", "scale=nano", "--dry-run", "gpu=H1OO"], "gpu='H1OO' has no peak that is known here"),
        (["claim=sophia_clip", "scale=nano", "--dry-run", "mfu=0.4"], "mfu= is a share of a GPU's peak"),
        (["claim=sophia_clip", "scale=nano", "--dry-run", "gpu=H100", "mfu=40"], "mfu=40 must be a number above 0"),
        (["claim=sophia_clip", "scale=nano", "--dry-run", "gpu=H100", "mfu=x"], "mfu=x must be a number above 0"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow  # imports torch, and counts the runs
def test_the_template_of_a_claim_is_rehearsed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["claim=_template", "scale=nano", "--dry-run", "gpu=H100"]) == 0
    said = capsys.readouterr()
    assert "SGD with Nesterov's momentum" in said.out and "GPU-hours of one H100" in said.out and not said.err


def test_mistakes_of_a_claim_file_get_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claim").mkdir()
    for folder in ("scale", "arm"):
        (tmp_path / folder).symlink_to(claims.FOLDER.parent / folder)
    text = (claims.FOLDER / "_template.yaml").read_text("utf-8")
    for right, wrong in (("role: candidate", "role: hero"), ("rule:", "rul:"), ("{claimed: 1.5, ", "{claimed: x, ")):
        assert right in text
        text = text.replace(right, wrong)
    (tmp_path / "claim" / "mine.yaml").write_text(text, "utf-8")
    monkeypatch.setitem(claims.load.__kwdefaults__, "folder", tmp_path / "claim")
    assert command.main(["claim=mine", "scale=nano", "--dry-run"]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and all(line.startswith("error: ") and "mine.yaml, scale nano: " in line for line in lines)
    assert [line.partition("nano: ")[2].partition(";")[0] for line in lines] == [
        "a claim of kind speed_up has no field 'rul'",
        "comparisons[0].claims.steps.claimed=x must be a number",
        "field 'rule' is missing",
        "arm lion: role='hero' must be one of baseline, candidate, other",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["claim="]])
def test_help_lists_the_claims(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 0
    assert "sophia_2x" in capsys.readouterr().out


def test_a_claim_runs_from_the_command_line_and_names_the_command_that_does_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["claim=logicnest", "scale=nano", f"out={tmp_path / 'out'}"]) == 0
    assert "no effect or worse at nano: " in capsys.readouterr().out
    assert read(tmp_path / "out" / "results.json").command == "python scripts/reproduce.py claim=logicnest scale=nano"
    assert (tmp_path / "out" / "report.html").is_file()

    command.write_ledger({"logicnest": tmp_path / "out", "never_run": tmp_path / "nothing"}, tmp_path / "ledger")
    names = {path.name for path in (tmp_path / "ledger" / "logicnest-nano").iterdir()}
    assert {"report.md", "results.json", "state_bytes.png"} <= names
    assert "report.html" not in names  # it holds all of plotly's code
    assert "logicnest-nano/report.md" in (tmp_path / "ledger" / "README.md").read_text()


@pytest.fixture(scope="module")
def logicnest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a claim that trains nothing."""
    folder = tmp_path_factory.mktemp("reproductions") / "logicnest-nano"
    assert command.main(["claim=logicnest", "scale=nano", f"out={folder}"]) == 0
    return folder


def test_the_readme_beside_the_ledger_shows_its_verdicts(
    monkeypatch: pytest.MonkeyPatch, logicnest: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    folders = {"logicnest": logicnest}
    command.write_ledger(folders, tmp_path / "elsewhere")
    assert "logicnest" not in readme.read_text()
    command.write_ledger(folders, tmp_path / "docs" / "claims")
    assert "<docs/claims/logicnest-nano/report.md>" in readme.read_text()


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["claim=all", "scale=none", "--dry-run"]) == 2
    assert command.main(["claim=adafactor_memory", "scale=nano", f"out={tmp_path / 'out'}", "--dry-run"]) == 0
    assert "trains nothing" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_hours_of_a_named_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line("sweep", "sweep", "AdamW", 2, 10, 1e9, 1e18, 7200.0, 0.0)
    asked = []

    def forecast(claim: object, calibrate: object, **how: int) -> Forecast:
        return Forecast([line], 2.0, 1.0, 0.0)

    monkeypatch.setattr("reproduce.forecast.forecast", forecast)
    monkeypatch.setattr("reproduce.forecast.on_gpu", lambda *how: asked.append(how))
    command_line = ["claim=sophia_clip", "scale=nano", f"out={tmp_path}", "jobs=2", "--dry-run"]
    assert command.main([*command_line, "gpu=H100"]) == 0
    assert command.main([*command_line, "gpu=NVIDIA A100", "mfu=0.45"]) == 0
    assert asked == [("H100", 0.3), ("NVIDIA A100", 0.45)]
    named = capsys.readouterr().out
    assert "about 2.00 GPU-hours of one H100 at 30% of its peak, which is assumed (mfu=), not measured" in named
    assert "; 1.00 hours if 2 are always at work" in named
    assert "about 2.00 GPU-hours of one NVIDIA A100 at 45% of its peak" in named
    monkeypatch.setattr(command, "cuda_devices", list)
    command.main(command_line)
    assert "about 1.00 hours on this machine with jobs=2; checkpoints" in capsys.readouterr().out
    monkeypatch.setattr(command, "cuda_devices", lambda: ["0", "1"])
    command.main(command_line)
    assert "about 1.00 hours on this machine with jobs=2, 2.00 GPU-hours; checkpoints" in capsys.readouterr().out
    assert command.main([*command_line, "launch=slurm"]) == 2
    assert "runs would be on other machines" in capsys.readouterr().err


def test_paths_have_home_and_variables_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    request = command.parse(["claim=all", "scale=nano", "out=~/out", "ledger=$HOME/ledger", "atlas=~/runs"])
    assert (request.out, request.ledger) == (Path("/home/me/out"), Path("/home/me/ledger"))
    assert request.atlas == Path("/home/me/runs")


def test_a_ledger_takes_no_results_of_another_claim(logicnest: Path, tmp_path: Path) -> None:
    content = json.loads((logicnest / "results.json").read_text())
    (tmp_path / "out").mkdir()
    (tmp_path / "keep").mkdir()
    for name, claim, scale in (
        ("other", "logicnest", "nano"),
        ("../keep", "../keep", "nano"),
        ("x", "x", "../../keep"),
    ):
        (tmp_path / "out" / "results.json").write_text(json.dumps({**content, "claim": claim, "scale": scale}))
        with contextlib.suppress(ValueError):
            command.write_ledger({name.strip("./"): tmp_path / "out"}, tmp_path / "ledger")
        assert (tmp_path / "keep").is_dir() and not (tmp_path / "ledger").exists()
