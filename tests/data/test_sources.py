import json
import os
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import data.parquet
import data.source
import data.text_files
from data import DataError, Files, OpenWebText, PySource, Synthetic
from data.embedded import NOT_STDLIB_CODE
from data.errors import MissingSource
from data.source import Source

HUB: dict[str, Any] = {"path": "Skylion007/openwebtext", "revisions": ["main", "refs/convert/parquet"]}


def texts(source: Source) -> list[str | None]:
    return [text for unit in source.units() for text in source.documents(unit)]


def parquet(path: Path, rows: Sequence[str | None], *, group: int = 10, column: str = "text") -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(rows))), column: pa.array(rows, pa.string())})
    pq.write_table(table, path, row_group_size=group)
    return path


def unit_size(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    for module in (data.source, data.text_files, data.parquet):
        monkeypatch.setattr(module, "unit_bytes", lambda total: n_bytes)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    unit_size(monkeypatch, 37)


# PySource


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "lib/b.py": b"b = 1\n",
        "lib/a/z.py": b"z = 1\n",
        "lib/a.py": b"a = 1\n",
        "lib/empty.py": b"\n",
        "lib/latin.py": b"x = '\xe9'\n",
        "lib/_sysconfigdata_x.py": b"build = 1\n",
        "lib/notes.txt": b"no\n",
        "lib/site-packages/early.py": b"early = 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = {"stdlib": "lib", "purelib": "lib/site-packages", "platlib": "lib/site-packages"}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {key: str(tmp_path / path) for key, path in paths.items()})
    return tmp_path


def test_pysource_takes_the_standard_library_first(interpreter: Path) -> None:
    assert texts(PySource(None)) == ["a = 1\n", "z = 1\n", "b = 1\n", "early = 1\n"]


def test_pysource_of_a_given_size_ignores_what_is_installed(interpreter: Path) -> None:
    some = PySource(18e-6)
    before = texts(some)
    (interpreter / "lib/site-packages/aaa.py").write_text("aaa = 1\n")
    assert texts(some) == before == ["a = 1\n", "z = 1\n", "b = 1\n"]


def test_pysource_default_has_its_size() -> None:
    source = PySource(10)
    library = Path(sysconfig.get_paths()["stdlib"])
    own = (path for path in library.rglob("*.py") if not NOT_STDLIB_CODE & {*path.parts})
    if sum(path.stat().st_size for path in own) < 11e6:
        pytest.skip("this interpreter comes with a part of the standard library only, as Debian's does")
    units = source.units()
    assert 9e6 < sum(unit.n_bytes for unit in units) <= 10e6
    assert source.units() == units
    assert not any("site-packages" in path for unit in units for path in unit.paths)


def test_pysource_reads_a_file_behind_two_names_once(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = texts(PySource(None))
    (interpreter / "lib64").symlink_to("lib")
    (interpreter / "lib/zz.py").symlink_to("b.py")
    places = {"stdlib": "lib", "purelib": "lib/site-packages", "platlib": "lib64/site-packages"}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {key: str(interpreter / path) for key, path in places.items()})
    assert texts(PySource(None)) == before
    assert len(PySource(None).files()) == len(set(map(os.path.realpath, PySource(None).files()))) == 6


@pytest.mark.parametrize("megabytes", [0, -1, "many"])
def test_pysource_refuses_no_text(megabytes: Any) -> None:
    with pytest.raises(DataError, match=f"data.source.megabytes={megabytes} must be > 0"):
        PySource(megabytes)


# Synthetic


def test_a_synthetic_document_depends_on_seed_and_index_alone() -> None:
    few, many = texts(Synthetic(30)), texts(Synthetic(1200))
    assert many[:30] == few
    assert len(set(many)) == 1200
    assert texts(Synthetic(30, seed=1)) != few


def test_synthetic_words_have_as_many_successors_as_asked_for() -> None:
    followers: dict[str, set[str]] = {}
    for text in texts(Synthetic(200, n_words=20, branching=3)):
        words = text.removesuffix(".\n").split(" ")
        assert len(words) == 200
        for word, follower in pairwise(words):
            followers.setdefault(word, set()).add(follower)
    assert max(len(found) for found in followers.values()) == 3


def test_synthetic_refuses_what_cannot_be_split() -> None:
    with pytest.raises(DataError, match="n_documents=1 must be >= 2"):
        Synthetic(1)
    with pytest.raises(DataError, match=r"branching=9 must lie in 1..n_words=5"):
        Synthetic(10, n_words=5, branching=9)


@pytest.mark.parametrize("setting", [{"n_documents": 2.5}, {"n_documents": "many"}, {"seed": -1}, {"n_words": None}])
def test_synthetic_refuses_settings_of_another_type(setting: dict[str, Any]) -> None:
    ((key, value),) = setting.items()
    with pytest.raises(DataError, match=rf"data.source.{key}={value} must be a whole number >= 0"):
        Synthetic(**{"n_documents": 9, **setting})


# Files


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("at_end", [True, False])
def test_jsonl_lines_are_read_once_wherever_units_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline: str, at_end: bool
) -> None:
    expected = [f"{i} é {'x' * i}\n" for i in range(9)]
    lines = newline.join(json.dumps({"id": i, "text": text}) for i, text in enumerate(expected))
    (tmp_path / "a.jsonl").write_text(lines + newline * at_end, newline="")
    source = Files(str(tmp_path / "*.jsonl"), "text")
    for n_bytes in range(1, 90):
        unit_size(monkeypatch, n_bytes)
        assert texts(source) == expected


