import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import Texts, content, dataset_of, numbered_texts, prepared

import data.hashing
import data.verified
from data import DataError, TokenDataset, load_tokenizer
from data.metadata import META_BYTES

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
TOKENS = np.random.default_rng(0).integers(0, 60_000, 950)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return dataset_of(tmp_path / "texts-bytes-00000000", TOKENS, shard_tokens=100)


def edit_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(meta | changes))


def test_shards_are_raw_little_endian_tokens(folder: Path) -> None:
    files = [folder / f"train_{i:05d}.bin" for i in range(10)]
    assert [file.stat().st_size for file in files] == [200] * 9 + [100]
    raw = b"".join(file.read_bytes() for file in files)
    assert [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)] == TOKENS.tolist()


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 250, 950])
def test_windows_straddle_shards(folder: Path, length: int) -> None:
    dataset = TokenDataset.open(folder, "train")
    starts = np.arange(950 - length + 1)
    windows = dataset.read(starts, length)
    assert windows.dtype == np.int64
    assert np.array_equal(windows, np.lib.stride_tricks.sliding_window_view(TOKENS, length))


@pytest.mark.parametrize("start", [-1, 947])
def test_windows_outside_the_split_are_refused(folder: Path, start: int) -> None:
    with pytest.raises(DataError, match="a window of 4 tokens lies outside the 950 of train"):
        TokenDataset.open(folder, "train").read(np.array([0, start]), 4)


def test_checksum_is_the_hash_of_the_shards_hashes(folder: Path) -> None:
    digests = [hashlib.sha256((folder / f"val_{i:05d}.bin").read_bytes()).hexdigest() for i in range(10)]
    assert TokenDataset.open(folder, "val").checksum == hashlib.sha256("".join(digests).encode()).hexdigest()


def cut_short(folder: Path) -> None:
    os.truncate(folder / "train_00003.bin", 198)


def grow(folder: Path) -> None:
    with (folder / "train_00003.bin").open("ab") as file:
        file.write(b"\0")


def remove(folder: Path) -> None:
    (folder / "train_00003.bin").unlink()


def flip_a_bit(folder: Path) -> None:
    file = folder / "train_00003.bin"
    raw = bytearray(file.read_bytes())
    raw[77] ^= 1
    file.write_bytes(raw)


def shrink_vocabulary(folder: Path) -> None:
    edit_meta(folder, vocab_size=int(TOKENS.max()), eot=0)


def widen_vocabulary(folder: Path) -> None:
    edit_meta(folder, vocab_size=65537)


def spoil_json(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"format": 1,')


def age(folder: Path) -> None:
    edit_meta(folder, format=0)


def unfinish(folder: Path) -> None:
    (folder / "dataset.json").unlink()


COMMAND = r"run `python scripts/prepare_data.py data=texts data/tokenizer=bytes`"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, r"train_00003.bin has 198 bytes, expected 200: delete the folder"),
        (grow, r"train_00003.bin has 201 bytes, expected 200: delete the folder"),
        (remove, r"train_00003.bin is missing: delete the folder"),
        (flip_a_bit, r"train_00003.bin is damaged: expected sha256 \w{12}..., got \w{12}...; delete the folder"),
        (shrink_vocabulary, rf"holds token id {TOKENS.max()}, but the data set's vocabulary has {TOKENS.max()} ids"),
        (widen_vocabulary, r"65537 ids do not fit dtype 'uint16'"),
        (spoil_json, r"dataset.json is no JSON: Expecting .*: delete the folder"),
        (age, r"dataset.json describes no data set \(format 0, expected 1\): delete the folder and prepare it again"),
        (unfinish, rf"is only half prepared: {COMMAND}"),
    ],
)
def test_a_damaged_data_set_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    TokenDataset.open(folder, "train")
    damage(folder)
    with pytest.raises(DataError, match=message):
        TokenDataset.open(folder, "train")


def test_data_sets_from_before_shards_had_headers_are_read(folder: Path) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    for entry in meta["splits"].values():
        for shard in entry["shards"]:
            del shard["header_bytes"]
    edit_meta(folder, **meta)
    assert TokenDataset.open(folder, "train").n_tokens == 950


