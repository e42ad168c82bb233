"""Sources of documents: a source lists units of work and reads the documents of one unit.

A unit is small, picklable and independent of the others, so that workers can share them, and a killed preparation can
continue. The corpus is the documents of unit 0, unit 1, ... in that order; how a source is divided into units does not
change the result.
"""

import json
import os
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from typing_extensions import override

from data.descriptors import descriptor_budget
from data.errors import DataError, MissingSource
from data.paths import Matches, find_files
from data.text import UTF8_MARK, decoded, is_document
from files.paths import expanded

MEGABYTE = 1_000_000
LONGEST_TEXT = 1 << 30  # bytes of a .txt file or a .jsonl line, each of which is read at once


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a source that one worker reads; each source defines what start and stop count."""

    paths: tuple[str, ...]
    start: int
    stop: int
    n_bytes: int  # of text, approximately: for progress and the disk check only
    n_documents: int | None = None  # where known before reading


class Source(ABC):
    """A corpus in a fixed order."""

    name: ClassVar[str]
    embedded: ClassVar[bool]  # available on any machine without network, so that a training run may prepare it

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What determines the documents; part of the data set's name, so without paths of this machine."""

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus, the same list every time."""

    @abstractmethod
    def documents(self, unit: Unit) -> Iterator[str | None]:
        """Yields the texts of one unit, in order; None for a row without text. See text.is_document.

        Raises: DataError: if one cannot be read; the message names its file and position.
        """

    def files(self) -> Sequence[str]:
        """Returns the files on this machine that the documents come from, in the documents' order; reads few or none.

        Raises: MissingSource: if they are not on this machine.
        """
        return []

    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        """Returns whether the prepared data set is the one of published numbers; None if there are no such numbers."""
        return None


class PySource(Source):
    """The Python files of the running interpreter: its standard library, then its installed packages.

    Files go by sorted path and the standard library comes first, so the default depends on the interpreter's version
    alone, unless a distribution leaves much of the library out, as Debian does. megabytes caps the text (null:
    everything there). Files that are not UTF-8 are skipped.
    """

    name = "pysource"
    embedded = True

    def __init__(self, megabytes: float | None) -> None:
        if megabytes is not None and not (isinstance(megabytes, int | float) and megabytes > 0):
            raise DataError(f"data.source.megabytes={megabytes} must be > 0, or null for everything")
        self.megabytes = megabytes

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"megabytes": self.megabytes, "python": platform.python_version()}

    @override
    def units(self) -> Sequence[Unit]:
        return _group_files(self._sizes())

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        for path in unit.paths:
            with _opened(path) as file:
                raw = file.read()
            with suppress(UnicodeDecodeError):
                if is_document(text := raw.decode()):
                    yield text

    @override
    def files(self) -> Sequence[str]:
        return [path for path, _ in self._sizes()]

    def _sizes(self) -> list[tuple[str, int]]:
        budget = float("inf") if self.megabytes is None else self.megabytes * MEGABYTE
        files: list[tuple[str, int]] = []
        for path in _python_files():
            size = path.stat().st_size
            if size > budget:
                break
            budget -= size
            files.append((str(path), size))
        return files


class Synthetic(Source):
    """Text from a seeded Markov chain over made-up words, each with `branching` equally likely successors.

    The best possible loss is ln(branching) nats per word. Document i depends on (seed, i) alone.
    """

    name = "synthetic"
    embedded = True
    words_per_document: ClassVar[int] = 200

    def __init__(self, n_documents: int, seed: int = 0, n_words: int = 500, branching: int = 4) -> None:
        for key, value in (
            ("n_documents", n_documents),
            ("seed", seed),
            ("n_words", n_words),
            ("branching", branching),
        ):
            if not isinstance(value, int) or not 0 <= value < 1 << 63:
                raise DataError(f"data.source.{key}={value} must be a whole number >= 0")
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
    @override
    def settings(self) -> Mapping[str, Any]:
        names = ("n_documents", "seed", "n_words", "branching")
        return {name: getattr(self, name) for name in names}

    @override
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus; start and stop are indices of documents."""
        spans = ((start, min(start + 500, self.n_documents)) for start in range(0, self.n_documents, 500))
        size = self.words_per_document * 6
        return [Unit((), start, stop, (stop - start) * size, stop - start) for start, stop in spans]

    @override
    def documents(self, unit: Unit) -> Iterator[str]:
        for index in range(unit.start, unit.stop):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
            word = int(rng.integers(self.n_words))
            chain = [word]
            for choice in rng.integers(0, self.branching, self.words_per_document - 1).tolist():
                word = self._successors[word][choice]
                chain.append(word)
            yield " ".join(self._words[word] for word in chain) + ".\n"


