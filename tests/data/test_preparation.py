import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from corpora import SETTINGS, Texts, content, numbered_texts, prepared

import data.encoding
from data import BPE, Bytes, DataError, Files, Synthetic, TokenDataset, dataset_dir, load_tokenizer, prepare
from data.tokenizers import BytePairs, Recipe, Tokenizer
from files.errors import PathError

TEXTS = numbered_texts(100)
ROOT = Path(__file__).parents[2]


def stream(path: Path, split: str) -> list[int]:
    dataset = TokenDataset.open(path, split)
    tokens: list[int] = dataset.read(np.array([0]), dataset.n_tokens)[0].tolist()
    return tokens


def documents(path: Path, split: str) -> list[str]:
    """The texts between the ends of text (id 256)."""
    tokens = stream(path, split)
    assert tokens[-1] == 256
    ends = [i for i, token in enumerate(tokens) if token == 256]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [bytes(tokens[start:end]).decode() for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("fraction", [0.0005, 0.1, 0.5])
def test_split_is_that_of_datasets_train_test_split(tmp_path: Path, fraction: float) -> None:
    from datasets import Dataset

    path = prepared(Texts(TEXTS), tmp_path, val_fraction=fraction)
    expected = Dataset.from_dict({"text": TEXTS}).train_test_split(test_size=fraction, seed=2357, shuffle=True)
    assert documents(path, "val") == list(expected["test"]["text"])
    assert documents(path, "train") == [text for text in TEXTS if text in set(expected["train"]["text"])]


def test_counts_describe_the_corpus(tmp_path: Path) -> None:
    path = prepared(Texts(TEXTS), tmp_path)
    meta = TokenDataset.open(path, "train").meta
    assert {split: found["n_documents"] for split, found in meta["splits"].items()} == {"train": 90, "val": 10}
    assert sum(found["n_tokens"] for found in meta["splits"].values()) == sum(len(text) + 1 for text in TEXTS)
    assert meta["text_bytes"] == sum(map(len, TEXTS))
    assert (meta["dtype"], meta["vocab_size"], meta["eot"]) == ("uint16", 257, 256)
    assert meta["tokenizer"]["name"] == "bytes"
    assert meta["source"]["name"] == "texts"
    assert all(shard["n_tokens"] == 1000 for shard in meta["splits"]["train"]["shards"][:-1])


@pytest.mark.parametrize(("workers", "per_unit"), [(1, 1), (4, 7), (2, 33), (3, 1000)])
def test_result_does_not_depend_on_workers_and_units(tmp_path: Path, workers: int, per_unit: int) -> None:
    path = prepared(Texts(TEXTS, per_unit), tmp_path / "some", workers=workers)
    expected = prepared(Texts(TEXTS), tmp_path / "one")
    for name, raw in content(expected).items():
        if name != "dataset.json":  # it records the units
            assert (path / name).read_bytes() == raw
    assert TokenDataset.open(path, "train").checksum == TokenDataset.open(expected, "train").checksum
    assert sorted(content(path)) == sorted(content(expected))


def test_threads_share_a_byte_pair_tokenizer(tmp_path: Path) -> None:
    path = prepared(Texts(TEXTS, 2), tmp_path / "some", BPE(300), workers=8)
    expected = prepared(Texts(TEXTS, 2), tmp_path / "one", BPE(300), workers=1)
    assert content(path) == content(expected)


DYING = """
import os, signal, sys
from pathlib import Path
from corpora import Texts, numbered_texts, prepared
real, left = os.fsync, int(sys.argv[2])
def fsync(descriptor):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
prepared(Texts(numbered_texts(100)), Path(sys.argv[1]))
"""


class Ended(NamedTuple):
    status: int
    stderr: str


def run(script: str, *arguments: object) -> Ended:
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    return Ended(done.returncode, done.stderr)


# Syncs: 0-3 the plan and the tokenizer, 4-18 the parts, then val, train shard by shard, stamps, dataset.json.
@pytest.mark.parametrize("n_syncs", [0, 3, 4, 9, 18, 19, 20, 22, 24, 26, 27])
def test_a_killed_preparation_continues_to_the_same_bytes(tmp_path: Path, n_syncs: int) -> None:
    died = run(DYING, tmp_path / "killed", n_syncs)
    assert died.status == -signal.SIGKILL, died.stderr
    again = Texts(TEXTS)
    path = prepared(again, tmp_path / "killed")
    assert content(path) == content(prepared(Texts(TEXTS), tmp_path / "uninterrupted"))
    n_parts_done = max(0, min(n_syncs - 4, 15))
    done = list(range(0, 7 * n_parts_done, 7))
    assert not set(done) & set(again.read_units[1:])  # the first read is the disk check's sample


def test_a_finished_data_set_is_recognised(tmp_path: Path) -> None:
    class Gone(Texts):
        def units(self) -> Any:
            raise AssertionError("nothing to do")

    path = prepared(Texts(TEXTS), tmp_path)
    before = content(path)
    assert prepared(Gone(TEXTS), tmp_path) == path
    assert content(path) == before


def test_other_documents_under_the_same_settings_start_afresh(tmp_path: Path) -> None:
    died = run(DYING, tmp_path / "killed", 12)
    assert died.status == -signal.SIGKILL, died.stderr
    others = Texts([text.upper() for text in TEXTS])
    assert content(prepared(others, tmp_path / "killed")) == content(prepared(others, tmp_path / "uninterrupted"))


def test_of_two_preparers_one_works_and_one_waits(tmp_path: Path) -> None:
    script = """
import logging, sys
from pathlib import Path
from corpora import prepared
from data import Synthetic
logging.basicConfig(format="%(message)s")
prepared(Synthetic(3000), Path(sys.argv[1]), shard_tokens=10**6)
"""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-c", script, str(tmp_path / "both")]
    environment = {**os.environ, "PYTHONPATH": paths}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    alone = prepared(Synthetic(3000), tmp_path / "alone", shard_tokens=10**6)
    assert content(tmp_path / "both" / alone.name) == content(alone)


class Pairs(Recipe):
    """All bytes, all pairs of bytes, and the end of text: 65793 ids."""

    name = "pairs"

    def fit(self, sample: Any) -> Tokenizer:
        single = [bytes([i]) for i in range(256)]
        return BytePairs(single + [first + second for first in single for second in single])


def test_more_than_65536_ids_take_32_bits(tmp_path: Path) -> None:
    path = prepared(Texts(TEXTS), tmp_path, Pairs())
    assert TokenDataset.open(path, "val").meta["dtype"] == "uint32"
    found = stream(path, "train") + stream(path, "val")
    tokenizer = load_tokenizer(path)
    expected = [token for text in TEXTS for token in (*tokenizer.encode(text), 65_792)]
    assert sorted(found) == sorted(expected)
    assert stream(path, "train")[-1] == tokenizer.eot == 65_792


def test_too_little_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Free(1000))
    source = Texts(TEXTS)
    with pytest.raises(DataError, match=r"takes about .* GB more and 0.0 GB are free: make room, point data.root"):
        prepared(source, tmp_path)
    assert source.read_units == [0]