def part(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "n_tokens": 475, "share": 32_768} | changes


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(), part(n_tokens=474)], "train.n_tokens is 950, not the sum of its parts"),
        ([part(), part(share=32_767)], "the shares of train's parts do not add up to 65536"),
        ([part(), part(share=0)], "share is 0, expected 1 or more"),
        ([part(), part(colour=1)], "a part of train must have exactly name, n_tokens, share"),
        ([part(), part(name=3)], "the name of a part is a int, expected str"),
        ({}, "train.parts is a dict, expected list"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(folder: Path, parts: Any, message: str) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    meta["splits"]["train"]["parts"] = parts
    edit_meta(folder, **meta)
    with pytest.raises(DataError, match=rf"dataset.json describes no data set \({message}\)"):
        TokenDataset.open(folder, "train")


def test_tokens_elsewhere_are_named_by_absolute_paths(folder: Path) -> None:
    edit_meta(folder, in_place=True)
    with pytest.raises(DataError, match="shard 0 of train is 'train_00000.bin', expected an absolute path"):
        TokenDataset.open(folder, "train")


def test_a_missing_data_set_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"texts-bytes-0123abcd does not exist: {COMMAND}"):
        TokenDataset.open(tmp_path / "texts-bytes-0123abcd", "train")


def test_an_unknown_split_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="has no split 'test', only train, val"):
        TokenDataset.open(folder, "test")


def test_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "verified.json").unlink()  # as in a copy from elsewhere
    hashed: list[str] = []
    describe = data.verified.describe

    def watched(path: Path, *arguments: Any) -> Any:
        hashed.append(path.name)
        return describe(path, *arguments)

    monkeypatch.setattr(data.verified, "describe", watched)
    TokenDataset.open(folder, "val", verify=False)
    assert hashed == []
    TokenDataset.open(folder, "val")
    assert sorted(hashed) == [f"val_{i:05d}.bin" for i in range(10)]
    TokenDataset.open(folder, "val")
    assert len(hashed) == 10
    os.utime(folder / "val_00004.bin")
    TokenDataset.open(folder, "val")
    assert hashed[10:] == ["val_00004.bin"]


@pytest.mark.parametrize("is_new_file", [True, False])
def test_a_shard_changed_under_its_old_size_and_mtime_is_found(folder: Path, is_new_file: bool) -> None:
    TokenDataset.open(folder, "val")
    path = folder / "val_00004.bin"
    before = path.stat()
    if is_new_file:
        path.write_bytes(path.rename(folder.parent / "old").read_bytes())
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"val_00004.bin (is damaged|holds token id)"):
        TokenDataset.open(folder, "val")


