"""Tokenizers: GPT-2's vocabulary, a byte-pair vocabulary trained on the corpus, or plain bytes.

A recipe (GPT2, BPE, Bytes) makes a Tokenizer from the corpus. The tokenizer is saved with the data set that it encoded,
so training, sampling and export need neither network nor recipe.
"""

import base64
import codecs
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from data.errors import DataError
from data.hashing import sha256_of
from data.metadata import want
from data.shards import read_meta
from data.text import readable, split_long_words
from files.paths import expanded
from files.reading import read_json

if TYPE_CHECKING:
    import tiktoken

log = logging.getLogger(__name__)

EOT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
MAX_BYTES = 1 << 26  # of a tokenizer.json; that of 250,000 ids has 6 MB
MAX_VOCAB_SIZE = 1_000_000  # the tokenizers library reserves memory for all of them
# In characters; longer words are encoded, and learnt from, in pieces. That changes no token of OpenWebText, whose
# articles were extracted by newspaper: it keeps 100,000 characters of each (MAX_TEXT in its configuration.py).
LONGEST_ENCODED_WORD = 100_000
LONGEST_TRAINED_WORD = 1000
KINDS: "dict[str, type[Tokenizer]]" = {}  # by what tokenizer.json calls them
Sample = Callable[[int], Iterator[str]]  # from a number of bytes to so much text, from all parts of the corpus


class Tokenizer(ABC):
    """Encodes documents; the id eot ends each of them."""

    kind: ClassVar[str]  # in tokenizer.json
    eot_is_text: ClassVar[bool] = False  # whether eot is also a token of texts, and its bytes count
    vocab_size: int
    eot: int

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @classmethod
    @abstractmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "Tokenizer":
        """Returns the tokenizer that to_json() described, but for its kind.

        Raises: ValueError: if saved is no such description.
        """

    @abstractmethod
    def encode_document(self, text: str) -> np.ndarray:
        """Returns the ids of text and a final eot, uint32."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """Returns the bytes that an id other than eot stands for."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns its kind, and what from_saved needs to make the same tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of text, without eot."""
        ids: list[int] = self.encode_document(text)[:-1].tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; for bytes that are not UTF-8 and unknown ids the replacement character."""
        return "".join(self.decode_each(ids))

    def decode_each(self, ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of ids piece by piece, each as soon as its characters are complete; joined as decode()."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield decoder.decode(self.shown(i))
        yield decoder.decode(b"", final=True)

    def shown(self, id: int) -> bytes:
        """Returns what decode() shows for any number: a mark for eot, the replacement character for no id."""
        if id == self.eot:
            return EOT.encode()
        return self.token_bytes(id) if 0 <= id < self.vocab_size else "\ufffd".encode()

    def byte_lengths(self) -> np.ndarray:
        """Returns of how many bytes of text each id stands, (vocab_size,) int64; of none the end of text."""
        marks = () if self.eot_is_text else (self.eot,)
        return np.array([0 if i in marks else len(self.token_bytes(i)) for i in range(self.vocab_size)])


class BytePairs(Tokenizer):
    """Byte-level BPE with GPT-2's word pattern, run by tiktoken. tokens[i] is id i; eot comes after the last."""

    kind = "byte_pairs"

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self.eot = len(self.tokens)
        self.vocab_size = self.eot + 1
        self._of_thread = threading.local()

    @override
    def encode_document(self, text: str) -> np.ndarray:
        encode = partial(self._encoding().encode_to_numpy, disallowed_special=())
        ids = [encode(piece) for piece in split_long_words(readable(text), LONGEST_ENCODED_WORD)]
        return np.concatenate([*ids, np.array([self.eot], np.uint32)])

    @override
    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    @override
    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokens": [base64.b64encode(token).decode() for token in self.tokens]}

    @classmethod
    @override
    def from_saved(cls, saved: Mapping[str, Any]) -> "BytePairs":
        tokens = [base64.b64decode(token, validate=True) for token in want(saved.get("tokens"), list, "tokens")]
        if len(set(tokens) - {b""}) < len(tokens) or not {bytes([byte]) for byte in range(256)} <= set(tokens):
            raise ValueError("tokens must be different byte strings, all single bytes among them")
        return cls(tokens)

    def _encoding(self) -> "tiktoken.Encoding":
        # One per thread: they would wait for a shared one's regular expression, 11.6M tokens/s instead of 14.5M on two
        # cores with tiktoken 0.14.
        if not hasattr(self._of_thread, "encoding"):
            self._of_thread.encoding = self._build()
        encoding: tiktoken.Encoding = self._of_thread.encoding
        return encoding

    def _build(self) -> "tiktoken.Encoding":
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]  # ships no types

        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return tiktoken.Encoding(
            "nanodescent", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOT: self.eot}
        )


