import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import content, prepared

import data.encoding
import data.identity
import data.text_files
from data import DataError, Files, OpenWebText, PySource, TokenDataset, warn_if_changed
from data.errors import MissingSource
from data.identity import difference
from data.source import Source, Unit

OLD = 1_600_000_000  # seconds, long before any test
CHANGED = r"the files of data=\w+ have changed since .* was prepared \(.*\)"


@pytest.fixture(params=["txt", "jsonl", "parquet", "openwebtext", "pysource"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(folder, source): five files of four documents each, four in .txt and PySource, all last written long ago."""
    kind, folder = request.param, tmp_path / "corpus"
    folder.mkdir()
    rows = [[f"document {j} of file {i}\n" for j in range(4)] for i in range(5)]
    for i, texts in enumerate(rows):
        if kind in ("parquet", "openwebtext"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"text": texts}), folder / f"{i}.parquet")
        elif kind == "jsonl":
            (folder / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            (folder / f"{i}.{'py' if kind == 'pysource' else 'txt'}").write_text("".join(texts))
    age(folder)
    return folder, source_of(kind, folder, monkeypatch)


def source_of(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    if kind == "openwebtext":
        return OpenWebText("d", folder=str(folder))
    if kind == "pysource":
        paths = {"stdlib": str(folder), "purelib": str(folder / "none"), "platlib": str(folder / "none")}
        monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
        return PySource(None)
    return Files(str(folder / "*"), "text")


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD))


@pytest.fixture(autouse=True)
def change_times_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits until its files' change times, which cannot be set, are old enough to be relied on."""
    monkeypatch.setattr(data.identity, "TICK_NS", 0)


def edit_in_place(path: Path) -> None:
    """Other content of the same size in the same inode; the modification time is set back."""
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[raw.index(b"document") + 1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes().replace(b"of file", b"OF FILE"))
    copy.replace(path)


def add(path: Path) -> None:
    shutil.copy(path, path.with_name(f"9{path.suffix}"))


def remove(path: Path) -> None:
    path.unlink()


def exchange(path: Path) -> None:
    other, third = path.with_name(f"4{path.suffix}"), path.with_name("third")
    path.rename(third)
    other.rename(path)
    third.rename(other)


CHANGES = pytest.mark.parametrize("change", [edit_in_place, replace, add, remove, exchange])


def second(folder: Path) -> Path:
    (path,) = folder.glob("2.*")
    return path


@CHANGES
def test_a_changed_corpus_is_refused_and_trained_on_as_prepared(
    corpus: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    change(second(folder))
    with pytest.raises(DataError, match=CHANGED + ": delete that folder"):
        prepared(source, tmp_path / "out")
    warn_if_changed(source, path)
    (message,) = caplog.messages
    assert "have changed since" in message and "training on the data set as it was prepared" in message
    assert len(message.splitlines()) == 1


def test_an_unchanged_corpus_is_not_read_again(
    corpus: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = corpus
    path = prepared(source, tmp_path / "out")
    reads: list[Path] = []
    monkeypatch.setattr(data.identity, "sha256_of", lambda file: reads.append(file))
    assert prepared(source, tmp_path / "out") == path
    warn_if_changed(source, path)
    assert (reads, caplog.messages) == ([], [])


def touched(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    for path in folder.iterdir():
        path.touch()
    return source


def restored(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    return source


def elsewhere(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    shutil.copytree(folder, folder.with_name("elsewhere"))
    (kind,) = {path.suffix[1:] for path in folder.iterdir()}
    kind = {"py": "pysource"}.get(kind, source.name if source.name == "openwebtext" else kind)
    return source_of(kind, folder.with_name("elsewhere"), monkeypatch)


def renamed(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    for path in folder.iterdir():
        path.rename(path.with_name("part-" + path.name))
    return source


@pytest.mark.parametrize("move", [touched, restored, elsewhere, renamed])
def test_the_same_contents_are_the_same_corpus_and_read_once(
    corpus: tuple[Path, Source],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    move: Callable[[Path, Source, pytest.MonkeyPatch], Source],
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    before = content(path)
    source = move(folder, source, monkeypatch)
    reads: list[Path] = []
    sha256_of = data.identity.sha256_of
    monkeypatch.setattr(data.identity, "sha256_of", lambda file: reads.append(file) or sha256_of(file))
    for _ in range(2):
        assert difference(source, path) is None
        warn_if_changed(source, path)
    assert len(reads) == 5
    assert caplog.messages == []
    assert content(path) == before  # verified.json apart


def test_machines_with_copies_of_their_own_each_read_theirs_once(
    corpus: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = corpus
    path = prepared(source, tmp_path / "out")
    look, sha256_of, reads = data.identity.look, data.identity.sha256_of, list[Path]()
    monkeypatch.setattr(data.identity, "sha256_of", lambda file: reads.append(file) or sha256_of(file))
    for machine in (0, 1, 0, 2, 1, 2, 0):

        def seen(name: str, machine: int = machine) -> Any:
            found = look(name)
            return dataclasses.replace(found, inode=found.inode + machine)

        monkeypatch.setattr(data.identity, "look", seen)
        assert difference(source, path) is None
    assert len(reads) == 2 * 5


def test_a_data_set_without_verified_json_or_in_a_read_only_folder_is_compared_all_the_same(
    corpus: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    (path / "verified.json").unlink()
    for file in folder.iterdir():
        file.touch()

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("data.verified.write_bytes", refuse)
    assert difference(source, path) is None
    replace(second(folder))
    assert difference(source, path) is not None


def test_where_the_files_are_not_training_says_nothing(
    corpus: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    shutil.rmtree(folder)
    warn_if_changed(source, path)
    assert caplog.messages == []
    if source.name != "pysource":  # whose files are where the interpreter is
        with pytest.raises(MissingSource, match="matches no file|holds no .parquet file"):
            prepared(source, tmp_path / "out")


def test_training_compares_no_more_than_it_may_and_says_so(
    corpus: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    touched(folder, source, monkeypatch)
    monkeypatch.setattr(data.identity, "TRAINING_READS", 10)
    monkeypatch.setattr(data.identity, "sha256_of", lambda *arguments: pytest.fail("reads"))
    warn_if_changed(source, path)
    (message,) = caplog.messages
    assert message.startswith("cannot tell whether the files of data=")
    assert message.endswith("prepare_data.py does")


def test_training_goes_on_if_the_files_cannot_be_compared(
    corpus: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    second(folder).touch()
    (path / "source_files.jsonl").write_text("{}")
    warn_if_changed(source, path)
    (message,) = caplog.messages
    assert "cannot tell" in message and "source_files.jsonl is damaged" in message
    with pytest.raises(DataError, match="source_files.jsonl is damaged"):
        prepared(source, tmp_path / "out")


def test_a_recent_edit_is_found_though_the_clock_does_not_show_it(
    corpus: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a file system that counts in seconds: all stamps are equal, but too young to be relied on.
    folder, source = corpus
    monkeypatch.setattr(data.identity, "TICK_NS", 10**12)
    path = prepared(source, tmp_path / "out")
    assert difference(source, path) is None
    looked = {name: data.identity.look(name) for name in source.files()}
    edit_in_place(second(folder))
    monkeypatch.setattr(data.identity, "look", lambda name: looked[name])
    assert difference(source, path) is not None


def test_a_data_set_knows_its_files_by_content(corpus: tuple[Path, Source], tmp_path: Path) -> None:
    folder, source = corpus
    path = prepared(source, tmp_path / "out")
    meta = TokenDataset.open(path, "train").meta["source_files"]
    assert meta["n_files"] == 5
    assert meta["n_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    lines = [json.loads(line) for line in (path / "source_files.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == list(source.files())


class PowerCutError(Exception):
    pass


def interrupted(source: Source, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a preparation after two units."""
    encode, left = data.encoding._Encoding._encode, iter(range(100))

    def dying(*arguments: Any) -> None:
        if next(left) >= 2:
            raise PowerCutError
        encode(*arguments)

    for module in (data.source, data.text_files, data.parquet):
        monkeypatch.setattr(module, "unit_bytes", lambda total: 40)
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(data.encoding._Encoding, "_encode", dying)
        prepared(source, root)
    assert len(list(root.glob("*/parts/*.npz"))) == 2


@CHANGES
def test_a_killed_preparation_never_mixes_old_and_new_documents(
    corpus: tuple[Path, Source],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
) -> None:
    folder, source = corpus
    interrupted(source, tmp_path / "killed", monkeypatch)
    (read,) = folder.glob("0.*")
    change(read)
    path = prepared(source, tmp_path / "killed")
    assert "half prepared from other files, or these have changed since: starting afresh" in caplog.text
    uninterrupted = content(prepared(source, tmp_path / "uninterrupted"))
    assert {name: raw for name, raw in content(path).items() if name != "source_files.jsonl"} == {
        name: raw for name, raw in uninterrupted.items() if name != "source_files.jsonl"
    }


def test_a_killed_preparation_of_unchanged_files_continues(
    corpus: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = corpus
    interrupted(source, tmp_path / "killed", monkeypatch)
    read: list[Unit] = []
    documents = type(source).documents

    def watched(self: Source, unit: Unit) -> Iterator[str | None]:
        read.append(unit)
        return documents(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(type(source), "documents", watched)
        path = prepared(source, tmp_path / "killed")
    units = source.units()
    assert sorted(map(repr, read[1:])) == sorted(map(repr, units[2:]))  # the first is the disk check's
    assert content(path) == content(prepared(source, tmp_path / "uninterrupted"))
    assert caplog.messages == []


@pytest.mark.parametrize("change", [replace, add, remove])
def test_a_file_that_changes_while_it_is_read_is_refused(
    corpus: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    folder, source = corpus
    documents, path = type(source).documents, second(folder)

    def changing(self: Source, unit: Unit) -> Iterator[str | None]:
        yield from documents(self, unit)
        if str(path) in unit.paths and len(list(tmp_path.glob("out/*/parts/*.bin"))):
            change(path)

    def growing(self: Source) -> Any:
        add(path)
        return units(self)

    if change is add:  # between listing the files and listing the units
        units = type(source).units
        monkeypatch.setattr(type(source), "units", growing)
    else:
        monkeypatch.setattr(type(source), "documents", changing)
    with pytest.raises(DataError, match="changed while|appeared while|No such file"):
        prepared(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*/dataset.json"))


def test_files_beyond_the_limit_do_not_count(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i in range(4):
        pq.write_table(pa.table({"text": [f"file {i} row {j}" for j in range(10)]}), tmp_path / f"{i}.parquet")
    source = OpenWebText("d", folder=str(tmp_path), limit_documents=15)
    path = prepared(source, tmp_path / "out")
    (tmp_path / "3.parquet").unlink()
    assert difference(source, path) is None
    (tmp_path / "1.parquet").unlink()
    assert difference(source, path) is not None


def test_a_data_set_from_the_hub_has_no_files_to_compare(corpus: tuple[Path, Source], tmp_path: Path) -> None:
    _, source = corpus
    if isinstance(source, OpenWebText):
        path = prepared(source, tmp_path / "out")
        hub = OpenWebText("d")
        assert prepared(hub, tmp_path / "out") == path
