"""Small corpora and data sets that the tests of this folder share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from data.metadata import DTYPES, FORMAT, shard_name, split_meta
from data.preparation import prepare
from data.shards import ShardWriter, write_meta
from data.source import Source, Unit
from data.tokenizers import Bytes, Recipe
from data.verified import describe

SETTINGS = {"val_fraction": 0.1, "split_seed": 2357, "shard_tokens": 1000}


class Texts(Source):
    """A list of documents, so many to a unit."""

    name = "texts"
    embedded = True

    def __init__(self, texts: Sequence[str | None], per_unit: int = 7, n_bytes: int | None = None) -> None:
        """n_bytes: what every unit says of its size, None: the truth."""
        self.texts, self.per_unit, self.n_bytes = list(texts), per_unit, n_bytes
        self.read_units: list[int] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def units(self) -> Sequence[Unit]:
        starts = range(0, len(self.texts), self.per_unit)
        return [
            self._unit(start, [text or "" for text in self.texts[start : start + self.per_unit]]) for start in starts
        ]

    def _unit(self, start: int, texts: Sequence[str]) -> Unit:
        raw = "".join(texts).encode("utf-8", "surrogatepass")
        return Unit((str(crc32(raw)),), start, start + len(texts), self.n_bytes or len(raw), len(texts))

    def documents(self, unit: Unit) -> Iterator[str | None]:
        self.read_units.append(unit.start)
        yield from self.texts[unit.start : unit.stop]


def numbered_texts(n: int) -> list[str]:
    """Documents of different lengths that can be told apart."""
    return [f"document {i} " + "abcdefghij" * (i % 9) for i in range(n)]


def prepared(source: Source, root: Path, recipe: Recipe | None = None, workers: int = 1, **changes: Any) -> Path:
    """A data set of bytes, in small shards."""
    settings: dict[str, Any] = {**SETTINGS, **changes}
    return prepare(source, recipe or Bytes(), root, **settings, workers=workers, console=False)


def content(path: Path) -> dict[str, bytes]:
    """Every file of a data set but the stamps, which hold modification times."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "verified.json"}


def dataset_of(
    path: Path, tokens: np.ndarray, *, shard_tokens: int = 100, vocab_size: int = 65536, dtype: str = "uint16"
) -> Path:
    """A data set whose train and val splits are exactly these tokens."""
    path.mkdir(parents=True)
    splits = {}
    for split in ("train", "val"):
        writer = ShardWriter(path, split, shard_tokens, DTYPES[dtype], 0)
        writer.write(tokens)
        writer.close()
        n_shards = -(-len(tokens) // shard_tokens)
        shards = [describe(path / shard_name(split, i), DTYPES[dtype]) for i in range(n_shards)]
        splits[split] = split_meta(shards, 1)
    sizes = {"vocab_size": vocab_size, "eot": vocab_size - 1, "shard_tokens": shard_tokens, "text_bytes": len(tokens)}
    meta = {"format": FORMAT, "dtype": dtype, **sizes, "tokenizer": {"sha256": "0" * 64}, "splits": splits}
    write_meta(path, meta)
    return path
