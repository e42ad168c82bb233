"""Where documents come from: a source lists units of work and reads the documents of one unit.

A unit is small, picklable and independent of the others, so that workers share them and a killed preparation
knows what is left. The documents of unit 0, unit 1, ... in that order are the corpus; how a source is cut into
units never changes the result.
"""

import json
import os
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.errors import DataError

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a source that one worker reads by itself; start and stop mean what the source says they mean."""

    paths: tuple[str, ...]
    start: int
    stop: int
    n_bytes: int  # of text, roughly: for progress and the disk check only
    n_documents: int | None = None  # where known before reading


class Source(ABC):
    """A corpus in a fixed order."""

    name: ClassVar[str]
    embedded: ClassVar[bool]  # available everywhere without network, so a training run may prepare it by itself
    may_change: ClassVar[bool] = False  # so preparing it again compares the finished data set with what is there now

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What decides the documents; part of the data set's name, so no paths of one machine."""

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """The corpus in pieces, the same list every time."""

    @abstractmethod
    def documents(self, unit: Unit) -> Iterator[str]:
        """The texts of one unit, in order."""

    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        """Whether the finished data set is the one that published numbers are from; None where there is none."""
        return None


class PySource(Source):
    """The Python sources that the running interpreter has: its standard library, then its installed packages.

    Files go by sorted path and the standard library comes first, so the default size depends on the interpreter's
    version alone. megabytes caps the text (null: everything there). Files that are not UTF-8 are skipped.
    """

    name = "pysource"
    embedded = True

    def __init__(self, megabytes: float | None) -> None:
        if megabytes is not None and megabytes <= 0:
            raise DataError(f"data.source.megabytes={megabytes} must be > 0, or null for everything")
        self.megabytes = megabytes

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Source."""
        return {"megabytes": self.megabytes, "python": platform.python_version()}

    def units(self) -> Sequence[Unit]:
        """See Source."""
        budget = float("inf") if self.megabytes is None else self.megabytes * MEGABYTE
        files: list[tuple[str, int]] = []
        for path in _python_files():
            size = path.stat().st_size
            if size > budget:
                break
            budget -= size
            files.append((str(path), size))
        return _group_files(files)

    def documents(self, unit: Unit) -> Iterator[str]:
        """See Source."""
        for path in unit.paths:
            try:
                text = Path(path).read_bytes().decode()
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield text


class Synthetic(Source):
    """Text from a seeded Markov chain over made-up words, each with `branching` equally likely successors.

    The best possible loss is ln(branching) nats per word. Document i depends on (seed, i) alone.
    """

    name = "synthetic"
    embedded = True
    words_per_document: ClassVar[int] = 200

    def __init__(self, n_documents: int, seed: int = 0, n_words: int = 500, branching: int = 4) -> None:
        if n_documents < 2:
            raise DataError(f"data.source.n_documents={n_documents} must be >= 2: one to train on, one to validate on")
        if not 1 <= branching <= n_words:
            raise DataError(f"data.source.branching={branching} must lie in 1..n_words={n_words}")
        self.n_documents, self.seed, self.n_words, self.branching = n_documents, seed, n_words, branching
        rng = np.random.Generator(np.random.Philox(key=[seed, 2**63]))
        letters = rng.integers(ord("a"), ord("z") + 1, (n_words, 8), dtype=np.uint8)
        lengths = rng.integers(2, 9, n_words)
        self._words = [bytes(row[:n]).decode() for row, n in zip(letters, lengths, strict=True)]
        self._successors = rng.integers(0, n_words, (n_words, branching)).tolist()

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Source."""
        names = ("n_documents", "seed", "n_words", "branching")
        return {name: getattr(self, name) for name in names}

    def units(self) -> Sequence[Unit]:
        """See Source: start and stop are document indices."""
        cuts = range(0, self.n_documents, 500)
        spans = ((start, min(start + 500, self.n_documents)) for start in cuts)
        size = self.words_per_document * 6
        return [Unit((), start, stop, (stop - start) * size, stop - start) for start, stop in spans]

    def documents(self, unit: Unit) -> Iterator[str]:
        """See Source."""
        for index in range(unit.start, unit.stop):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
            word = int(rng.integers(self.n_words))
            chain = [word]
            for choice in rng.integers(0, self.branching, self.words_per_document - 1).tolist():
                word = self._successors[word][choice]
                chain.append(word)
            yield " ".join(self._words[word] for word in chain) + ".\n"


