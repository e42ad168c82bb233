import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import Texts, content, prepared

from data import BPE, Bytes, DataError, Files, TokenDataset, load_tokenizer
from data.splitting import train_tokens
from data.tokenizers import PlainBytes, Recipe

ENGLISH = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 100


def split(path: Path) -> tuple[str, str]:
    """The texts to train and to validate on, without the ends of text."""
    tokenizer = load_tokenizer(path)
    found = []
    for name in ("train", "val"):
        dataset = TokenDataset.open(path, name)
        ids = dataset.read(np.array([0]), dataset.n_tokens)[0].tolist()
        assert ids.count(tokenizer.eot) == 1 and ids[-1] == tokenizer.eot
        found.append(tokenizer.decode(ids[:-1]))
    return found[0], found[1]


def alone(path: Path, text: str) -> Files:
    """A corpus of this document, in a file of the kind that the name tells."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": [None, text, " "]}), path)
    else:
        rows = [json.dumps({"text": row}) for row in (None, text, "")]
        path.write_text(text if path.suffix == ".txt" else "\n".join(rows), newline="")
    return Files(str(path), "text")


@pytest.mark.parametrize("recipe", [Bytes(), BPE(300)])
@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("fraction", "expected"), [(None, 0.1), (0.05, 0.05), (0.3, 0.3)])
def test_a_single_document_is_split_by_position(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, recipe: Recipe, fraction: float | None, expected: float
) -> None:
    path = prepared(alone(tmp_path / kind, ENGLISH), tmp_path / "out", recipe, val_fraction=fraction)
    train, val = split(path)
    assert train + val == ENGLISH
    assert len(val) == pytest.approx(expected * len(ENGLISH), abs=90)  # a line
    assert train.endswith("\n")
    meta = TokenDataset.open(path, "train").meta
    assert (meta["split"], meta["val_fraction"]) == ("by position", expected)
    assert "the corpus is one document: split by position" in caplog.text


def test_several_documents_are_split_by_document(tmp_path: Path) -> None:
    path = prepared(Texts(["one", "two"]), tmp_path, val_fraction=None)
    assert TokenDataset.open(path, "train").meta["split"] == "by document"
    assert sorted(split(path)) == ["one", "two"]


def test_the_usual_fraction_of_several_documents_is_a_twentieth(tmp_path: Path) -> None:
    meta = TokenDataset.open(prepared(Texts(["a"] * 100), tmp_path, val_fraction=None), "val").meta
    assert meta["splits"]["val"]["n_documents"] == 5


@pytest.mark.parametrize(
    ("text", "fraction", "expected"),
    [
        ("a" * 90 + "b" * 10, 0.1, 90),
        ("ab", 0.1, 1),
        ("ab", 0.9, 1),
        ("世界", 0.1, 3),
        ("世界", 0.9, 3),
        ("a🎉", 0.1, 1),
        ("é" * 50, 0.25, 74),  # 75 bytes are half a character
        ("x" * 495 + " " + "y" * 504, 0.5, 496),  # a word's end near the half
        ("x" * 490 + "\n" + "x" * 9 + " " + "y" * 499, 0.5, 491),  # a line's end matters more than a word's
        ("x" * 400 + "\n" + "y" * 599, 0.5, 500),  # too far
    ],
)
def test_a_text_is_divided_at_the_nearest_end_of_line_word_or_character(
    text: str, fraction: float, expected: int
) -> None:
    tokens = np.frombuffer(text.encode(), np.uint8)
    assert train_tokens(tokens, PlainBytes(), fraction) == expected


@pytest.mark.parametrize("text", ["a", "🎉"])
def test_a_text_that_cannot_be_divided_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"the corpus is one document of \d tokens: too short to train on a part"):
        prepared(Texts([text]), tmp_path)


def test_a_long_text_is_divided_as_a_short_one() -> None:
    text = "word " * 500_000  # several blocks of 2**20 tokens
    assert train_tokens(np.frombuffer(text.encode(), np.uint8), PlainBytes(), 0.1) == pytest.approx(2_250_000, abs=5)


def test_a_single_document_is_split_alike_by_any_shards(tmp_path: Path) -> None:
    single_shard = split(prepared(Texts([ENGLISH]), tmp_path / "a", shard_tokens=10**6))
    assert split(prepared(Texts([ENGLISH]), tmp_path / "b", shard_tokens=77)) == single_shard


def test_a_split_by_position_continues_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.shards import ShardWriter

    close, left = ShardWriter.close, iter(range(20))

    def dying(writer: Any) -> None:
        if next(left) == 17:
            raise KeyboardInterrupt
        close(writer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "close", dying)
        prepared(Texts([ENGLISH]), tmp_path / "killed", shard_tokens=200)
    path = prepared(Texts([ENGLISH]), tmp_path / "killed", shard_tokens=200)
    assert content(path) == content(prepared(Texts([ENGLISH]), tmp_path / "uninterrupted", shard_tokens=200))