class Files(Source):
    """Your own text: every file that matches a glob pattern, in sorted order, each real file once.

    .txt: one document per file. .jsonl: one per line, .parquet: one per row, both from the column `text`. All UTF-8;
    a byte-order mark is no part of the text.
    """

    name = "files"
    embedded = False

    def __init__(self, pattern: str, text: str) -> None:
        for key, value in (("pattern", pattern), ("text", text)):
            if not isinstance(value, str):
                raise DataError(f"data.source.{key}={value} is a {type(value).__name__}, expected a string")
        self.pattern, self.text = pattern, text

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {"pattern": self.pattern, "text": self.text}

    @override
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus; start and stop are bytes of a .jsonl file, row groups of a .parquet file."""
        matches = self._matches()
        matches.log_omissions()
        texts, lines, rows = self._by_kind(matches)
        sizes = [(path, _size(path)) for path in texts]
        if big := [path for path, size in sizes if size > LONGEST_TEXT]:
            raise DataError(
                f"{big[0]} is one document of more than 1 GiB: split it, or write one document per .jsonl line"
            )
        line_units = [unit for path in lines for unit in _line_units(path)]
        return [*_group_files(sizes), *line_units, *_parquet_units(rows, self.text)]

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        if unit.paths[0].endswith(".parquet"):
            return _parquet_texts(unit, self.text)
        if unit.paths[0].endswith(".jsonl"):
            return _line_texts(unit, self.text)
        return (_file_text(path) for path in unit.paths)

    @override
    def files(self) -> Sequence[str]:
        return [path for paths in self._by_kind(self._matches()) for path in paths]

    def _matches(self) -> Matches:
        pattern = expanded(self.pattern)
        matches = find_files(pattern)
        if not matches.files:
            hint = (
                f"; for the files in that folder say {self.pattern.rstrip('/') or '.'}/*.txt"
                if pattern.is_dir()
                else ""
            )
            reasons = [f"{other} is no regular file" for other in matches.others[:1] if not hint]
            reasons += [f"cannot list {folder}" for folder in matches.unlisted[:1]]
            reason = f" ({'; '.join(reasons)})" if reasons else ""
            raise MissingSource(f"data.source.pattern={self.pattern!r} matches no file{reason}{hint}")
        return matches

    def _by_kind(self, matches: Matches) -> list[list[str]]:
        suffixes = (".txt", ".jsonl", ".parquet")
        if unknown := [path for path in matches.files if not path.endswith(suffixes)]:
            raise DataError(
                f"data.source.pattern={self.pattern!r} matches {unknown[0]}: expected .txt, .jsonl or .parquet"
            )
        return [[path for path in matches.files if path.endswith(suffix)] for suffix in suffixes]


class OpenWebText(Source):
    """OpenWebText (Gokaslan and Cohen 2019), the open copy of GPT-2's training text, from its parquet conversion.

    Read from the hub in pieces of a few megabytes, so that neither the text nor its archive is stored on this disk; or
    from `folder`, for machines without network. Documents are counted first, because losses are only comparable on the
    same validation set; expected_documents: null accepts any number. limit_documents: keeps the first n. Both count
    rows; all rows of the published corpus have text, as its authors left out documents of fewer than 128 tokens.
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
        if limit_documents is not None and not (isinstance(limit_documents, int) and limit_documents >= 2):
            raise DataError(f"data.source.limit_documents={limit_documents} must be >= 2, or null for all")
        if expected_documents is not None and not isinstance(expected_documents, int):
            raise DataError(f"data.source.expected_documents={expected_documents} must be a whole number, or null")
        self.dataset, self.revision, self.folder = dataset, revision, folder
        self.limit_documents, self.expected_documents = limit_documents, expected_documents

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        """What determines the documents; folder is not part of it, as it holds the same ones."""
        names = ("dataset", "revision", "limit_documents", "expected_documents")
        return {name: getattr(self, name) for name in names}

    @override
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus; start and stop are row groups."""
        units = _parquet_units(self._folder_files(is_logged=True) if self.folder else self._hub_files(), "text")
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

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        return _parquet_texts(unit, "text")

    @override
    def files(self) -> Sequence[str]:
        """Returns the files in folder, with limit_documents only those needed; none if documents come from the hub."""
        if not self.folder:
            return []
        found = self._folder_files()
        if self.limit_documents is None:
            return found
        units = _first_documents(_parquet_units(found, "text"), self.limit_documents)
        return list(dict.fromkeys(path for unit in units for path in unit.paths))

    @override
    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        found, reference = meta["splits"]["val"]["n_tokens"], self.reference_tokens["val"]
        if found == reference:
            return f"the validation set is the reference one by its count of {reference:,} tokens"
        return (
            f"a different validation set: {found:,} tokens, the reference one has {reference:,} (GPT-2 tokenizer, all "
            "documents, val_fraction 0.0005, split_seed 2357); its losses do not compare with published ones"
        )

    def _folder_files(self, *, is_logged: bool = False) -> list[str]:
        matches = find_files(Path(escape(str(expanded(str(self.folder)))), "**", "*.parquet"))
        if is_logged:
            matches.log_omissions()
        if not matches.files:
            raise MissingSource(f"data.source.folder={self.folder} holds no .parquet file")
        return matches.files

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
        # By commit: if the revision moved while we read, we would mix two versions.
        return [f"hf://datasets/{self.dataset}@{info.sha}/{name}" for name in names]


# encodings holds tables of characters, pydoc_data prose in a string: neither is useful Python to learn from.
NOT_STDLIB_CODE = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data"})


def _python_files() -> Iterator[Path]:
    """Yields each real file once: on some systems lib64 is a link to lib."""
    paths = sysconfig.get_paths()
    seen = set()
    for root in (paths["stdlib"], *sorted({paths["purelib"], paths["platlib"]})):
        for path in _walk(Path(root), prune=NOT_STDLIB_CODE if root == paths["stdlib"] else frozenset()):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path


def _walk(root: Path, prune: frozenset[str]) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in prune]
        # _sysconfigdata*.py records how this interpreter was built.
        found += [
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _unit_bytes(total: int) -> int:
    """The size of a unit: small enough for 64 units, to keep cores busy; at most 16 MB, so that a kill loses little."""
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


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _file_text(path: str) -> str:
    with _opened(path) as file:
        return decoded(file.read(), path)


def _line_units(path: str) -> list[Unit]:
    size = _size(path)
    step = _unit_bytes(size)
    spans = ((start, min(start + step, size)) for start in range(0, size, step))
    return [Unit((path,), start, stop, stop - start) for start, stop in spans]


def _line_texts(unit: Unit, column: str) -> Iterator[str | None]:
    """Yields the texts of lines that begin in [start, stop): one that begins before belongs to the unit before."""
    with _opened(unit.paths[0]) as file:
        position = 0
        if unit.start > 0:
            file.seek(unit.start - 1)
            position = unit.start - 1 + len(_line(file, unit.paths[0], unit.start - 1))
        while position < unit.stop and (line := _line(file, unit.paths[0], position)):
            if line.removeprefix(UTF8_MARK).strip():
                yield _line_text(line, column, f"{unit.paths[0]}, line at byte {position}")
            position += len(line)


def _line(file: BinaryIO, path: str, position: int) -> bytes:
    line = file.readline(LONGEST_TEXT + 1)
    if len(line) > LONGEST_TEXT:
        raise DataError(f"{path}, line at byte {position}: it has more than 1 GiB; expected one document per line")
    return line


def _line_text(line: bytes, column: str, where: str) -> str | None:
    row = decoded(line, where)
    try:
        text = json.loads(row)[column]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object with a {column!r} (data.source.text): {error!r}") from error
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: {column!r} is a {type(text).__name__}, expected a string")
    return text


def _parquet_units(paths: Sequence[str], column: str) -> list[Unit]:
    with ThreadPoolExecutor(min(8, descriptor_budget())) as pool:  # the footers of 80 remote files, not one by one
        return [unit for units in pool.map(lambda path: _row_group_units(path, column), paths) for unit in units]


def _row_group_units(path: str, column: str) -> list[Unit]:
    with _parquet(path) as parquet:
        metadata = parquet.metadata
        _check_column(path, parquet.schema_arrow, column)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes = [_text_bytes(group, column) for group in groups]
    target = 64 * MEGABYTE if _is_remote(path) else _unit_bytes(sum(sizes))  # a remote unit costs a few requests
    units: list[Unit] = []
    start = n_bytes = n_documents = 0
    for i, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        n_bytes, n_documents = n_bytes + size, n_documents + group.num_rows
        if n_bytes >= target or i == len(groups) - 1:
            units.append(Unit((path,), start, i + 1, n_bytes, n_documents))
            start, n_bytes, n_documents = i + 1, 0, 0
    return units


def _check_column(path: str, schema: Any, column: str) -> None:
    import pyarrow.types as pa_types

    if (n := schema.names.count(column)) != 1:
        found = f"{n} columns {column!r}, expected one" if n else f"no column {column!r}"
        raise DataError(f"{path} has {found} (data.source.text), only {schema.names}")
    found = schema.field(column).type
    kind = found.value_type if pa_types.is_dictionary(found) else getattr(found, "storage_type", found)
    if str(kind) not in {"string", "large_string", "string_view", "null"}:
        raise DataError(f"{path}, all row groups: {column!r} is a {found}, expected a string")


def _text_bytes(group: Any, column: str) -> int:
    """The size of the column in a row group, without other columns, which may be far larger."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(found.total_uncompressed_size for found in columns if found.path_in_schema == column)