class _Free(NamedTuple):
    free: int


def test_a_full_disk_is_explained_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError, match=r"the disk filled up while preparing .*: make room; the next run continues"
        ):
            prepared(Texts(TEXTS), tmp_path / "full")
    path = prepared(Texts(TEXTS), tmp_path / "full")
    assert content(path) == content(prepared(Texts(TEXTS), tmp_path / "roomy"))


def test_an_error_in_a_document_stops_the_preparation(tmp_path: Path) -> None:
    class Broken(Texts):
        def documents(self, unit: Any) -> Iterator[str]:
            if unit.start >= 49:
                raise DataError("corpus.jsonl, line at byte 77: expected a JSON object")
            return super().documents(unit)

    with pytest.raises(DataError, match="line at byte 77"):
        prepared(Broken(TEXTS), tmp_path, workers=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 0.0}, r"data.val_fraction=0.0 must lie in \(0, 1\)"),
        ({"val_fraction": 0.995}, "data.val_fraction=0.995 of 100 documents leaves none to train on"),
        ({"val_fraction": "half"}, r"data.val_fraction=half must lie in \(0, 1\)"),
        ({"split_seed": -1}, "data.split_seed=-1 must be a whole number >= 0"),
        ({"shard_tokens": 1.5}, "data.shard_tokens=1.5 must be a whole number >= 1"),
        ({"shard_tokens": 0}, "data.shard_tokens=0 must be a whole number >= 1"),
        ({"workers": 0}, "data.workers=0 must be a whole number >= 1, or null for one per core"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(Texts(TEXTS), tmp_path, **changes)


def names(root: Path, options: Sequence[tuple[Any, Any, dict[str, Any]]]) -> list[str]:
    return [dataset_dir(root, source, recipe, **{**SETTINGS, **changes}).name for source, recipe, changes in options]


def test_every_setting_has_a_folder_of_its_own(tmp_path: Path) -> None:
    options: list[tuple[Any, Any, dict[str, Any]]] = [
        (Synthetic(100), Bytes(), {}),
        (Synthetic(101), Bytes(), {}),
        (Synthetic(100, seed=1), Bytes(), {}),
        (Synthetic(100), BPE(300), {}),
        (Synthetic(100), BPE(301), {}),
        (Synthetic(100), Bytes(), {"val_fraction": 0.2}),
        (Synthetic(100), Bytes(), {"split_seed": 1}),
        (Synthetic(100), Bytes(), {"shard_tokens": 7}),
    ]
    found = names(tmp_path, options)
    assert len(set(found)) == len(options)
    assert found == names(tmp_path, options)
    assert found[0].rsplit("-", 1)[0] == "synthetic-bytes"


def test_prepare_returns_the_folder_that_dataset_dir_names(tmp_path: Path) -> None:
    path = prepare(Synthetic(10), Bytes(), tmp_path, **SETTINGS, workers=None, console=True)
    assert path == dataset_dir(tmp_path, Synthetic(10), Bytes(), **SETTINGS)


class Reading(NamedTuple):
    """Texts as a source may yield them, and what is expected of them."""

    given: list[str | None]
    expected: list[str]
    without_text: int


READINGS = {
    "nulls": Reading([None, "a", None, "b", None], ["a", "b"], 3),
    "blanks": Reading(["", "a", " \n", "b", "\u3000"], ["a", "b"], 3),
    "surrogates": Reading(["a\ud83d!", "\udc00", "\ud83d\ude00"], ["a\ufffd!", "\ufffd", "😀"], 0),
    "controls": Reading(["\0", "a\0\x1b[2Jb", "\ufeff", "\r\n.\r\n"], ["\0", "a\0\x1b[2Jb", "\ufeff", "\r\n.\r\n"], 0),
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("recipe", [Bytes(), BPE(300)])
def test_every_text_and_nothing_else_becomes_a_document(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reading: Reading, recipe: Recipe
) -> None:
    path = prepared(Texts(reading.given, per_unit=2), tmp_path, recipe, val_fraction=0.3)
    tokenizer = load_tokenizer(path)
    found = [tokenizer.decode(stream(path, split)).split("<|endoftext|>") for split in ("train", "val")]
    assert all(texts.pop() == "" for texts in found)
    assert sorted(found[0] + found[1]) == sorted(reading.expected)
    meta = TokenDataset.open(path, "train").meta
    assert meta["rows_without_text"] == reading.without_text
    assert meta["text_bytes"] == sum(len(text.encode()) for text in reading.expected)
    told = [message for message in caplog.messages if "without text" in message]
    expected = f"{reading.without_text} rows without text were left out (null, empty or blank)"
    assert told == [expected] * (reading.without_text > 0)


@pytest.mark.parametrize("recipe", [Bytes(), BPE(300)])
@pytest.mark.parametrize("texts", [[], [None], ["", " \n"]])
def test_a_corpus_without_text_is_an_error(tmp_path: Path, recipe: Recipe, texts: list[str | None]) -> None:
    with pytest.raises(DataError, match="data=texts holds no text|learns from the text of the corpus, but there is"):
        prepared(Texts(texts), tmp_path, recipe)
    assert not list(tmp_path.glob("*/dataset.json"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_files_without_content_are_an_error_and_no_traceback(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / name).touch()
    if name == "a.parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / name)
    with pytest.raises(DataError, match="holds no text"):
        prepared(Files(str(tmp_path / "a.*"), "text"), tmp_path)


def test_empty_files_among_others_are_part_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    path = prepared(Files(str(tmp_path / "*.*"), "text"), tmp_path)
    assert TokenDataset.open(path, "val").meta["source_files"]["n_files"] == 3
    (tmp_path / "b.jsonl").write_text('{"text": "z"}\n')
    with pytest.raises(DataError, match="have changed"):
        prepared(Files(str(tmp_path / "*.*"), "text"), tmp_path)


def test_a_linked_corpus_has_every_document_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(20):
        (tmp_path / f"corpus/{i % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"corpus/{i % 3}/{i}.txt").write_text(f"document {i}")
    plain = prepared(Files(str(tmp_path / "corpus/**/*.txt"), "text"), tmp_path / "plain")
    (tmp_path / "corpus/0/all").symlink_to(tmp_path / "corpus")
    os.link(tmp_path / "corpus/0/0.txt", tmp_path / "corpus/1/again.txt")
    linked = prepared(Files(str(tmp_path / "corpus/**/*.txt"), "text"), tmp_path / "linked")
    assert documents(linked, "train") == documents(plain, "train")
    assert documents(linked, "val") == documents(plain, "val")
    assert not set(documents(linked, "train")) & set(documents(linked, "val"))
    assert "2 links to files and folders that are there already were left out" in caplog.text


def test_text_of_many_bytes_a_character_needs_no_more_disk_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 100,000 tokens of two bytes, a shard of 1,000 more, and a tenth on top.
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Free(230_000))
    prepared(Texts(["世" * 3333] * 10), tmp_path)


def test_a_half_prepared_data_set_with_a_damaged_plan_starts_afresh(tmp_path: Path) -> None:
    for content_of_plan in ("", "[" * 100_000, "[]", '{"settings": 1, "settings": 1}', "{}"):
        died = dataset_dir(tmp_path / "some", Texts(TEXTS), Bytes(), **SETTINGS)
        (died / "parts").mkdir(parents=True)
        (died / "parts/000000.npz").write_bytes(b"of another time")
        (died / "plan.json").write_text(content_of_plan)
        path = prepared(Texts(TEXTS), tmp_path / "some")
        assert content(path) == content(prepared(Texts(TEXTS), tmp_path / "uninterrupted"))
        (path / "dataset.json").unlink()


def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/deeper"):
        with pytest.raises(DataError, match=r"cannot prepare .*/file.*: (File exists|Not a directory)"):
            prepared(Texts(TEXTS), root)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "cannot prepare .*: .*: Read-only file system"),
        (errno.EACCES, "cannot prepare .*: .*: Permission denied"),
        (errno.EDQUOT, "the disk filled up while preparing"),
        (errno.EIO, "cannot prepare .*: .*: Input/output error"),
    ],
)
@pytest.mark.parametrize("at", ["mkdir", "open", "replace"])
def test_an_output_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, at: str
) -> None:
    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, at, failing)
        with pytest.raises(DataError, match=message) as caught:
            prepared(Texts(TEXTS), tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert content(prepared(Texts(TEXTS), tmp_path)) == content(prepared(Texts(TEXTS), tmp_path / "well"))


def test_more_shards_than_can_be_described_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.encoding, "MAX_SHARDS", 10)
    n_tokens = sum(len(text) + 1 for text in TEXTS)
    message = f"shard_tokens=7 would make more than 10 files of {n_tokens:,} tokens: take at least {-(-n_tokens // 10)}"
    with pytest.raises(DataError, match=message):
        prepared(Texts(TEXTS), tmp_path, shard_tokens=7)