DYING = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
import data.verified
from data import TokenDataset
describe, left = data.verified.describe, 4
def dying(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return describe(*arguments)
@contextmanager
def one_by_one(function, items):
    yield map(function, items)
data.verified.describe, data.verified.in_threads, data.verified.REMEMBER_SECONDS = dying, one_by_one, -1.0
TokenDataset.open(Path(sys.argv[1]), "train")
"""


def test_a_check_that_is_killed_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "verified.json").unlink()
    died = subprocess.run([sys.executable, "-c", DYING, str(folder)], env=ENVIRONMENT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    hashed: list[str] = []
    describe = data.verified.describe

    def watched(path: Path, *arguments: Any) -> Any:
        hashed.append(path.name)
        return describe(path, *arguments)

    monkeypatch.setattr(data.verified, "describe", watched)
    TokenDataset.open(folder, "train")
    assert sorted(hashed) == [f"train_{i:05d}.bin" for i in range(4, 10)]


def test_a_damaged_shard_is_found_though_others_are_right(folder: Path) -> None:
    (folder / "verified.json").unlink()
    flip_a_bit(folder)
    for _ in range(2):
        with pytest.raises(DataError, match="train_00003.bin is damaged"):
            TokenDataset.open(folder, "train")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_reading_a_data_set_changes_nothing_but_what_is_verified(tmp_path: Path) -> None:
    folder = prepared(Texts(numbered_texts(20)), tmp_path)
    (folder / "verified.json").unlink()
    before = snapshot(folder)
    for split in ("train", "val"):
        dataset = TokenDataset.open(folder, split)
        dataset.read(np.array([0]), dataset.n_tokens)
    load_tokenizer(folder)
    after = snapshot(folder)
    assert after.pop("verified.json")
    assert after == before


def test_a_data_set_is_read_from_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    (folder / "verified.json").unlink()
    monkeypatch.setattr("data.verified.write_bytes", refuse)
    before = snapshot(folder)
    assert TokenDataset.open(folder, "train").read(np.array([0]), 950)[0].tolist() == TOKENS.tolist()
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"train_00000.bin": 3}', '{"a": NaN}', '{"a": 1, "a": 2}']
)
def test_a_damaged_verified_json_costs_a_check_and_nothing_else(folder: Path, content: str) -> None:
    (folder / "verified.json").write_text(content)
    TokenDataset.open(folder, "train")
    assert len(json.loads((folder / "verified.json").read_text())) >= 10


HOSTILE: dict[str, Any] = {
    "file outside": (("splits", "train", "shards", 0, "file"), "../other.bin", "shard 0 of train is '../other.bin'"),
    "absolute file": (("splits", "train", "shards", 1, "file"), "/etc/passwd", "shard 1 of train is '/etc/passwd'"),
    "file twice": (("splits", "train", "shards", 1, "file"), "train_00000.bin", "expected train_00001.bin"),
    "split outside": (("splits", "../val"), {}, "'../val' is no name of a split"),
    "negative size": (("splits", "train", "shards", 0, "n_tokens"), -5, "n_tokens is -5, expected 1 or more"),
    "huge size": (("splits", "train", "shards", 0, "n_tokens"), 10**29, "n_tokens is 1000"),
    "size at odds": (("splits", "train", "shards", 0, "n_bytes"), 201, "has 201 bytes for 100 tokens of 2 bytes"),
    "size of text": (("splits", "train", "shards", 0, "n_bytes"), "200", "n_bytes is a str, expected int"),
    "size of truth": (("text_bytes",), True, "text_bytes is a bool, expected int"),
    "short shard": (("shard_tokens",), 101, "all shards of train but the last must have 101 tokens"),
    "long shard": (("shard_tokens",), 99, "all shards of train but the last must have 99 tokens"),
    "no shard size": (("shard_tokens",), 0, "shard_tokens is 0, expected 1 or more"),
    "negative id": (("splits", "train", "shards", 0, "max_id"), -1, "max_id is -1"),
    "false id": (("splits", "train", "shards", 0, "max_id"), 1, "but dataset.json says that 1 is the largest"),
    "short hash": (("splits", "train", "shards", 0, "sha256"), "abc", "must be 64 hexadecimal digits"),
    "shards as text": (("splits", "train", "shards"), "abc", "train.shards is a str, expected list"),
    "shard as list": (("splits", "train", "shards", 0), [], "shard 0 of train is a list, expected dict"),
    "unknown key": (("splits", "train", "shards", 0, "x"), 1, "shard 0 of train must have exactly"),
    "wrong sum": (("splits", "train", "n_tokens"), 951, "train.n_tokens is 951, not the sum of its shards"),
    "wrong checksum": (("splits", "train", "checksum"), "0" * 64, "train.checksum is not that of its shards"),
    "splits as list": (("splits",), [], "splits is a list, expected dict"),
    "dtype as list": (("dtype",), [], "dtype is a list, expected str"),
    "dtype object": (("dtype",), "object", "65536 ids do not fit dtype 'object'"),
    "eot beyond": (("eot",), 65536, "eot is 65536, but there are 65536 ids"),
    "no tokenizer": (("tokenizer",), None, "tokenizer is a NoneType, expected dict"),
    "format as text": (("format",), "1", "format is a str, expected int"),
    "files as list": (("source_files",), [1], "source_files is a list, expected dict"),
}


@pytest.mark.parametrize(("path", "value", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_dataset_json_that_cannot_be_true_is_refused_in_one_line(
    folder: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    entry = meta
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    (folder / "dataset.json").write_text(json.dumps(meta))
    (folder / "verified.json").unlink()
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        TokenDataset.open(folder, "train")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ("[1]", "must hold a JSON object, not a list"),
        ("null", "must hold a JSON object, not nothing"),
        ('{"format": 1, "format": 1}', "has the key format twice"),
        ('{"format": NaN}', "format is a NoneType, expected int"),
        ('{"format": ' + "9" * 5000 + "}", "format is a NoneType, expected int"),
        ('{"format": 1e999}', "format is a NoneType, expected int"),
        ("\0" * 100, "Expecting value"),
        ("\xff", "is not UTF-8 text: byte 0 is 0xff"),
        (" " * (META_BYTES + 1), "has 33,554,433 bytes; one of that kind has 33,554,432 at most"),
    ],
    ids=range(11),
)
def test_a_dataset_json_that_is_none_is_refused_in_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "dataset.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=rf"dataset.json .*{message}.*: delete") as caught:
        TokenDataset.open(folder, "train")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 3000


def test_what_a_file_says_is_shown_without_control_characters() -> None:
    assert str(DataError("a\nb\x1b[2Jé\u202e")) == r"a\nb\x1b[2Jé\u202e"


FEW = """
import resource, sys
from pathlib import Path
import numpy as np
from data import TokenDataset
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
sets = [TokenDataset.open(Path(sys.argv[1]), split) for split in ("train", "val")]
for dataset in sets:
    assert len(dataset.shards) == 100
    everything = dataset.read(np.array([0]), dataset.n_tokens)[0]
    starts = np.random.default_rng(0).integers(0, dataset.n_tokens - 8, 300)
    assert (dataset.read(starts, 8) == everything[starts[:, None] + np.arange(8)]).all()
"""


def test_a_data_set_may_have_more_shards_than_the_process_may_open_files(tmp_path: Path) -> None:
    folder = dataset_of(tmp_path / "many", np.arange(995), shard_tokens=10)
    done = subprocess.run([sys.executable, "-c", FEW, str(folder)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def n_open() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the listing itself opens one, always


def test_files_are_closed_beyond_the_limit_and_with_the_data_set(folder: Path) -> None:
    before = n_open()
    dataset = TokenDataset.open(folder, "train")
    dataset._files._limit = 3
    for _ in range(2):
        dataset.read(np.arange(0, 940, 7), 10)
    assert n_open() == before + 3
    del dataset
    assert n_open() == before


def test_other_parts_of_the_process_may_leave_no_descriptor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = TokenDataset.open(folder, "train")
    dataset.read(np.array([0, 200]), 10)
    real, refused = os.open, list[Path]()

    def scarce(path: Path, *arguments: Any) -> int:
        if path.name == "train_00005.bin" and not refused:
            refused.append(path)
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", scarce)
    assert dataset.read(np.array([500]), 10)[0].tolist() == TOKENS[500:510].tolist()
    assert refused


def test_threads_may_read_at_a_time(folder: Path) -> None:
    dataset = TokenDataset.open(folder, "train")
    dataset._files._limit = 1
    starts = np.random.default_rng(1).integers(0, 900, (8, 200))
    with ThreadPoolExecutor(4) as pool:
        windows = list(pool.map(lambda some: dataset.read(some, 50), starts))
    assert np.array_equal(np.stack(windows), TOKENS[starts[..., None] + np.arange(50)])


def test_a_shard_that_vanishes_in_use_is_named(folder: Path) -> None:
    dataset = TokenDataset.open(folder, "train")
    remove(folder)
    with pytest.raises(DataError, match="train_00003.bin cannot be read any more: No such file"):
        dataset.read(np.array([300]), 10)


def test_a_data_set_is_found_by_home_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PART", "out")
    folder = prepared(Texts(numbered_texts(20)), Path("~/$PART"))
    assert folder.parent == tmp_path / "out"
    assert TokenDataset.open(Path("~/$PART", folder.name), "val").checksum
    assert load_tokenizer(Path("~/${PART}", folder.name)).vocab_size == 257


def test_a_replaced_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = prepared(Texts(numbered_texts(20)), tmp_path)
    assert load_tokenizer(folder).encode("ab") == [97, 98]
    (folder / "tokenizer.json").write_text('{"kind": "bytes" }')
    with pytest.raises(DataError, match=r"tokenizer.json is missing or not the tokenizer that encoded the data"):
        load_tokenizer(folder)


def test_a_copied_data_set_opens(tmp_path: Path) -> None:
    folder = prepared(Texts(numbered_texts(20)), tmp_path / "here")
    copy = tmp_path / "there" / folder.name
    copy.mkdir(parents=True)
    for name, raw in content(folder).items():
        (copy / name).write_bytes(raw)
    assert TokenDataset.open(copy, "val").checksum == TokenDataset.open(folder, "val").checksum
