"""Tokens that others wrote, read where they lie."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import prepared
from foreign_files import llm_c, nanogpt

import data.token_files
import data.verified
import train
from configs import compose
from data import (
    BPE,
    GPT2,
    Characters,
    DataError,
    Ids,
    TokenDataset,
    TokenFiles,
    TokenizerFile,
    load_tokenizer,
    warn_if_changed,
)
from data.errors import MissingSource
from scripts.doctor import check_data

RNG = np.random.default_rng(0)
TRAIN = [RNG.integers(0, 50257, n).tolist() for n in (700, 300, 501)]
JOINED = [token for tokens in TRAIN for token in tokens]
VAL = RNG.integers(0, 50257, 400).tolist()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three training shards and one for validation, as llm.c writes them."""
    for i, tokens in enumerate(TRAIN):
        llm_c(tmp_path / f"in/fineweb_train_{i:06d}.bin", tokens)
    llm_c(tmp_path / "in/fineweb_val_000000.bin", VAL)
    return tmp_path / "in"


def source(folder: Path, train: str = "*_train_*.bin", val: str = "*_val_*.bin", **more: Any) -> TokenFiles:
    return TokenFiles(f"{folder}/{train}", f"{folder}/{val}", **more)


def prepared_from(found: TokenFiles, root: Path, n_ids: int = 50257, **changes: Any) -> Path:
    return prepared(found, root, Ids(n_ids), val_fraction=None, **changes)


def tokens_of(path: Path, split: str) -> list[int]:
    dataset = TokenDataset.open(path, split)
    tokens: list[int] = dataset.read(np.array([0]), dataset.n_tokens)[0].tolist()
    return tokens


def test_the_shards_of_llm_c_are_one_text_in_sorted_order(files: Path, tmp_path: Path) -> None:
    path = prepared_from(source(files), tmp_path / "out")
    assert tokens_of(path, "train") == JOINED
    assert tokens_of(path, "val") == VAL
    straddling = TokenDataset.open(path, "train").read(np.array([690, 999]), 20)
    assert straddling.tolist() == [JOINED[690:710], JOINED[999:1019]]


def test_nothing_is_copied_and_the_files_stay_as_they_are(files: Path, tmp_path: Path) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files.iterdir()}
    path = prepared_from(source(files), tmp_path / "out")
    assert {file.name for file in path.iterdir()} == {
        "dataset.json",
        "tokenizer.json",
        "source_files.jsonl",
        "verified.json",
    }
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files.iterdir()} == before


def test_version_7_has_ids_of_four_bytes(tmp_path: Path) -> None:
    tokens = RNG.integers(0, 128_256, 300).tolist()
    for split in ("train", "val"):
        llm_c(tmp_path / f"in/{split}.bin", tokens if split == "train" else VAL, magic=20240801, version=7)
    path = prepared_from(source(tmp_path / "in", "train.bin", "val.bin"), tmp_path / "out", 128_256)
    assert tokens_of(path, "train") == tokens and max(tokens) > 65_535


def test_the_files_of_nanogpt_have_no_header(tmp_path: Path) -> None:
    nanogpt(tmp_path / "in/train.bin", TRAIN[0])
    nanogpt(tmp_path / "in/val.bin", VAL)
    path = prepared_from(source(tmp_path / "in", "train.bin", "val.bin"), tmp_path / "out")
    assert (tokens_of(path, "train"), tokens_of(path, "val")) == (TRAIN[0], VAL)


def test_documents_are_counted_by_their_mark(tmp_path: Path) -> None:
    llm_c(tmp_path / "in/train.bin", [99, 1, 2, 99, 3, 99, 4])
    nanogpt(tmp_path / "in/val.bin", [1, 2, 99])
    path = prepared_from(source(tmp_path / "in", "train.bin", "val.bin"), tmp_path / "out", 100)
    splits = TokenDataset.open(path, "train").meta["splits"]
    assert {split: entry["n_documents"] for split, entry in splits.items()} == {"train": 3, "val": 1}


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 2)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0\0")


