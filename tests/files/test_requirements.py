"""What is missing of an extra is told in one line, before anything of it is imported."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from files import requirements
from tests.configs.test_door import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extra_a_command_says_so_in_one_line(command: str, tmp_path: Path) -> None:
    """-S: without site-packages, as where nothing is installed."""
    done = subprocess.run([sys.executable, "-S", ROOT / command], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {Path(command).name} needs the packages of the extra [train], of which torch, ")
    assert line.endswith(f"are not installed: pip install -e '.[train]' in {ROOT}")


def test_one_that_is_missing_is_named_by_the_first_rank_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project.optional-dependencies]\nx = ["torch==1.2.3", "no-such.package>=1"]\n', "utf-8")
    monkeypatch.setattr(requirements, "PYPROJECT", project)
    assert requirements.missing("x") == ["no-such.package"]
    assert requirements.pinned("torch", "x") == "1.2.3"
    for rank, said in (("0", "of which no-such.package is not installed: pip install -e '.[x]'"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            requirements.check_installed("x")
        assert said in capsys.readouterr().err


def test_what_is_installed_ends_nothing() -> None:
    assert version("torch")
    requirements.check_installed("train")