@pytest.mark.usefixtures("small_units")
def test_files_of_all_kinds_come_in_sorted_order(tmp_path: Path) -> None:
    rows = [f"row {i} " + "y" * i for i in range(25)]
    parquet(tmp_path / "deep/er/rows.parquet", [*rows, None], column="body")
    (tmp_path / "deep/lines.jsonl").write_text('{"body": "line 0"}\n{"body": "line 1"}\n')
    for name in ("b", "a", "c"):
        (tmp_path / f"deep/{name}.txt").write_text(f"text {name} " * 3)
    source = Files(str(tmp_path / "**/*.*"), "body")
    assert texts(source) == [*(f"text {name} " * 3 for name in "abc"), "line 0", "line 1", *rows, None]
    assert len(source.units()) > 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 at byte 3: convert it"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": "x"}\n',
            r"a.jsonl, line at byte 14: expected a JSON object with a 'text'",
        ),
        ("a.jsonl", b"{\n", r"a.jsonl, line at byte 0: expected a JSON object with a 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"line at byte 0: 'text' is a int, expected a string"),
        ("a.parquet", b"PAR", r"cannot read .*a.parquet \(ArrowInvalid: .*is it a .parquet file\?"),
        ("a.csv", b"x,y\n", r"a.csv: expected .txt, .jsonl \(also .gz or .zst of these\) or .parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(Files(str(tmp_path / "*"), "text"))


def packed(path: Path, content: bytes) -> Path:
    """content, compressed as the path's ending says."""
    import gzip

    import pyarrow as pa

    compressed = gzip.compress(content) if path.suffix == ".gz" else pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(compressed)
    return path


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_text_is_what_was_compressed(tmp_path: Path, ending: str) -> None:
    lines = [json.dumps({"text": f"line {i} ü"}) for i in range(50)]
    packed(tmp_path / f"b.jsonl{ending}", "\n".join(lines).encode())
    packed(tmp_path / f"a.txt{ending}", "a text ü\n".encode())
    (tmp_path / "c.txt").write_text("plain")
    found = texts(Files(str(tmp_path / "*"), "text"))
    assert found == ["a text ü\n", "plain", *(f"line {i} ü" for i in range(50))]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_pieces_one_after_the_other_are_one_text(tmp_path: Path, ending: str) -> None:
    first, second = (packed(tmp_path / f"{n}{ending}", b"piece %d\n" % n) for n in (1, 2))
    (tmp_path / f"a.txt{ending}").write_bytes(first.read_bytes() + second.read_bytes())
    assert texts(Files(str(tmp_path / f"a.txt{ending}"), "text")) == ["piece 1\npiece 2\n"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_compressed_file_that_is_damaged_is_named_in_one_line(tmp_path: Path, name: str, ending: str) -> None:
    noise = "".join(
        map(chr, np.random.default_rng(0).integers(97, 122, 90_000))
    )  # so that the end is far from the start
    path = packed(tmp_path / f"{name}{ending}", json.dumps({"text": noise}).encode())
    for content in (path.read_bytes()[:-4000], b"no archive", path.read_bytes()[:200] + b"x" * 20_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path} is damaged or not compressed as its name says") as caught:
            texts(Files(str(path), "text"))
        assert len(str(caught.value).splitlines()) == 1


def test_a_compressed_text_too_large_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.text_files, "LONGEST_TEXT", 1000)
    path = packed(tmp_path / "a.txt.gz", b"a" * 1_000_000)
    with pytest.raises(DataError, match=r"a.txt.gz is one document of more than 1 GiB: split it"):
        texts(Files(str(path), "text"))


def test_a_pattern_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.source.pattern='.*/\*.txt' matches no file"):
        Files(str(tmp_path / "*.txt"), "text").units()


def test_a_missing_text_column_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["x"], column="body")
    with pytest.raises(DataError, match=r"a.parquet has no column 'text' .*, only \['id', 'body'\]"):
        Files(str(tmp_path / "*.parquet"), "text").units()


def test_a_text_too_large_for_one_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.text_files, "LONGEST_TEXT", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(DataError, match=r"a.txt is one document of more than 1 GiB: split it"):
        Files(str(tmp_path / "*.txt"), "text").units()


def written(path: Path, rows: Sequence[str | None]) -> Source:
    """The rows in a file of the kind that the name tells; of .txt a file per row."""
    if path.suffix == ".parquet":
        parquet(path, rows, group=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    else:
        for i, row in enumerate(rows):
            path.with_name(f"{i}.txt").write_text(row or "", newline="", encoding="utf-8")
    return Files(str(path.with_name("*" + path.suffix)), "text")


KINDS = pytest.mark.parametrize("kind", ["a.txt", "a.jsonl", "a.parquet"])
ROWS = ["one", "", "  \n", "two\r\n\0 ünd 🎉", "\ufeff\ufeffmark", " three "]


@KINDS
def test_text_is_what_was_written_in_every_format(tmp_path: Path, kind: str) -> None:
    rows = ROWS if kind != "a.txt" else [*ROWS[:4], "mark", " three "]
    assert texts(written(tmp_path / kind, rows)) == rows


def test_a_row_without_text_is_none_in_every_format_that_has_null(tmp_path: Path) -> None:
    for kind in ("a.jsonl", "a.parquet"):
        assert texts(written(tmp_path / kind, [None, "x", None])) == [None, "x", None]


@KINDS
def test_a_text_of_other_bytes_than_utf8_is_named(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = b"caf\xe9"
    bytes_as_string = pa.Array.from_buffers(pa.string(), 1, pa.array([raw], pa.binary()).buffers())
    pq.write_table(pa.table({"text": bytes_as_string}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + raw + b'"}\n')
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(DataError, match=rf"{kind}(, line at byte 0|, row group 0)? is not UTF-8 at byte \d+"):
        texts(Files(str(tmp_path / kind), "text"))


@KINDS
def test_a_lone_surrogate_in_utf8_is_read_in_every_format(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = "a\ud83db".encode("utf-8", "surrogatepass")
    bytes_as_string = pa.Array.from_buffers(pa.string(), 1, pa.array([raw], pa.binary()).buffers())
    pq.write_table(pa.table({"text": bytes_as_string}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + raw + b'"}\n')
    (tmp_path / "a.txt").write_bytes(raw)
    assert texts(Files(str(tmp_path / kind), "text")) == ["a\ud83db"]


@pytest.mark.parametrize(
    ("value", "name"),
    [("3", "int"), ("0.5", "float"), ("true", "bool"), ('["a"]', "list"), ('{"a": 1}', "dict"), ("NaN", "float")],
)
def test_a_value_that_is_no_text_is_named_with_file_line_and_type(tmp_path: Path, value: str, name: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{{"text": {value}}}\n')
    with pytest.raises(DataError, match=rf"a.jsonl, line at byte 14: 'text' is a {name}, expected a string"):
        texts(Files(str(tmp_path / "*"), "text"))


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ([3], "int64"),
        ([0.5], "double"),
        ([True], "bool"),
        ([["a"]], "list<.*>"),
        ([{"a": 1}], "struct<.*>"),
        ([b"a"], "binary"),
    ],
)
def test_a_column_that_is_no_text_is_named_with_file_and_type(tmp_path: Path, column: list[Any], name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a.parquet, all row groups: 'text' is a {name}, expected a string"):
        Files(str(tmp_path / "*"), "text").units()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "null"])
def test_text_is_read_from_every_type_of_column_that_holds_it(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = ["a", None, "b", "a"] if kind != "null" else [None] * 4
    column_type = pa.dictionary(pa.int8(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    pq.write_table(pa.table({"text": pa.array(rows, column_type)}), tmp_path / "a.parquet")
    assert texts(Files(str(tmp_path / "*"), "text")) == rows


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "score": NaN, "score": Infinity}',
        '{"text": "first", "text": "a"}',
        '{"other": [[[{}]]], "text": "a"}',
    ],
)
def test_what_else_a_line_holds_does_not_matter(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    assert texts(Files(str(tmp_path / "*"), "text")) == ["a"]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", "null", '"text"', "3", '{"text": "a"} x']
)
def test_a_line_that_is_no_row_is_refused_in_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match="a.jsonl, line at byte 0: expected a JSON object with a 'text'") as caught:
        texts(Files(str(tmp_path / "*"), "text"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("small_units")
def test_lines_end_where_the_file_ends_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\n\n{"text": "a"}\n \t\n\r\n{"text": "b"}')
    assert texts(Files(str(tmp_path / "*"), "text")) == ["a", "b"]


def test_a_file_cut_short_while_it_is_read_ends(tmp_path: Path) -> None:
    source = Files(str(tmp_path / "*"), "text")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3)
    (unit,) = source.units()
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert list(source.documents(unit)) == ["a"]


def test_files_without_content_have_no_documents(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("" if name < "b" else "\n\n")
    parquet(tmp_path / "a.parquet", [])
    assert texts(Files(str(tmp_path / "*"), "text")) == []


def test_a_line_too_long_to_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.text_files, "LONGEST_TEXT", 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "aaaaaaaaaaaaaaaaaaaa"}\n')
    with pytest.raises(DataError, match="a.jsonl, line at byte 14: it has more than 1 GiB"):
        texts(Files(str(tmp_path / "*"), "text"))


@KINDS
def test_a_file_that_vanishes_is_named(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / kind, ["a", "b"])
    units = source.units()
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"cannot read .*\.{kind[2:]} \(No such file or directory\): make it readable"):
        [list(source.documents(unit)) for unit in units]


@KINDS
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source, real = written(tmp_path / kind, ["a"]), Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent == tmp_path:  # chmod would not stop root
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=rf"cannot read .*\.{kind[2:]} \(Permission denied\): make it readable"):
        texts(source)


def test_a_local_path_may_look_like_an_address(tmp_path: Path) -> None:
    folder = tmp_path / "a::b" / "x?y#z"
    parquet(folder / "a.parquet", ["a"])
    assert texts(Files(str(tmp_path / "**" / "*.parquet"), "text")) == ["a"]


def test_the_size_of_a_unit_is_that_of_its_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["abc" * 10] * 50, "image": [bytes(range(256)) * 40] * 50})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    (unit,) = Files(str(tmp_path / "*"), "text").units()
    assert 1500 <= unit.n_bytes <= 3000  # 30 bytes each, their lengths and the page's header


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "matches no file; for the files in that folder say .*/\\*.txt"),
        ("pipe*", "matches no file \\(.*/pipe.txt is no regular file\\)"),
    ],
)
def test_a_pattern_that_matches_no_regular_file_says_what_it_matches(
    tmp_path: Path, pattern: str, message: str
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(MissingSource, match=message):
        Files(str(tmp_path / pattern), "text").units()


def test_a_pattern_and_a_folder_know_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PART", "deep")
    parquet(tmp_path / "deep/a.parquet", ["a", "b"])
    assert texts(Files("~/$PART/*.parquet", "text")) == ["a", "b"]
    assert texts(web(Path("~/${PART}"))) == ["a", "b"]


def test_files_lists_in_the_order_of_the_documents(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text('{"text": "x"}')
    parquet(tmp_path / "a.parquet", ["x"])
    source = Files(str(tmp_path / "*"), "text")
    names = [Path(path).name for path in source.files()]
    assert names == ["b.txt", "c.txt", "a.jsonl", "a.parquet"]
    assert names == [Path(path).name for unit in source.units() for path in unit.paths]


@pytest.mark.parametrize("arguments", [(3, "text"), (["a.txt"], "text"), ("*.txt", None)])
def test_settings_of_another_type_are_refused(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match=r"data.source.(pattern|text)=.* is a (int|list|NoneType), expected a string"):
        Files(*arguments)


# OpenWebText


def web(folder: Path | None, limit: int | None = None, expected: int | None = None) -> OpenWebText:
    return OpenWebText(**HUB, folder=folder and str(folder), limit_documents=limit, expected_documents=expected)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for i in range(3):
        rows = [f"page {j}" if j % 5 else "" for j in range(40 * i, 40 * (i + 1))]
        parquet(tmp_path / f"plain_text/train/{i:04d}.parquet", rows)
    return tmp_path


PAGES = [f"page {j}" if j % 5 else "" for j in range(120)]


def test_openwebtext_names_the_files_of_its_folder(copy: Path) -> None:
    names = [f"{i:04d}.parquet" for i in range(3)]
    assert [Path(path).name for path in web(copy).files()] == names
    assert [Path(path).name for path in web(copy, limit=41).files()] == names[:2]
    assert web(None).files() == []


def test_openwebtext_reads_a_linked_file_once(copy: Path) -> None:
    (copy / "again").symlink_to(copy / "plain_text")
    assert texts(web(copy, expected=120)) == PAGES


def test_openwebtext_reads_a_snapshot_made_of_links(copy: Path) -> None:
    (copy / "blobs").mkdir()
    for i, path in enumerate(sorted((copy / "plain_text/train").iterdir())):
        path.rename(copy / f"blobs/{i}")
        path.symlink_to(copy / f"blobs/{i}")
    assert texts(web(copy, expected=120)) == PAGES


@pytest.mark.usefixtures("small_units")
def test_openwebtext_from_a_folder_keeps_every_document_in_order(copy: Path) -> None:
    source = web(copy, expected=120)
    assert texts(source) == PAGES
    assert len(source.units()) == 12


@pytest.mark.parametrize("limit", [2, 15, 40, 41, 119, 500])
def test_openwebtext_limit_keeps_the_first_documents(copy: Path, limit: int) -> None:
    source = web(copy, limit=limit, expected=8_013_769)
    assert texts(source) == PAGES[:limit]
    assert sum(unit.n_documents or 0 for unit in source.units()) == min(limit, 120)


def test_openwebtext_counts_its_documents(copy: Path) -> None:
    with pytest.raises(
        DataError, match=r"should have 8,013,769 documents, but .* holds 120: losses would not be comparable"
    ):
        web(copy, expected=8_013_769).units()


def test_openwebtext_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.source.folder=.* holds no .parquet file"):
        web(tmp_path).units()


def test_openwebtext_is_named_by_its_documents_not_by_their_place(copy: Path) -> None:
    assert web(copy).settings == web(None).settings
    assert web(copy).settings != web(copy, limit=7).settings


def hub(monkeypatch: pytest.MonkeyPatch, branches: dict[str, list[str]]) -> list[str]:
    """Puts these files on these branches of the hub; returns the branches that are asked for, as they are."""
    import datasets
    import huggingface_hub

    asked: list[str] = []

    def info(api: Any, path: str, *, revision: str, timeout: float) -> Any:
        asked.append(revision)
        return SimpleNamespace(sha=f"{revision[:4]}abc")

    def builder(path: str, name: str | None, revision: str) -> Any:
        found = [branch for branch in branches if f"{branch[:4]}abc" == revision]
        if not found:
            raise RuntimeError("Dataset scripts are no longer supported")
        files = [f"hf://datasets/{path}@{revision}/{file}" for file in branches[found[0]]]
        return SimpleNamespace(config=SimpleNamespace(data_files={"train": files}))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return asked


SHARDS = ["plain_text/train/0000.parquet", "plain_text/train/0001.parquet"]


@pytest.mark.parametrize(
    ("branches", "commit", "asked"),
    [
        ({"main": SHARDS, "refs/convert/parquet": []}, "mainabc", ["main"]),
        ({"refs/convert/parquet": SHARDS}, "refsabc", ["main", "refs/convert/parquet"]),
    ],
)
def test_openwebtext_reads_main_else_the_converted_branch_by_commit(
    copy: Path, monkeypatch: pytest.MonkeyPatch, branches: dict[str, list[str]], commit: str, asked: list[str]
) -> None:
    import fsspec

    prefix = f"hf://datasets/Skylion007/openwebtext@{commit}/"

    def fetch(url: str, mode: str) -> Any:
        assert url.startswith(prefix)
        return (copy / url.removeprefix(prefix)).open(mode)

    found = hub(monkeypatch, branches)
    monkeypatch.setattr(fsspec, "open", fetch)
    source = web(None, expected=80)
    assert texts(source) == PAGES[:80]
    assert found == asked
    assert source.provenance() == {"commit": commit}
    assert source.files() == []


def test_openwebtext_says_what_to_do_when_the_network_breaks(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def breaking(url: str, mode: str) -> Any:
        raise TimeoutError("read timed out")

    source = web(copy)
    unit = replace(source.units()[0], paths=("hf://datasets/x/0000.parquet",))
    monkeypatch.setattr(fsspec, "open", breaking)
    with pytest.raises(DataError, match=r"cannot read hf://.* \(TimeoutError: read timed out\): run the same command"):
        list(source.documents(unit))


def test_openwebtext_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*arguments: object, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    started = time.monotonic()
    with pytest.raises(
        DataError,
        match=r"cannot list Skylion007/openwebtext at main or refs/convert/parquet .* \(ConnectionError: no route\): .*"
        r"data.source.folder=",
    ):
        web(None).units()
    assert time.monotonic() - started < 5  # without the library's own attempts, half a minute a branch


@pytest.mark.parametrize(
    ("n_tokens", "message"),
    [
        (4_434_897, "the validation set is the reference one by its count of 4,434,897 tokens"),
        (4_434_606, "a different validation set: 4,434,606 tokens, the reference one has 4,434,897"),
    ],
)
def test_openwebtext_says_whether_its_validation_set_is_the_reference(n_tokens: int, message: str) -> None:
    assert str(web(None).verdict({"splits": {"val": {"n_tokens": n_tokens}}})).startswith(message)
    assert Synthetic(10).verdict({}) is None


def test_openwebtext_refuses_a_limit_that_cannot_be_split() -> None:
    for limit in (1, "some", 2.5):
        with pytest.raises(DataError, match=rf"data.source.limit_documents={limit} must be >= 2"):
            web(None, limit=limit)  # type: ignore[arg-type]  # as a command line may give it
    with pytest.raises(DataError, match="data.source.expected_documents=all must be a whole number, or null"):
        web(None, expected="all")  # type: ignore[arg-type]  # as above


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet has 2 columns 'text', expected one"):
        Files(str(tmp_path / "*"), "text").units()
