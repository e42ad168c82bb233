import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.run_directory import RunDirectory, RunDirectoryError


def same(path: Path) -> list[str]:
    return []


def open_(path: Path, resume: str = "auto", differences: Callable[[Path], list[str]] = same) -> RunDirectory:
    return RunDirectory(path, resume=resume, differences=differences)


def used(path: Path) -> Path:
    directory = open_(path)
    directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    directory.close()
    return path


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    holder = "import sys; from pathlib import Path; from trainer.run_directory import RunDirectory\n"
    holder += f"d = RunDirectory(Path({str(tmp_path)!r}), resume='auto', differences=lambda p: [])\n"
    holder += "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", holder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunDirectoryError, match=f"is in use by process {process.pid}; wait for it"):
        open_(tmp_path)
    process.kill()
    process.communicate()
    open_(tmp_path).close()


def test_a_fresh_directory_begins_and_a_used_one_continues(tmp_path: Path) -> None:
    directory = open_(tmp_path / "run")
    assert directory.result is None
    directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    directory.finish({"status": "stopped"})
    directory.close()
    directory = open_(tmp_path / "run")
    assert directory.result == {"status": "stopped"}
    directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    assert directory.result is None
    directory.close()


def test_a_run_that_failed_before_it_began_leaves_the_directory_free(tmp_path: Path) -> None:
    open_(tmp_path).close()
    directory = open_(tmp_path, "never", lambda path: ["other"])
    directory.close()


def test_a_rank_that_is_not_the_main_one_leaves_the_directory_alone(tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "run", resume="auto", differences=lambda path: [], is_main=False)
    other.begin("seed: 1\n", {"torch": "2"}, "{}")
    other.finish({"status": "finished"})
    other.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prepare", "resume", "differences", "message"),
    [
        (used, "never", same, "resume=never, but run_dir=.* holds a run"),
        (lambda path: path, "must", same, "resume=must, but run_dir=.* holds no run to continue"),
        (used, "auto", lambda path: ["seed=2 (there: 1)"], r"another configuration: seed=2 \(there: 1\); choose"),
    ],
)
def test_refusals_change_nothing(
    tmp_path: Path,
    prepare: Callable[[Path], Path],
    resume: str,
    differences: Callable[[Path], list[str]],
    message: str,
) -> None:
    prepare(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
    with pytest.raises(RunDirectoryError, match=message):
        open_(tmp_path, resume, differences)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"} == before


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunDirectoryError, match="holds thesis.tex and no run"):
        open_(tmp_path)


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        open_(tmp_path / "file" / "run")