def odd(file: Path) -> None:
    nanogpt(file, [1, 2, 3])
    os.truncate(file, 5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda file: llm_c(file, VAL, magic=20240522),
            "begins with the number 20240522, expected 20240520 or 20240801",
        ),
        (lambda file: llm_c(file, VAL, version=2), r"is of version 2, expected 1 \(uint16\) or 7 \(uint32\)"),
        (lambda file: llm_c(file, VAL, count=401), "says that it has 401 tokens, but 400 follow its header"),
        (lambda file: llm_c(file, [], count=0), "says that it has 0 tokens, but 0 follow"),
        (truncate, "says that it has 501 tokens, but 500 follow its header"),
        (lengthen, "says that it has 501 tokens, but 502 follow its header"),
        (odd, "has 5 bytes, expected a header of llm.c or, as nanoGPT writes, 2 bytes a token"),
        (lambda file: file.write_bytes(b""), "has 0 bytes, expected a header"),
        (lambda file: llm_c(file, [1, 50257]), "holds token id 50257, but data/tokenizer=ids has 50257 ids"),
        (lambda file: llm_c(file, VAL, version=7), "holds uint32, but .*_000000.bin uint16: all files must be alike"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_in_one_line(
    files: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(files / "fineweb_train_000002.bin")
    with pytest.raises(DataError, match=rf"fineweb_train_000002.bin {message}") as caught:
        prepared_from(source(files), tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert not [found for found in (tmp_path / "out").iterdir() if found.is_dir()]


@pytest.mark.parametrize("seed", range(30))
def test_any_bytes_are_either_ids_or_refused_in_one_line(files: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    file, content = files / "fineweb_train_000001.bin", bytearray((files / "fineweb_train_000001.bin").read_bytes())
    for place in rng.integers(0, [12, 1024, len(content)][seed % 3], 1 + seed % 4).tolist():
        content[place] = rng.integers(256)
    file.write_bytes(content[: len(content) - seed % 2])
    try:
        path = prepared_from(source(files), tmp_path / "out")
    except DataError as error:
        assert str(file) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert max(tokens_of(path, "train")) < 50257


def test_what_is_trained_on_does_not_validate(files: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="fineweb_val_000000.bin matches both data.source.train=.* and data.source.val="
    ):
        prepared_from(source(files, train="*.bin"), tmp_path / "out")


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (None, "matches both data.source.train="),
        (Path.symlink_to, "the same file as .*fineweb_train_000001.bin, matches both data.source.train="),
        (Path.hardlink_to, "the same file as .*fineweb_train_000001.bin, matches both data.source.train="),
        (lambda to, file: shutil.copy(file, to), "is to validate, but has the same content as .*_train_000001.bin"),
    ],
    ids=["spelling", "symbolic link", "hard link", "copy"],
)
def test_one_file_by_two_names_does_not_validate(
    files: Path, tmp_path: Path, link: Callable[[Path, Path], Any] | None, message: str
) -> None:
    val = "../in/fineweb_train_000001.bin"
    if link is not None:
        link(files / "val.bin", files / "fineweb_train_000001.bin")
        val = "val.bin"
    with pytest.raises(DataError, match=message) as caught:
        prepared_from(source(files, val=val), tmp_path / "out")
    assert Path(val).name in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "out").glob("tokens*"))


def test_settings_that_are_of_text_alone_are_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.val_fraction=0.1 is for sources of text; data.source.val names"):
        prepared(source(files), tmp_path / "out", Ids(50257), val_fraction=0.1)
    (files / "x_train_1.txt").write_text("text")
    with pytest.raises(DataError, match=r"data.source.train=.* matches .*x_train_1.txt: expected .bin files"):
        prepared_from(source(files, train="*_train_*"), tmp_path / "out")


def test_files_that_are_not_there_come_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    message = r"data.source.train='.*' matches no file: name .bin files of token ids; for text use data=files"
    with pytest.raises(MissingSource, match=message):
        source(tmp_path).files()
    config = compose(["data=fineweb10b"]).data.source
    fineweb = TokenFiles(**{key: value for key, value in config.items() if key != "_target_"})
    command = "`hf download kjj0/fineweb10B-gpt2 --repo-type dataset --local-dir fineweb10B` fetches them (20.8 GB)"
    with pytest.raises(MissingSource) as caught:
        fineweb.files()
    assert str(caught.value).endswith(command)


def test_the_doctor_names_the_files_that_are_missing(tmp_path: Path) -> None:
    finding = check_data(compose(["data=fineweb10b", f"data.root={tmp_path}"]))
    assert finding.is_fatal and "hf download kjj0/fineweb10B-gpt2" in finding.fix


def test_a_tokenizer_that_needs_text_or_network_comes_with_a_way_out(files: Path, tmp_path: Path) -> None:
    for recipe in (BPE(300), GPT2(str(tmp_path / "nowhere"))):
        with pytest.raises(DataError, match=r"To train without the text of the tokens: data/tokenizer=ids data.token"):
            prepared(source(files), tmp_path / "out", recipe, val_fraction=None)


