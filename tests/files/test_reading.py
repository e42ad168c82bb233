import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from configs import FOLDER, as_yaml, compose, flat
from files.errors import ReadingError
from files.reading import MOST_YAML_BYTES, number, read_json, read_lines, read_text, read_yaml

REFERENCES = "\n".join(f"k{n}: &k{n} [{','.join([f'*k{n - 1}'] * 9)}]" for n in range(1, 20))
Read = Callable[[Path], Any]


def lines(path: Path) -> list[dict[str, Any]]:
    return list(read_lines(path))


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_means_what_it_means_to_omegaconf(path: Path) -> None:
    assert (read_yaml(path) if path.stem != "none" else {}) == (OmegaConf.to_container(OmegaConf.load(path)) or {})


def test_a_configuration_reads_back_as_it_was_written(tmp_path: Path) -> None:
    config = compose(["data.prompt=${oc.env:HOME} # a: [b\n1e-3", "optim.lr=1e-5", "grad_clip=null", "compile=true"])
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert flat(read_yaml(tmp_path / "config.yaml") or {}) == flat(config)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_json, b"[1]", "must hold a JSON object, not a list"),
        (read_json, b"5", "must hold a JSON object, not a number"),
        (read_json, b"null", "must hold a JSON object, not nothing"),
        (read_json, b"", "is no JSON"),
        (read_json, b'{"a": 1', "is no JSON"),
        (read_json, b"[" * 100_000, "is nested too deeply"),
        (read_json, b'{"a": 1}'.decode().encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
        (read_json, b"\xef\xbb\xbf{}", "is no JSON"),
        (lines, b"{}\n5\n", "line 2 must hold a JSON object"),
        (lines, b'{"a": 1}\n{"a"\n', "line 2 is no JSON"),
        (lines, b'{"a": "' + b"x" * (1 << 20) + b'"}\n', "line 1 is longer than"),
        (read_yaml, b"- 1", "must hold a mapping of keys to values, not a list"),
        (read_yaml, b"", "must hold a mapping of keys to values, not nothing"),
        (read_yaml, b"a: [", "is no YAML"),
        (read_yaml, b"a: 1\na: 2", "key 'a' occurs twice"),
        (read_yaml, b"a: &a {b: 1}\nc: {<<: *a}", "merge keys (<<) are not read"),
        (read_yaml, b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (read_yaml, b"a: !!timestamp x", "is no YAML"),
        (read_yaml, b"a: &a [*a]", "is nested too deeply"),
        (read_yaml, b"[" * 50_000, "is nested too deeply"),
        (read_yaml, f"k0: &k0 [x, x]\n{REFERENCES}".encode(), "has more than 100,000 values"),
        (read_yaml, b"a" * (MOST_YAML_BYTES + 1), "one of that kind has"),
        (read_text, b"\xff", "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, read: Read, content: bytes, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ReadingError) as caught:
        read(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("read", [read_json, read_yaml, read_text, lines])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, read: Read) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, kind in (("fifo", "a FIFO"), (".", "a directory"), ("device", "a device"), ("loop", "symbolic links")):
        with pytest.raises(ReadingError, match=kind):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [read_json, read_yaml, read_text])
def test_a_file_that_is_not_there_is_none(tmp_path: Path, read: Read) -> None:
    assert read(tmp_path / "nothing") is None
    assert lines(tmp_path / "nothing") == []


def test_a_sparse_file_of_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReadingError, match="1,099,511,627,776 bytes"):
        lines(path)


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    digits = "9" * 400
    (tmp_path / "file").write_text(
        f'{{"a": NaN, "b": -Infinity, "c": 1e999, "d": {digits}, "e": 12345678901234567890}}'
    )
    assert read_json(tmp_path / "file") == {
        "a": None,
        "b": None,
        "c": None,
        "d": None,
        "e": pytest.approx(1.2345678e19),
    }
    (tmp_path / "file").write_text("a: .nan\nb: -.inf\nc: 1e-3\nd: 2026-01-01\n")
    assert read_yaml(tmp_path / "file") == {"a": None, "b": None, "c": 0.001, "d": "2026-01-01"}
    assert [number(value) for value in (1, 0.5, True, "1", None, float("nan"), 10**400)] == [1, 0.5, *[None] * 5]


def test_nothing_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    (tmp_path / "file").write_text("a: ${oc.env:SECRET}\nb: ${a}\n")
    assert read_yaml(tmp_path / "file") == {"a": "${oc.env:SECRET}", "b": "${a}"}


def test_a_last_line_half_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": 1}\n\n{"a": 2}\n{"a": ')
    assert lines(tmp_path / "file") == [{"a": 1}, {"a": 2}]


READERS = [read_json, read_yaml, read_text, lines]


@pytest.mark.parametrize("read", READERS)
def test_a_link_out_of_the_folder_is_refused_in_one_line(read: Read, tmp_path: Path) -> None:
    secret, run = tmp_path / "secret", tmp_path / "run"
    secret.write_text("{a: b}\n" if read is read_yaml else '{"auths": "token"}\n')
    run.mkdir()
    (run / "way").symlink_to(tmp_path)
    for place, target in (("absolute", secret), ("relative", Path("../secret")), ("twice", Path("way/secret"))):
        (run / place).symlink_to(target)
        with pytest.raises(ReadingError, match=f"{place} is a symbolic link to .*secret, out of its folder") as caught:
            read(run / place)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("read", READERS)
def test_a_link_within_the_folder_and_a_folder_that_is_a_link_are_read(read: Read, tmp_path: Path) -> None:
    run = tmp_path / "scratch" / "run"
    run.mkdir(parents=True)
    (run / "file").write_text("{a: b}\n" if read is read_yaml else '{"a": "b"}\n')
    (run / "other").symlink_to("file")
    (tmp_path / "run").symlink_to(run)
    assert read(run / "other") == read(tmp_path / "run" / "other") == read(tmp_path / "run" / "file")


def test_a_file_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "text")
    assert read_text(tmp_path / "a" / "link", may_be_link=True) == "x"