def _parquet_texts(unit: Unit, column: str) -> Iterator[str | None]:
    with _parquet(unit.paths[0]) as parquet:
        texts = (
            text
            for group in range(unit.start, unit.stop)
            for batch in parquet.iter_batches(256, row_groups=[group], columns=[column])
            for text in _strings(batch.column(0), f"{unit.paths[0]}, row group {group}")
        )
        yield from islice(texts, unit.n_documents)


def _strings(column: Any, where: str) -> list[str | None]:
    import pyarrow as pa

    try:
        texts: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow stores any bytes as a string
        raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        return [None if value is None else decoded(value, where) for value in raw]
    return texts


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    try:
        with _opened(path) as file:
            yield pq.ParquetFile(file)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, fsspec's, or one of the hub client's libraries'
        raise DataError(
            f"cannot read {path} ({type(error).__name__}: {error}): "
            + ("run the same command again, it continues here" if _is_remote(path) else "is it a .parquet file?")
        ) from error


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Yields the file, opened to read bytes."""
    if _is_remote(path):
        import fsspec  # type: ignore[import-untyped]  # ships no types; comes with datasets, opens hf:// paths

        with fsspec.open(path, "rb") as file:
            yield file
        return
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"cannot read {path} ({error.strerror or error}): make it readable, or leave it out")


def _is_remote(path: str) -> bool:
    return path.startswith("hf://")


def _first_documents(units: Sequence[Unit], limit: int) -> list[Unit]:
    kept: list[Unit] = []
    for unit in units:
        n = min(unit.n_documents or 0, limit)
        limit -= n
        if n:
            kept.append(Unit(unit.paths, unit.start, unit.stop, unit.n_bytes, n))
    return kept
