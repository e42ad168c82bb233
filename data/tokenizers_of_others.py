"""Tokenizers for tokens that others wrote: nanoGPT's characters, and ids whose text is not known."""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from data.errors import DataError
from data.hashing import sha256_of
from data.metadata import want
from data.tokenizers import MAX_VOCAB_SIZE, Recipe, Sample, Tokenizer
from files.paths import expanded

MAX_PICKLE_BYTES = 1 << 20
NEWLINE = "\n"


class Ids(Recipe):
    """Ids whose text is not known, for tokens of any tokenizer; eot: the id that ends a text, null: the last one."""

    name = "ids"

    def __init__(self, vocab_size: int, eot: int | None = None) -> None:
        if not isinstance(vocab_size, int) or not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise DataError(f"data.tokenizer.vocab_size={vocab_size} must lie in 1..{MAX_VOCAB_SIZE:,}")
        if eot is not None and not (isinstance(eot, int) and 0 <= eot < vocab_size):
            raise DataError(f"data.tokenizer.eot={eot} must lie in 0..{vocab_size - 1}, or be null for the last id")
        self.vocab_size, self.eot = vocab_size, vocab_size - 1 if eot is None else eot

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"vocab_size": self.vocab_size, "eot": self.eot}

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        return Numbers(self.vocab_size, self.eot)


class Characters(Recipe):
    """nanoGPT's characters: the vocabulary in the meta.pkl that its data/shakespeare_char/prepare.py writes.

    The pickle is read without executing anything: one that names a class or function is refused.
    """

    name = "characters"

    def __init__(self, meta: str) -> None:
        self.meta = expanded(meta, "data.tokenizer.meta")

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"sha256": _sha256(self.meta)}

    @override
    def fit(self, sample: Sample) -> Tokenizer:
        try:
            with self.meta.open("rb") as file:
                content = file.read(MAX_PICKLE_BYTES)  # a larger one is then truncated, and no pickle
            characters = _PlainUnpickler(io.BytesIO(content)).load()["itos"]
            return CharacterIds([characters[i] for i in range(len(characters))])
        except OSError as error:
            raise _unreadable(self.meta, error) from error
        except Exception as error:  # pickle raises what a damaged file makes it raise
            raise DataError(
                f"{self.meta} is no meta.pkl of nanoGPT, with a character for every id under itos "
                f"({type(error).__name__}: {error})"
            ) from error


class Numbers(Tokenizer):
    """Writes ids as numbers with blanks between them: `464 2068`."""

    kind = "ids"

    def __init__(self, vocab_size: int, eot: int) -> None:
        self.vocab_size, self.eot = vocab_size, eot

    @override
    def encode_document(self, text: str) -> np.ndarray:
        words = text.split()
        if wrong := [word for word in words if not (word.isdecimal() and int(word) < self.vocab_size)]:
            raise DataError(
                f"data/tokenizer=ids takes a text such as '464 2068', ids below {self.vocab_size}, not {wrong[0]!r}"
            )
        return np.array([*map(int, words), self.eot], np.uint32)

    @override
    def token_bytes(self, id: int) -> bytes:
        """Returns nothing: the text of the id is not known."""
        return b""

    @override
    def shown(self, id: int) -> bytes:
        return f"{id} ".encode()

    @override
    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size, "eot": self.eot}

    @classmethod
    @override
    def from_saved(cls, saved: Mapping[str, Any]) -> "Numbers":
        found = Ids(want(saved.get("vocab_size"), int, "vocab_size"), want(saved.get("eot"), int, "eot"))
        return cls(found.vocab_size, found.eot)


class CharacterIds(Tokenizer):
    """One id per character of a vocabulary. A text begins and ends with a line break, as nanoGPT has no other mark."""

    kind = "characters"
    eot_is_text = True

    def __init__(self, characters: Sequence[str]) -> None:
        if not all(isinstance(each, str) and len(each) == 1 for each in characters) or NEWLINE not in characters:
            raise ValueError("expected single characters, a line break among them")
        if len(set(characters)) < len(characters):
            raise ValueError("a character has two ids")
        self.characters, self.vocab_size = list(characters), len(characters)
        self.eot = self.characters.index(NEWLINE)
        self._ids = {character: i for i, character in enumerate(characters)}

    @override
    def encode_document(self, text: str) -> np.ndarray:
        if unknown := [character for character in text if character not in self._ids]:
            raise DataError(
                f"the vocabulary of {self.vocab_size} characters does not have {unknown[0]!r}: leave it out of the text"
            )
        return np.array([*(self._ids[character] for character in text), self.eot], np.uint32)

    @override
    def token_bytes(self, id: int) -> bytes:
        return self.characters[id].encode()

    @override
    def shown(self, id: int) -> bytes:
        return self.token_bytes(id) if 0 <= id < self.vocab_size else "\ufffd".encode()

    @override
    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    @override
    def from_saved(cls, saved: Mapping[str, Any]) -> "CharacterIds":
        return cls(want(saved.get("characters"), list, "characters"))


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts and containers of them; refuses everything that would have to be looked up."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not executed")


def _sha256(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(meta: Path, error: OSError) -> DataError:
    return DataError(f"data.tokenizer.meta={meta} cannot be read ({error.strerror or error}): name nanoGPT's meta.pkl")
