import hashlib
import json
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from corpora import Texts, prepared

from data import BPE, GPT2, Bytes, DataError, Files, PySource, load_tokenizer, read_tokenizer
from data.sampling import sample
from data.source import Unit
from data.tokenizers import (
    LONGEST_ENCODED_WORD,
    LONGEST_TRAINED_WORD,
    MAX_BYTES,
    BytePairs,
    PlainBytes,
    Sample,
    Tokenizer,
    byte_chars,
    from_json,
)

UNICODE = [
    "",
    " ",
    "\n\n  \t x\r\n",
    "naïve café – Ελληνικά, русский, 世界, हिन्दी, العربية",
    "🎉👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff\u3000\x00\x85\xa0",
    "def f(x):\n        return x  # it's we'll they'd 1234567\n",
    "<|endoftext|> in the text",
    *(
        "".join(chr(i) for i in range(start, start + 400))
        for start in (0, 400, 0x0900, 0x2000, 0x3000, 0xE000, 0x1F400)
    ),
]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    source = PySource(1)
    return [text for unit in source.units() for text in source.documents(unit)] + UNICODE


@pytest.fixture(scope="module")
def bpe(corpus: list[str]) -> Tokenizer:
    return BPE(1000).fit(lambda n_bytes: iter(corpus))


@pytest.mark.parametrize("vocab_size", [257, 300, 1000])
def test_bpe_encodes_as_tokenizers_does(corpus: list[str], vocab_size: int) -> None:
    reference = BPE(vocab_size).train(iter(corpus))
    tokenizer = BPE(vocab_size).fit(lambda n_bytes: iter(corpus))
    assert tokenizer.vocab_size == reference.get_vocab_size() + 1 == vocab_size
    for text in corpus:
        assert tokenizer.encode(text) == reference.encode(text).ids


@pytest.mark.parametrize("text", UNICODE)
@pytest.mark.parametrize("recipe", ["bpe", "bytes"])
def test_text_survives_a_round_trip(bpe: Tokenizer, recipe: str, text: str) -> None:
    tokenizer = bpe if recipe == "bpe" else Bytes().fit(lambda n_bytes: iter(()))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    again = from_json(tokenizer.to_json())
    assert again.encode(text) == tokenizer.encode(text)
    assert (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)


@pytest.mark.parametrize("text", UNICODE)
@pytest.mark.parametrize("recipe", ["bpe", "bytes"])
def test_text_that_comes_id_by_id_is_the_text_and_no_character_is_split(bpe: Tokenizer, recipe: str, text: str) -> None:
    tokenizer = bpe if recipe == "bpe" else PlainBytes()
    ids = tokenizer.encode(text)
    pieces = list(tokenizer.decode_each(iter(ids)))
    assert "".join(pieces) == text
    for n, piece in enumerate(pieces[:-1], 1):
        so_far = b"".join(map(tokenizer.token_bytes, ids[:n])).decode("utf-8", "ignore")
        assert "".join(pieces[:n]) == so_far and (piece == "" or so_far.endswith(piece))


@pytest.mark.parametrize("text", UNICODE)
@pytest.mark.parametrize("recipe", ["bpe", "bytes"])
def test_lengths_of_ids_add_up_to_the_bytes_of_the_text(bpe: Tokenizer, recipe: str, text: str) -> None:
    tokenizer = bpe if recipe == "bpe" else PlainBytes()
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.encode_document(text)].sum() == len(text.encode())


@pytest.mark.parametrize("recipe", ["bpe", "bytes"])
def test_only_the_end_of_a_document_is_eot(bpe: Tokenizer, recipe: str) -> None:
    tokenizer = bpe if recipe == "bpe" else Bytes().fit(lambda n_bytes: iter(()))
    ids = tokenizer.encode_document("a <|endoftext|> b")
    assert ids.dtype == np.uint32
    assert (ids == tokenizer.eot).nonzero()[0].tolist() == [len(ids) - 1]
    assert tokenizer.eot == tokenizer.vocab_size - 1
    assert tokenizer.decode(ids.tolist()) == "a <|endoftext|> b<|endoftext|>"