class Files(Source):
    """Your own text: every file that matches a glob pattern, in sorted order.

    .txt: one document per file. .jsonl: one per line, .parquet: one per row, both from the column `text`.
    """

    name = "files"
    embedded = False
    may_change = True
    max_text_bytes: ClassVar[int] = 1 << 30  # a .txt document is read whole

    def __init__(self, pattern: str, text: str) -> None:
        self.pattern, self.text = pattern, text

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Source."""
        return {"pattern": self.pattern, "text": self.text}

    def units(self) -> Sequence[Unit]:
        """See Source: start and stop are bytes of a .jsonl file, row groups of a .parquet file."""
        matches = glob(str(Path(self.pattern).expanduser()), recursive=True)  # noqa: PTH207  # absolute patterns too
        files = sorted(path for path in matches if Path(path).is_file())
        if not files:
            raise DataError(f"data.source.pattern={self.pattern!r} matches no file")
        if unknown := [path for path in files if Path(path).suffix not in {".txt", ".jsonl", ".parquet"}]:
            raise DataError(
                f"data.source.pattern={self.pattern!r} matches {unknown[0]}: expected .txt, .jsonl or .parquet"
            )
        texts = [(path, Path(path).stat().st_size) for path in files if path.endswith(".txt")]
        if big := [path for path, size in texts if size > self.max_text_bytes]:
            raise DataError(
                f"{big[0]} is one document of more than 1 GiB: split it, or write one document per .jsonl line"
            )
        lines = [unit for path in files if path.endswith(".jsonl") for unit in _line_units(path)]
        rows = _parquet_units([path for path in files if path.endswith(".parquet")], self.text)
        return [*_group_files(texts), *lines, *rows]

    def documents(self, unit: Unit) -> Iterator[str]:
        """See Source."""
        if unit.paths[0].endswith(".parquet"):
            return _parquet_texts(unit, self.text)
        if unit.paths[0].endswith(".jsonl"):
            return _line_texts(unit, self.text)
        return (_decoded(path) for path in unit.paths)


class OpenWebText(Source):
    """OpenWebText (Gokaslan and Cohen 2019), the open copy of GPT-2's training text, from its parquet conversion.

    Read straight from the hub in pieces of a few megabytes, so that neither the text nor its archive ever lies on
    this disk; or from `folder`, for machines without network. Documents are counted before the work starts,
    because losses are only comparable on the same validation set: expected_documents null accepts any number.
    limit_documents keeps the first n.
    """

    name = "openwebtext"
    embedded = False
    # GPT-2 tokenizer, end of text included, split at 0.0005 with seed 2357: nanoGPT, data/openwebtext/readme.md.
    reference_tokens: ClassVar[Mapping[str, int]] = {"train": 9_035_582_198, "val": 4_434_897}

    def __init__(
        self,
        dataset: str,
        revision: str,
        folder: str | None,
        limit_documents: int | None,
        expected_documents: int | None,
    ) -> None:
        if limit_documents is not None and limit_documents < 2:
            raise DataError(f"data.source.limit_documents={limit_documents} must be >= 2, or null for all")
        self.dataset, self.revision, self.folder = dataset, revision, folder
        self.limit_documents, self.expected_documents = limit_documents, expected_documents

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Source; a folder is another way to the same documents, so it does not count."""
        names = ("dataset", "revision", "limit_documents", "expected_documents")
        return {name: getattr(self, name) for name in names}

    def units(self) -> Sequence[Unit]:
        """See Source: start and stop are row groups."""
        units = _parquet_units(self._folder_files() if self.folder else self._hub_files(), "text")
        found = sum(unit.n_documents or 0 for unit in units)
        if self.limit_documents is not None:
            return _first_documents(units, self.limit_documents)
        if self.expected_documents not in (None, found):
            raise DataError(
                f"OpenWebText has {self.expected_documents:,} documents, but {self.folder or self.dataset} holds "
                f"{found:,}: losses would not be comparable. Use a complete copy (data.source.revision, "
                "data.source.folder), or accept this one with data.source.expected_documents=null"
            )
        return units

    def documents(self, unit: Unit) -> Iterator[str]:
        """See Source."""
        return _parquet_texts(unit, "text")

    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        """See Source."""
        found, reference = meta["splits"]["val"]["n_tokens"], self.reference_tokens["val"]
        if found == reference:
            return f"the validation set is the reference one by its count of {reference:,} tokens"
        return (
            f"a different validation set: {found:,} tokens, the reference one has {reference:,} (GPT-2 tokenizer, all "
            "documents, val_fraction 0.0005, split_seed 2357); its losses do not compare with published ones"
        )

    def _folder_files(self) -> list[str]:
        found = sorted(str(path) for path in Path(str(self.folder)).expanduser().rglob("*.parquet"))
        if not found:
            raise DataError(f"data.source.folder={self.folder} holds no .parquet file")
        return found

    def _hub_files(self) -> list[str]:
        from huggingface_hub import HfApi  # comes with datasets

        try:
            info = HfApi().dataset_info(self.dataset, revision=self.revision, timeout=20)
        except Exception as error:  # the hub's client raises from four libraries
            raise DataError(
                f"cannot list {self.dataset} at {self.revision} on the Hugging Face hub "
                f"({type(error).__name__}): where there is network, fetch its .parquet files and pass "
                "data.source.folder=<folder with them>"
            ) from error
        names = sorted(file.rfilename for file in info.siblings or [] if file.rfilename.endswith(".parquet"))
        if not names:
            raise DataError(
                f"{self.dataset} at {self.revision} holds no .parquet file: set data.source.revision to its conversion"
            )
        # By commit: a revision that moves while we read would mix two versions.
        return [f"hf://datasets/{self.dataset}@{info.sha}/{name}" for name in names]