class PlainBytes(Tokenizer):
    """One id per UTF-8 byte, and 256 for the end of text."""

    kind = "bytes"
    vocab_size = 257
    eot = 256

    @override
    def encode_document(self, text: str) -> np.ndarray:
        ids = np.frombuffer(readable(text).encode(), np.uint8)
        return np.append(ids.astype(np.uint32), np.uint32(self.eot))

    @override
    def token_bytes(self, id: int) -> bytes:
        return bytes([id])

    @override
    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    @override
    def from_saved(cls, saved: Mapping[str, Any]) -> "PlainBytes":
        return cls()


def from_json(saved: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that to_json() described.

    Raises: ValueError: if saved is no such description.
    """
    kind = saved.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected {', '.join(sorted(KINDS))}")
    found = KINDS[kind].from_saved(saved)
    if odd := sorted(set(saved) - set(found.to_json())):
        raise ValueError(f"it has {odd[0]!r}, which a tokenizer of the kind {kind} does not have")
    return found


def read_tokenizer(file: Path) -> Tokenizer:
    """Returns the tokenizer in a tokenizer.json; nothing in the file is executed.

    Raises: DataError: if there is no such file, or it is damaged.
    """
    file = expanded(file)
    try:
        found = read_json(file, most_bytes=MAX_BYTES, may_be_link=True)
        if found is None:
            raise ValueError("there is no such file")
        return from_json(found)
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is no tokenizer ({type(error).__name__}: {error})") from None


class Recipe(ABC):
    """Makes the tokenizer for a corpus."""

    name: ClassVar[str]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determines the ids; part of the data set's name."""
        return {}

    @abstractmethod
    def fit(self, sample: Sample) -> Tokenizer:
        """Returns the tokenizer; one that learns from the corpus reads sample(n_bytes)."""


class Bytes(Recipe):
    """Plain bytes: 257 ids; nothing is learnt or downloaded."""

    name = "bytes"

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        return PlainBytes()


class BPE(Recipe):
    """Byte-level BPE of vocab_size ids (end of text included) trained on up to sample_megabytes of the corpus."""

    name = "bpe"

    def __init__(self, vocab_size: int, sample_megabytes: float = 50) -> None:
        if not isinstance(vocab_size, int) or not 257 <= vocab_size <= MAX_VOCAB_SIZE:
            raise DataError(
                f"data.tokenizer.vocab_size={vocab_size} must be >= 257 (256 bytes and the end of text) and at most "
                f"{MAX_VOCAB_SIZE:,}"
            )
        if not isinstance(sample_megabytes, int | float) or not 0 < sample_megabytes < float("inf"):
            raise DataError(f"data.tokenizer.sample_megabytes={sample_megabytes} must be a number > 0")
        self.vocab_size, self.sample_megabytes = vocab_size, sample_megabytes

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"vocab_size": self.vocab_size, "sample_megabytes": self.sample_megabytes}

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        """Returns the tokenizer learnt from the sample.

        Raises: DataError: if the corpus has no text.
        """
        texts = sample(int(self.sample_megabytes * 1_000_000))
        if (first := next(texts, None)) is None:
            raise DataError("data/tokenizer=bpe learns from the text of the corpus, but there is none")
        vocab = self.train(chain([first], texts)).get_vocab()
        to_byte = {char: byte for byte, char in byte_chars().items()}
        words = sorted(vocab, key=lambda word: vocab[word])
        if len(words) + 1 < self.vocab_size:
            log.warning("the corpus yields %d token ids, fewer than vocab_size=%d", len(words) + 1, self.vocab_size)
        return BytePairs([bytes(to_byte[char] for char in word) for word in words])

    def train(self, documents: Iterator[str]) -> Any:
        """Returns the trained `tokenizers.Tokenizer`: ids 0-255 are the bytes, then the merges in order."""
        from tokenizers import Tokenizer as HFTokenizer
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer = HFTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=self.vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        pieces = (piece for text in documents for piece in split_long_words(readable(text), LONGEST_TRAINED_WORD))
        tokenizer.train_from_iterator(pieces, trainer)
        return tokenizer


def byte_chars() -> dict[int, str]:
    """Returns the printable character that stands for each byte in GPT-2's files, in the order of ids 0 to 255."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def load_tokenizer(path: Path) -> Tokenizer:
    """Returns the tokenizer of the prepared data set in folder path.

    Raises: DataError: if the data set is missing, or its tokenizer is not the one it was encoded with.
    """
    file = expanded(path) / TOKENIZER_FILE
    expected = read_meta(path)["tokenizer"]["sha256"]
    try:
        is_right = file.stat().st_size <= MAX_BYTES and sha256_of(file) == expected
    except OSError:
        is_right = False
    if not is_right:
        raise DataError(
            f"{file} is missing or not the tokenizer that encoded the data: "
            "delete the folder and prepare the data set again"
        )
    return read_tokenizer(file)
