import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from files.errors import ReadingError
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


def test_the_heartbeat_of_a_process_that_was_killed_is_not_the_next_ones(tmp_path: Path) -> None:
    (used(tmp_path) / "heartbeat").touch()
    with pytest.raises(RunDirectoryError):
        open_(tmp_path, differences=lambda path: ["seed=2 (there: 1)"])
    assert (tmp_path / "heartbeat").is_file()
    open_(tmp_path).close()
    assert not (tmp_path / "heartbeat").exists()


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
    if (tmp_path / "lock").is_file():
        (tmp_path / "lock").write_text("of a process that is gone")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirectoryError, match=message):
        open_(tmp_path, resume, differences)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("resume", ["must", "auto"])
def test_a_directory_made_for_a_run_that_never_began_goes_again(tmp_path: Path, resume: str) -> None:
    (tmp_path / "runs").mkdir()
    if resume == "must":
        with pytest.raises(RunDirectoryError, match="holds no run to continue"):
            open_(tmp_path / "runs" / "a" / "b", resume)
    else:
        open_(tmp_path / "runs" / "a" / "b", resume).close()  # as where the data turn out to be missing
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '{"status": "bored"}', '{"status": ["finished"]}', "{", "\x00", "[" * 10**5]
)
def test_a_damaged_result_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    directory = open_(used(tmp_path))
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(
        RunDirectoryError, match=r"result.json does not say how the run ended \(.*\); delete it"
    ) as raised:
        _ = directory.result
    assert len(str(raised.value).splitlines()) == 1
    directory.close()


def test_a_beginning_that_the_disk_does_not_take_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    directory = open_(tmp_path)
    monkeypatch.setattr("trainer.run_directory.write_text", full)
    with pytest.raises(RunDirectoryError, match=f"run_dir={tmp_path} cannot be written: No space left on device"):
        directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    directory.close()


def test_a_stopped_run_keeps_its_result_if_it_cannot_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = open_(used(tmp_path))
    directory.finish({"status": "stopped"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}

    def full(path: Path, content: bytes, mode: str) -> None:
        path.write_bytes(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("files.writing._write", full)
    with pytest.raises(RunDirectoryError, match="cannot be written: No space left on device"):
        directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    directory.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"} == before


def test_room_for_the_result_is_taken_when_a_run_begins_and_what_was_half_written_goes(tmp_path: Path) -> None:
    directory = open_(used(tmp_path))
    (tmp_path / ".metrics.jsonl.tmp").touch()
    directory.begin("seed: 1\n", {"torch": "2"}, "{}")
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".result.json.reserved"]
    assert (tmp_path / ".result.json.reserved").stat().st_size > 10_000
    directory.finish({"status": "finished", "val/loss": float("nan")})
    assert not list(tmp_path.glob(".*"))
    assert directory.result == {"status": "finished", "val/loss": None}
    directory.close()


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunDirectoryError, match="holds thesis.tex and no run"):
        open_(tmp_path)


def test_a_run_whose_configuration_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    def unreadable(path: Path) -> list[str]:
        raise ReadingError(f"{path}: no YAML")

    used(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):  # it is not in use the second time
        with pytest.raises(ReadingError, match="no YAML"):
            open_(tmp_path, differences=unreadable)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        open_(tmp_path / "file" / "run")