def test_root_knows_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    for root, expected in (("~/out", tmp_path / "out"), ("$SCRATCH/out", tmp_path / "scratch/out")):
        path = prepared(Texts(TEXTS), Path(root))
        assert path == dataset_dir(Path(root), Texts(TEXTS), Bytes(), **SETTINGS)
        assert path == dataset_dir(expected, Texts(TEXTS), Bytes(), **SETTINGS)
        assert path.is_dir()
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(PathError, match="SCRATCH, which is not set"):
        prepared(Texts(TEXTS), Path("$SCRATCH/out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch"]


def test_the_name_of_a_data_set_is_made_of_the_settings_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    before = dataset_dir(tmp_path, Files("~/*.txt", "text"), Bytes(), **SETTINGS)
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    assert dataset_dir(tmp_path, Files("~/*.txt", "text"), Bytes(), **SETTINGS) == before


FEW_DESCRIPTORS = """
import json, resource, sys
from pathlib import Path
from corpora import prepared
from data import Files
import pyarrow as pa, pyarrow.parquet as pq
folder = Path(sys.argv[1])
for i in range(60):
    (folder / f"{i}.txt").write_text(f"text {i}")
    (folder / f"{i}.jsonl").write_text(json.dumps({"text": f"line {i}"}))
    pq.write_table(pa.table({"text": [f"row {i}"]}), folder / f"{i}.parquet")
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
prepared(Files(str(folder / "*.*"), "text"), folder / "out", workers=16, shard_tokens=10)
"""


def test_preparation_opens_few_files_at_a_time(tmp_path: Path) -> None:
    done = run(FEW_DESCRIPTORS, tmp_path)
    assert done.status == 0, done.stderr


def test_preparation_works_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    expected = content(prepared(Texts(TEXTS), tmp_path / "with"))
    monkeypatch.setattr(fcntl, "flock", flock)
    assert content(prepared(Texts(TEXTS), tmp_path / "without")) == expected
    assert ["has no file locks" in message for message in caplog.messages] == [True]
