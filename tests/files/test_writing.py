import errno
import json
import math
import os
from pathlib import Path

import pytest

from files import writing
from files.writing import remove_temporaries, reserve, write_json, write_text


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    """New files find no room; one that is there can be written over."""
    write = writing._write

    def full(path: Path, content: bytes, mode: str) -> None:
        if mode == "wb":
            path.write_bytes(content[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content, mode)

    patch.setattr(writing, "_write", full)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1.5, {"z": -math.inf}], "n": None, "s": "nan"})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found == {"x": None, "y": [None, 1.5, {"z": None}], "n": None, "s": "nan"}


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new content")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_file_with_reserved_room_is_written_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(tmp_path / "a", 1000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 1000
    fill_disk(monkeypatch)
    write_text(tmp_path / "a", "new content")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new content"}


def test_reserved_room_is_given_back_once_the_file_is_written(tmp_path: Path) -> None:
    reserve(tmp_path / "a", 1000)
    write_text(tmp_path / "a", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_killed_processes_were_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.tmp", ".metrics.jsonl.tmp", "a.tmp", ".hidden", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.tmp").mkdir()
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".folder.tmp", ".hidden", "a.json", "a.tmp"]
