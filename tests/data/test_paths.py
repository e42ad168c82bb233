import glob
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest

from data import paths
from data.paths import find_files
from files.errors import PathError
from files.paths import expanded


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def found(root: Path, pattern: str) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in find_files(root / pattern).files]


# Expansion


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORPUS", "books")
    monkeypatch.delenv("ABSENT", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/a", "HOME/a"),
        ("~", "HOME"),
        ("$HOME/a", "HOME/a"),
        ("${HOME}/${CORPUS}/*.txt", "HOME/books/*.txt"),
        ("x-$CORPUS", "x-books"),
        ("a/~/b", "a/~/b"),
        ("/x/[a$]/?", "/x/[a$]/?"),
    ],
)
def test_home_and_variables_are_replaced(home: Path, path: str, expected: str) -> None:
    assert str(expanded(path)) == expected.replace("HOME", str(home))
    assert expanded(Path(path)) == expanded(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$ABSENT/a", r"the path \$ABSENT/a needs the environment variable ABSENT, which is not set"),
        ("a/${ABSENT}b", "needs the environment variable ABSENT"),
        ("~nobody-of-that-name/a", "the path ~nobody-of-that-name/a needs the home folder of ~nobody-of-that-name"),
    ],
)
def test_what_cannot_be_replaced_makes_no_folder_of_that_name(home: Path, path: str, message: str) -> None:
    with pytest.raises(PathError, match=message):
        expanded(path)


def test_a_name_that_only_looks_like_a_variable_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "A$ABSENT/a.txt", "~no-such-user/a.txt")
    monkeypatch.chdir(tmp_path)
    assert str(expanded("A$ABSENT/a.txt")) == "A$ABSENT/a.txt"
    assert str(expanded("~no-such-user/a.txt")) == "~no-such-user/a.txt"


# Patterns

NAMES = ["a.txt", "b.txt", ".hidden.txt", "c.md", "d", "e/a.txt", "e/f/b.txt", "e/.g/a.txt", "x.txt/a.txt", "f/[1].txt"]
PATTERNS = ["*.txt", "**/*.txt", "**", "*", "*/*.txt", "e/**/*", ".*", "**/f/*", "**/e/**/b.txt", "[ab].txt", "?.*"]
PATTERNS += ["e/a.txt", "*/../*.txt", "no/*.txt", "a.txt/*", "e/*/b.txt", "**/**/*.txt", "f/[[]1].txt", "**/a.txt"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_without_links_match_what_glob_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    write(tmp_path, *NAMES)
    (tmp_path / "empty").mkdir()
    expected = [os.path.realpath(path) for path in glob.glob(str(tmp_path / pattern), recursive=True)]  # noqa: PTH207  # absolute patterns
    files = sorted({path for path in expected if Path(path).is_file()})
    assert [os.path.realpath(path) for path in find_files(tmp_path / pattern).files] == files
    monkeypatch.chdir(tmp_path)
    assert sorted(os.path.realpath(path) for path in find_files(Path(pattern)).files) == files


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, "b/x.txt", "b-a/x.txt", "a.txt", "B.txt", "b.txt")
    paths = find_files(tmp_path / "**/*.txt").files
    assert paths == sorted(paths)


def test_a_file_named_like_a_pattern_is_found(tmp_path: Path) -> None:
    write(tmp_path, "part[1].txt")
    assert found(tmp_path, "part[1].txt") == ["part[1].txt"]


def test_a_linked_folder_adds_nothing(tmp_path: Path) -> None:
    write(tmp_path, "z/a.txt", "z/b.txt", "y.txt")
    before = found(tmp_path, "**/*.txt")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "a.txt").symlink_to(tmp_path / "y.txt")
    matches = find_files(tmp_path / "**/*.txt")
    assert found(tmp_path, "**/*.txt") == before
    assert matches.n_links == 2


def test_links_to_elsewhere_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "far/a.txt", "far/b.txt", "here/c.txt")
    (tmp_path / "here/one").symlink_to(tmp_path / "far")
    (tmp_path / "here/two").symlink_to(tmp_path / "far")
    (tmp_path / "here/three.txt").symlink_to("one/a.txt")
    assert sorted(os.path.realpath(path) for path in find_files(tmp_path / "here/**/*.txt").files) == [
        str(tmp_path.resolve() / name) for name in ("far/a.txt", "far/b.txt", "here/c.txt")
    ]