@pytest.mark.parametrize("recipe", ["bpe", "bytes"])
@pytest.mark.parametrize(
    ("text", "expected"), [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00!", "😀!")]
)
def test_a_lone_surrogate_becomes_the_replacement_character(
    bpe: Tokenizer, recipe: str, text: str, expected: str
) -> None:
    tokenizer = bpe if recipe == "bpe" else PlainBytes()
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.encode(text) == tokenizer.encode(expected)


def test_ids_that_there_are_not_become_the_replacement_character(bpe: Tokenizer) -> None:
    # A model's vocabulary may be rounded up beyond that of its data, so it may sample such an id.
    for tokenizer in (bpe, PlainBytes()):
        ids = [*tokenizer.encode("a"), tokenizer.vocab_size, 10**6, -1, tokenizer.eot]
        assert tokenizer.decode(ids) == "a\ufffd\ufffd\ufffd<|endoftext|>"


RUNS = {
    "space": " ",
    "newline": "\n",
    "mixed": " \n",
    "letter": "a",
    "digit": "0",
    "rule": "=",
    "CJK": "世",
    "emoji": "🎉",
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_of_any_length_is_encoded(bpe: Tokenizer, kind: str) -> None:
    # tiktoken 0.14 fails on about a million characters of white space in a row.
    text = "head" + RUNS[kind] * (1_100_000 // len(RUNS[kind]) // len(RUNS[kind].encode())) + " tail"
    ids = bpe.encode_document(text)[:-1]
    assert b"".join(map(bpe.token_bytes, ids.tolist())) == text.encode()


def test_words_up_to_the_bound_are_encoded_as_before(bpe: Tokenizer) -> None:
    assert isinstance(bpe, BytePairs)
    for char in RUNS.values():
        text = "a text " + char * (LONGEST_ENCODED_WORD // len(char)) + "! and more\n"
        assert bpe.encode(text) == bpe._encoding().encode_ordinary(text)


@pytest.mark.parametrize("kind", RUNS)
def test_learning_from_a_run_takes_time_in_proportion_to_its_length(kind: str) -> None:
    # 400,000 spaces as one word took the trainer a minute on two cores, four times as long as half of them.
    started = time.monotonic()
    text = "head" + RUNS[kind] * (400_000 // len(RUNS[kind])) + "tail"
    tokenizer = BPE(300).fit(lambda n_bytes: iter([text, "some plain words here " * 30]))
    assert time.monotonic() - started < 10
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_up_to_the_bound_are_learnt_from_as_before() -> None:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    texts = [f"{char * (LONGEST_TRAINED_WORD // 2 - i)} a word " for i in range(5) for char in RUNS.values()]
    reference = HFTokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reference.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    assert BPE(321).train(iter(texts)).get_vocab() == reference.get_vocab()


def test_learning_replaces_a_lone_surrogate() -> None:
    spoilt, mended = (BPE(300).fit(lambda n, t=text: iter([t] * 3)) for text in ("ab\ud800ab", "ab\ufffdab"))
    assert spoilt.to_json() == mended.to_json()


def test_learning_from_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="data/tokenizer=bpe learns from the text of the corpus, but there is none"):
        BPE(300).fit(lambda n_bytes: iter(()))


def test_bpe_training_is_deterministic(corpus: list[str], bpe: Tokenizer) -> None:
    assert BPE(1000).fit(lambda n_bytes: iter(corpus)).to_json() == bpe.to_json()


def test_bpe_trains_on_a_bounded_sample_of_all_parts(tmp_path: Path) -> None:
    class Watched(Texts):
        taken = 0

        def documents(self, unit: Any) -> Iterator[str]:
            for text in super().documents(unit):
                self.taken += len(text)
                yield text

    source = Watched(["ab " * 100] * 100 + ["xy " * 100] * 100, per_unit=10)
    path = prepared(source, tmp_path, BPE(261, sample_megabytes=0.02))
    tokenizer = load_tokenizer(path)
    assert {len(tokenizer.encode(text)) for text in ("ab", "xy")} == {1}
    assert source.taken <= 60_000 + 20_000 + 20 * 300 + 7 * 300  # corpus, sample, one over per unit, disk check


def test_a_poor_corpus_yields_a_smaller_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = BPE(1000).fit(lambda n_bytes: iter(["ab"]))
    assert tokenizer.vocab_size == 258
    assert "the corpus yields 258 token ids, fewer than vocab_size=1000" in caplog.text


def sample_taken(source: Texts | Files, root: Path, megabytes: float) -> list[str]:
    """What a tokenizer that learns from the corpus gets to see."""
    seen: list[str] = []

    class Watching(Bytes):
        name = "watching"

        def fit(self, sample: Sample) -> Tokenizer:
            seen.extend(sample(int(megabytes * 1_000_000)))
            return PlainBytes()

    prepared(source, root, Watching())
    return seen


def test_a_document_larger_than_its_units_share_is_sampled_from_its_beginning(tmp_path: Path) -> None:
    texts = ["世" * 50_000, "ü" * 50_000, "ab" * 25_000]
    seen = sample_taken(Texts(texts, per_unit=1), tmp_path, 0.03)
    assert all(text.startswith(piece) for text, piece in zip(texts, seen, strict=True))
    assert [len(piece.encode()) for piece in seen] == pytest.approx([15_000, 10_000, 5_000], abs=4)
    assert sum(len(piece.encode()) for piece in seen) <= 30_000


def test_what_a_unit_lacks_of_its_share_others_may_use(tmp_path: Path) -> None:
    texts: list[str | None] = [None] * 10 + ["x" * 10_000] * 10
    seen = sample_taken(Texts(texts, per_unit=10, n_bytes=100), tmp_path, 0.02)
    assert sum(map(len, seen)) == 20_000


def rows_of(kind: str, folder: Path, texts: list[str]) -> Files:
    """The texts as one file of that kind."""
    folder.mkdir()
    path = folder / f"all{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1, use_dictionary=False)
    else:
        for n, text in enumerate(texts):
            (folder / f"{n}.txt").write_text(text)
    return Files(pattern=f"{folder}/*{kind}", text="text")


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_sample_has_its_size_however_few_and_long_the_documents_are(tmp_path: Path, kind: str, n: int) -> None:
    texts = ["abcdefgh"[i] * (1_200_000 // n) for i in range(n)]
    seen = sample_taken(rows_of(kind, tmp_path / "corpus", texts), tmp_path / "data", 0.2)
    assert 198_000 <= sum(map(len, seen)) <= 200_000
    of_each = [sum(len(piece) for piece in seen if piece[0] == text[0]) for text in texts]
    assert min(of_each) >= 200_000 // (4 * n)


def test_what_is_left_over_continues_where_documents_were_truncated() -> None:
    texts = {"long": "".join(f"{i:06d}" for i in range(1000)), "short": "x" * 10}
    units = [Unit(("long",), 0, 0, 100), *[Unit(("none",), 0, 0, 1000)] * 5, Unit(("short",), 0, 0, 10)]
    seen = list(sample(units, lambda unit: [texts.get(unit.paths[0])], 3000))
    assert "".join(seen).replace("x" * 10, "") == texts["long"][:2990]


def test_a_sample_larger_than_the_corpus_is_the_corpus() -> None:
    units = [Unit(("a",), 0, 0, 10), Unit(("b",), 0, 0, 10)]
    assert list(sample(units, lambda unit: [unit.paths[0] * 3, None, "c"], 10**9)) == ["aaa", "c", "bbb", "c"]


def test_a_sample_smaller_than_the_number_of_units_takes_some_text(tmp_path: Path) -> None:
    assert sum(map(len, sample_taken(Texts(["abc"] * 50, per_unit=1), tmp_path, 10e-6))) == 10


@pytest.mark.parametrize("vocab_size", [256, 1_000_001, 10**12, 300.5, "many"])
def test_a_vocabulary_that_cannot_be_learnt_is_refused(vocab_size: Any) -> None:
    with pytest.raises(DataError, match=rf"data.tokenizer.vocab_size={vocab_size} must be >= 257 .* at most 1,000,000"):
        BPE(vocab_size)


@pytest.mark.parametrize("megabytes", [0, -1, float("inf"), float("nan"), "all"])
def test_a_sample_that_cannot_be_taken_is_refused(megabytes: Any) -> None:
    with pytest.raises(DataError, match=rf"data.tokenizer.sample_megabytes={megabytes} must be a number > 0"):
        BPE(300, megabytes)


# A miniature of the release's file: its first line, and three merges.
MERGES = b"#version: 0.2\nt h\nth e\n\xc4\xa0 the\n"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_gpt2_without_network_says_at_once_what_it_needs(no_network: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        GPT2(None).fit(lambda n_bytes: iter(()))
    assert time.monotonic() - started < 1
    for part in (
        "no network (ConnectionError)",
        "vocab.bpe",
        "encoder.json",
        "data.tokenizer.vocab_dir=<folder>",
        "TIKTOKEN_CACHE_DIR",
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",  # SHA-1 of the two files' addresses, as tiktoken names them
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    ):
        assert part in str(caught.value)


def test_gpt2_names_the_file_missing_from_vocab_dir(no_network: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs the file vocab.bpe, but .*/vocab.bpe does not exist"):
        GPT2(str(tmp_path)).fit(lambda n_bytes: iter(()))


def test_gpt2_refuses_another_vocabulary(no_network: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.bpe").write_bytes(MERGES)
    with pytest.raises(DataError, match=r"is not GPT-2's vocab.bpe: expected sha256 1ce1664773c5..., got"):
        GPT2(str(tmp_path)).fit(lambda n_bytes: iter(()))


@pytest.mark.parametrize("place", ["folder", "cache", "network"])
def test_gpt2_reads_merges_as_tokenizers_does(
    no_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers

    monkeypatch.setattr(GPT2, "sha256", hashlib.sha256(MERGES).hexdigest())
    in_cache = no_network / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    if place == "folder":
        (tmp_path / "vocab.bpe").write_bytes(MERGES)
    elif place == "cache":
        in_cache.parent.mkdir()
        in_cache.write_bytes(MERGES)
    else:
        answer = requests.Response()
        answer.status_code, answer._content = 200, MERGES
        monkeypatch.setattr(requests, "get", lambda url, timeout: answer)
    tokenizer = GPT2(str(tmp_path) if place == "folder" else None).fit(lambda n_bytes: iter(()))
    assert in_cache.is_file() == (place != "folder")

    words = [*byte_chars().values(), "th", "the", "Ġthe"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    reference = HFTokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("the other theme, then the end", *UNICODE):
        assert tokenizer.encode(text) == reference.encode(text).ids


def test_gpt2_bytes_have_the_release_ids() -> None:
    # The release numbers "!" 0, "~" 93, the Latin-1 letters after them, and the space 220.
    order = list(byte_chars())
    assert [order.index(ord(char)) for char in "!~¡\xff \n"] == [0, 93, 94, 187, 220, 198]


def test_importing_data_loads_nothing_heavy() -> None:
    script = "import sys, data, data.huggingface, data.tokenizers; print([m for m in HEAVY if m in sys.modules])"
    heavy = "('torch', 'datasets', 'tokenizers', 'tiktoken', 'pyarrow', 'rich', 'requests', 'huggingface_hub')"
    found = subprocess.run(
        [sys.executable, "-c", script.replace("HEAVY", heavy)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "null",
        '{"kind": "pickle"}',
        '{"kind": "byte_pairs"}',
        '{"kind": "byte_pairs", "tokens": 5}',
        '{"kind": "byte_pairs", "tokens": ["YQ==", 3]}',
        '{"kind": "byte_pairs", "tokens": ["YQ==", "YQ=="]}',
        '{"kind": "byte_pairs", "tokens": ["not base 64!"]}',
        "[" * 100_000,
        '{"kind": ' * 100_000,
        '{"kind": "bytes", "kind": "bytes"}',
        '{"kind": "bytes", "size": NaN}',
        '{"kind": "bytes", "size": ' + "9" * 5000 + "}",
        '{"kind": ["bytes"]}',
        '{"kind": "byte_pairs", "tokens": {"YQ==": 0}}',
        json.dumps({"kind": "byte_pairs", "tokens": [b64encode(bytes([i])).decode() for i in range(256)] + [""]}),
        '{"kind": "bytes"}' + " " * MAX_BYTES,
    ],
    ids=range(18),
)
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(DataError, match="tokenizer.json is no tokenizer") as caught:
        read_tokenizer(file)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_is_found_by_home_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"kind": "bytes"}')
    assert read_tokenizer(Path("~/tokenizer.json")).vocab_size == 257
    (tmp_path / "vocab.bpe").write_bytes(MERGES)
    monkeypatch.setattr(GPT2, "sha256", hashlib.sha256(MERGES).hexdigest())
    assert GPT2("${HOME}").fit(lambda n_bytes: iter(())).vocab_size == 260


def test_a_vocabulary_that_cannot_be_cached_is_used_all_the_same(
    no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = requests.Response()
    answer.status_code, answer._content = 200, MERGES
    monkeypatch.setattr(requests, "get", lambda url, timeout: answer)
    monkeypatch.setattr(GPT2, "sha256", hashlib.sha256(MERGES).hexdigest())
    no_network.write_text("a file where the folder should be")
    assert GPT2(None).fit(lambda n_bytes: iter(())).vocab_size == 260


def test_a_tokenizer_reads_back_the_same(tmp_path: Path) -> None:
    tokenizer = BPE(300).fit(lambda n_bytes: iter(["the cat and the hat"] * 10))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    assert read_tokenizer(tmp_path / "tokenizer.json").encode("the hat") == tokenizer.encode("the hat")
