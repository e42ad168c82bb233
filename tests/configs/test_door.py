import ast
import subprocess
import sys
from pathlib import Path

import pytest

from configs import ConfigError, answer

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "train.py",
    "scripts/bench.py",
    "scripts/compare.py",
    "scripts/doctor.py",
    "scripts/evaluate.py",
    "scripts/export.py",
    "scripts/optimizers.py",
    "scripts/prepare_data.py",
    "scripts/reproduce.py",
    "scripts/runs.py",
    "scripts/sample.py",
    "scripts/scaling.py",
    "scripts/send_metrics.py",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_names_what_it_does_not_know(command: str) -> None:
    done = subprocess.run([sys.executable, ROOT / command, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 1
    wrong = "runs/nowhere" if command.endswith(("compare.py", "runs.py")) else "no_such_key=1"
    done = subprocess.run([sys.executable, ROOT / command, wrong], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py", "scripts/runs.py"])  # of either way through the door one
def test_no_command_minds_where_its_output_goes(command: str) -> None:
    for script in (
        '"$0" "$1" --help > /dev/full',
        '"$0" "$1" --help | true; exit ${PIPESTATUS[0]}',
        '"$0" "$1" --help >&-',
    ):
        done = subprocess.run(["bash", "-c", script, sys.executable, ROOT / command], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_goes_through_the_door() -> None:
    scripts = [path for path in (ROOT / "train.py", *(ROOT / "scripts").glob("*.py")) if "__main__" in path.read_text()]
    assert {str(path.relative_to(ROOT)) for path in scripts} == set(COMMANDS)
    for path in scripts:
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called & {"answer", "from_command_line"}, path


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("seed=x is wrong"), 2, "error: seed=x is wrong\n"),
        (ValueError("two\nlines"), 2, "error: two lines\n"),
        (ConfigError("lr=x\nis wrong", "so is y"), 2, "error: lr=x is wrong\nerror: so is y\n"),
        (PermissionError(13, "Permission denied", "out/report.html"), 2, "error: out/report.html: Permission denied\n"),
        (KeyboardInterrupt(), 75, ""),
    ],
)
def test_what_goes_wrong_is_a_line_for_each_mistake_and_a_status(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    assert answer([], "doc", lambda arguments: raising(error)) == status
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_no_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        answer([], "doc", lambda arguments: 1 // 0)


def test_output_that_nobody_reads_or_no_terminal_can_show_ends_nothing() -> None:
    code = "import sys; from configs import answer\n"
    code += "sys.exit(answer([], '', lambda arguments: print('模' * 100000) or 3))"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (3, b"") and done.stdout.startswith(b"\\u6a21")
    for script in (
        f'{sys.executable} -c "$0" | true; exit ${{PIPESTATUS[0]}}',
        f'{sys.executable} -c "$0" > /dev/full',
    ):
        done = subprocess.run(["bash", "-c", script, code], capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (3, b"")


def test_of_the_ranks_of_a_machine_one_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert answer([], "doc", lambda arguments: raising(ConfigError("seed=x is wrong"))) == 2
    assert capsys.readouterr().err == "error: seed=x is wrong\n"