def test_files_are_read_once_and_then_known(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    describe = data.verified.describe

    def watched(path: Path, *arguments: Any) -> Any:
        read.append(path)
        return describe(path, *arguments)

    monkeypatch.setattr(data.token_files, "describe", watched)
    monkeypatch.setattr(data.verified, "describe", watched)
    path = prepared_from(source(files), tmp_path / "out")
    assert len(read) == 4
    assert prepared_from(source(files), tmp_path / "out") == path
    TokenDataset.open(path, "train")
    TokenDataset.open(path, "val")
    assert len(read) == 4


def test_a_file_that_changes_later_is_noticed_and_nobody_is_told_to_delete_it(files: Path, tmp_path: Path) -> None:
    path = prepared_from(source(files), tmp_path / "out")
    llm_c(files / "fineweb_train_000001.bin", TRAIN[1][::-1])
    message = rf"fineweb_train_000001.bin is damaged: .*; put back the file as it was, or delete {path}, which holds no"
    with pytest.raises(DataError, match=message):
        TokenDataset.open(path, "train")
    (files / "fineweb_train_000001.bin").unlink()
    with pytest.raises(DataError, match=r"_train_000001.bin is missing: put back the file as it was"):
        TokenDataset.open(path, "train")


def test_what_opening_will_say_is_not_said_before(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_changed(source(files), tmp_path / "out/tokens-ids-00000000")
    path = prepared_from(source(files), tmp_path / "out")
    llm_c(files / "fineweb_train_000001.bin", TRAIN[1][::-1])
    warn_if_changed(source(files), path)
    assert not caplog.messages


def test_a_new_shard_is_noticed_and_left_out(files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = prepared_from(source(files), tmp_path / "out")
    llm_c(files / "fineweb_train_000009.bin", VAL)
    warn_if_changed(source(files), path)
    assert "4 files then, 5 now): training on the data set as it was prepared" in caplog.text
    assert TokenDataset.open(path, "train").n_tokens == 1501


def test_train_py_trains_on_them_as_first_typed(files: Path, tmp_path: Path, tiny: list[str]) -> None:
    patterns = [f"data.source.train={files}/*_train_*.bin", f"data.source.val={files}/*_val_*.bin"]
    ids = ["data/tokenizer=ids", "data.tokenizer.vocab_size=50257", "data.order=sequential"]
    changes = [*patterns, *ids, f"data.root={tmp_path}/out", f"run_dir={tmp_path}/run", "max_steps=2"]
    settings = [each for each in tiny if not each.startswith("data")]
    assert train.main(compose([*settings, "data=tokens", *changes])) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"


# Tokenizers of others


def test_ids_are_written_as_numbers(tmp_path: Path) -> None:
    tokenizer = Ids(300, eot=7).fit(lambda n: iter(()))
    assert tokenizer.encode("4 299\n7") == [4, 299, 7]
    assert tokenizer.decode([4, 299, 7]).split() == ["4", "299", "7"]
    for text in ("300", "-1", "the"):
        with pytest.raises(DataError, match=f"takes a text such as '464 2068', ids below 300, not '{text}'"):
            tokenizer.encode(text)
    with pytest.raises(DataError, match=r"data.tokenizer.eot=300 must lie in 0..299"):
        Ids(300, eot=300)


def shakespeare(folder: Path) -> tuple[str, Path]:
    """nanoGPT's data/shakespeare_char/prepare.py on a short text; returns the text and meta.pkl."""
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 9
    chars = sorted(set(text))
    stoi, itos = {ch: i for i, ch in enumerate(chars)}, dict(enumerate(chars))
    for name, piece in (("train", text[: len(text) * 9 // 10]), ("val", text[len(text) * 9 // 10 :])):
        nanogpt(folder / f"{name}.bin", [stoi[ch] for ch in piece])
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump({"vocab_size": len(chars), "itos": itos, "stoi": stoi}, file)
    return text, folder / "meta.pkl"


def test_nanogpts_characters_are_read_with_their_vocabulary(tmp_path: Path) -> None:
    text, meta = shakespeare(tmp_path)
    found = source(tmp_path, "train.bin", "val.bin")
    path = prepared(found, tmp_path / "out", Characters(str(meta)), val_fraction=None)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokens_of(path, "train") + tokens_of(path, "val")) == text
    assert int(tokenizer.byte_lengths()[tokens_of(path, "train")].sum()) == len(text) * 9 // 10  # all ASCII
    splits = json.loads((path / "dataset.json").read_text())["splits"]
    assert {split: each["n_documents"] for split, each in splits.items()} == {"train": 1, "val": 1}
    assert tokenizer.encode("Speak:\n") == [sorted(set(text)).index(char) for char in "Speak:\n"]
    with pytest.raises(DataError, match="does not have 'ß'"):
        tokenizer.encode("ß")


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_a_pickle_is_read_without_executing_anything(tmp_path: Path) -> None:
    with (tmp_path / "meta.pkl").open("wb") as file:
        pickle.dump({"itos": Opens(tmp_path / "made")}, file)
    with pytest.raises(DataError, match=r"meta.pkl is no meta.pkl of nanoGPT, .*open, which is not executed"):
        Characters(str(tmp_path / "meta.pkl")).fit(lambda n: iter(()))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", pickle.dumps([1]), pickle.dumps({"itos": {0: "ab"}})])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"meta.pkl is no meta.pkl of nanoGPT") as caught:
        Characters(str(tmp_path / "meta.pkl")).fit(lambda n: iter(()))
    assert len(str(caught.value).splitlines()) == 1


def test_a_saved_tokenizer_is_that_of_the_other_data_set(files: Path, tmp_path: Path) -> None:
    path = prepared_from(source(files), tmp_path / "out")
    again = prepared(source(files), tmp_path / "again", TokenizerFile(str(path / "tokenizer.json")), val_fraction=None)
    assert (again / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()