# encodings is tables of characters and pydoc_data one page of prose in a string: neither is Python to learn from.
NOT_STDLIB_CODE = {"site-packages", "dist-packages", "encodings", "pydoc_data"}


def _python_files() -> Iterator[Path]:
    paths = sysconfig.get_paths()
    yield from _walk(Path(paths["stdlib"]), prune=NOT_STDLIB_CODE)
    for folder in sorted({paths["purelib"], paths["platlib"]}):
        yield from _walk(Path(folder), prune=set())


def _walk(root: Path, prune: set[str]) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in prune]
        # _sysconfigdata*.py records how this one interpreter was built.
        found += [
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _unit_bytes(total: int) -> int:
    """Small enough for 64 units, so that few cores stay busy; at most 16 MB, so that little is lost in a kill."""
    return min(max(total // 64, MEGABYTE // 4), 16 * MEGABYTE)


def _group_files(files: Sequence[tuple[str, int]]) -> list[Unit]:
    target = _unit_bytes(sum(size for _, size in files))
    units: list[Unit] = []
    group: list[str] = []
    n_bytes = 0
    for i, (path, size) in enumerate(files):
        group.append(path)
        n_bytes += size
        if n_bytes >= target or i == len(files) - 1:
            units.append(Unit(tuple(group), 0, 0, n_bytes))
            group, n_bytes = [], 0
    return units


def _decoded(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}: convert it, or leave it out of the pattern"
        ) from error


def _line_units(path: str) -> list[Unit]:
    size = Path(path).stat().st_size
    step = _unit_bytes(size)
    spans = ((start, min(start + step, size)) for start in range(0, size, step))
    return [Unit((path,), start, stop, stop - start) for start, stop in spans]


def _line_texts(unit: Unit, column: str) -> Iterator[str]:
    """The lines that begin in [start, stop): the one begun before belongs to the unit before."""
    with Path(unit.paths[0]).open("rb") as file:
        file.seek(max(unit.start - 1, 0))
        position = unit.start if unit.start == 0 else unit.start - 1 + len(file.readline())
        while position < unit.stop:
            line = file.readline()
            if line.strip():
                yield _line_text(line, column, f"{unit.paths[0]}, line at byte {position}")
            position += len(line)


def _line_text(line: bytes, column: str, where: str) -> str:
    try:
        text = json.loads(line)[column]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: expected a JSON object with a {column!r} (data.source.text): {error!r}") from error
    if not isinstance(text, str):
        raise DataError(f"{where}: {column!r} is a {type(text).__name__}, expected a string")
    return text


def _parquet_units(paths: Iterable[str], column: str) -> list[Unit]:
    with ThreadPoolExecutor(8) as pool:  # the footers of 80 remote files, not one after the other
        return [unit for units in pool.map(lambda path: _row_group_units(path, column), paths) for unit in units]


def _row_group_units(path: str, column: str) -> list[Unit]:
    with _parquet(path) as parquet:
        metadata = parquet.metadata
        if column not in parquet.schema_arrow.names:
            raise DataError(f"{path} has no column {column!r} (data.source.text), only {parquet.schema_arrow.names}")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = [group.total_byte_size for group in groups]
    target = 64 * MEGABYTE if "://" in path else _unit_bytes(sum(sizes))  # a remote unit costs a few requests
    units: list[Unit] = []
    start = n_bytes = n_documents = 0
    for i, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        n_bytes, n_documents = n_bytes + size, n_documents + group.num_rows
        if n_bytes >= target or i == len(groups) - 1:
            units.append(Unit((path,), start, i + 1, n_bytes, n_documents))
            start, n_bytes, n_documents = i + 1, 0, 0
    return units


def _parquet_texts(unit: Unit, column: str) -> Iterator[str]:
    with _parquet(unit.paths[0]) as parquet:
        batches = parquet.iter_batches(256, row_groups=range(unit.start, unit.stop), columns=[column])
        texts = (text or "" for batch in batches for text in batch.column(0).to_pylist())
        yield from islice(texts, unit.n_documents)


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    import fsspec  # type: ignore[import-untyped]  # ships no types; comes with datasets, opens local and hf:// paths
    import pyarrow.parquet as pq

    try:
        with fsspec.open(path, "rb") as file:
            yield pq.ParquetFile(file)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, fsspec's, or one of the hub client's libraries'
        raise DataError(
            f"cannot read {path} ({type(error).__name__}: {error}): "
            + ("run the same command again, it continues here" if "://" in path else "is it a .parquet file?")
        ) from error


def _first_documents(units: Sequence[Unit], limit: int) -> list[Unit]:
    kept: list[Unit] = []
    for unit in units:
        n = min(unit.n_documents or 0, limit)
        limit -= n
        if n:
            kept.append(Unit(unit.paths, unit.start, unit.stop, unit.n_bytes, n))
    return kept