def test_a_hard_link_is_the_same_file(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    os.link(tmp_path / "b.txt", tmp_path / "c.txt")
    matches = find_files(tmp_path / "*.txt")
    assert found(tmp_path, "*.txt") == ["a.txt", "b.txt"]
    assert matches.n_links == 1


def test_a_folder_that_is_mounted_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "b.txt", "mount/a.txt", "mount/b.txt", "mount/c.txt")
    monkeypatch.setattr(
        paths, "_status", lambda path: Path(path if path.endswith("c.txt") else path.replace("/mount", "")).stat()
    )
    assert found(tmp_path, "**/*.txt") == ["a.txt", "b.txt", "mount/c.txt"]


def test_files_that_a_file_system_gives_one_number_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "bc.txt")

    def numbered(path: str) -> os.stat_result:
        fields = list(Path(path).stat())
        fields[1] = 7
        return os.stat_result(fields)

    monkeypatch.setattr(paths, "_status", numbered)
    assert found(tmp_path, "*.txt") == ["a.txt", "bc.txt"]


def test_equal_files_are_different_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    assert found(tmp_path, "*.txt") == ["a.txt", "b.txt"]


def test_circles_of_links_end(tmp_path: Path) -> None:
    # Following every way through them would take 12! steps, and glob.glob 2**40 for two links of a folder to itself.
    folders = [tmp_path / f"{i:02d}" for i in range(12)]
    write(tmp_path, *(f"{i:02d}/a.txt" for i in range(12)))
    for folder in folders:
        (folder / "self").symlink_to(folder)
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert found(tmp_path, "**/*.txt") == [f"{i:02d}/a.txt" for i in range(12)]


def test_a_folder_is_found_by_the_name_of_its_link(tmp_path: Path) -> None:
    write(tmp_path, "real/a.txt", "other/b.txt")
    (tmp_path / "other/wanted").symlink_to(tmp_path / "real")
    assert found(tmp_path, "**/wanted/*.txt") == ["other/wanted/a.txt"]


@pytest.mark.parametrize("seed", range(20))
def test_every_real_file_that_glob_finds_through_links_is_found_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folders = [tmp_path, *(tmp_path / name for name in ("a", "b", "a/c", "a/c/d"))]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for name in rng.sample(("1.txt", "2.txt", "3.md"), 2):
            (folder / name).write_text(f"{folder}{name}")
    for i in range(4):  # links downwards only, so that glob ends
        source, target = sorted(rng.sample(range(5), 2))
        (folders[source] / f"l{i}").symlink_to(folders[target])
    for pattern in ("**/*.txt", "*/*.txt", "**/l1/*", "**/c/**/*.txt"):
        expected = {os.path.realpath(path) for path in glob.glob(str(tmp_path / pattern), recursive=True)}  # noqa: PTH207
        files = [os.path.realpath(path) for path in find_files(tmp_path / pattern).files]
        assert sorted(files) == sorted(path for path in expected if Path(path).is_file())


def test_what_is_no_file_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    matches = find_files(tmp_path / "*.txt")
    matches.log_omissions()
    assert [Path(path).name for path in matches.files] == ["a.txt"]
    assert sorted(Path(path).name for path in matches.others) == ["folder.txt", "gone.txt", "pipe.txt"]
    assert f"3 matches are no regular files and were left out, first {tmp_path}/folder.txt" in caplog.text


def test_folders_are_no_surprise_where_the_pattern_takes_everything(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b/c.txt")
    assert find_files(tmp_path / "**/*").others == []


def test_a_folder_that_cannot_be_listed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.txt", "secret/b.txt")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    matches = find_files(tmp_path / "**/*.txt")
    matches.log_omissions()
    assert [Path(path).name for path in matches.files] == ["a.txt"]
    assert f"1 folders cannot be listed and were left out, first {tmp_path}/secret (Permission denied)" in caplog.text


def test_nothing_is_logged_where_nothing_was_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    find_files(write(tmp_path, "a.txt") / "*.txt").log_omissions()
    assert caplog.text == ""
