import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import Texts, content, dataset_of, numbered_texts, prepared

import data.verified
from data import DataError, TokenDataset, load_tokenizer

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
        (spoil_json, r"dataset.json describes no data set \(Expecting .*\): delete the folder"),
        (age, r"dataset.json describes no data set \(format 0, expected 1\): delete the folder and prepare it again"),
        (unfinish, rf"is only half prepared: {COMMAND}"),
    ],
)
def test_a_damaged_data_set_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    TokenDataset.open(folder, "train")
    damage(folder)
    with pytest.raises(DataError, match=message):
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
