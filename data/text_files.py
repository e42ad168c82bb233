"""Your own text: documents in .txt, .jsonl and .parquet files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from data.errors import DataError, MissingSource
from data.hashing import BLOCK_BYTES
from data.opening import is_compressed, opened, uncompressed_name, unreadable
from data.parquet import parquet_texts, parquet_units
from data.paths import Matches, find_files
from data.source import Source, Unit, group_files, unit_bytes
from data.text import UTF8_MARK, decoded
from files.paths import expanded

LONGEST_TEXT = 1 << 30  # bytes of a .txt file or a .jsonl line, each of which is read at once
KINDS = ((".txt", ".txt.gz", ".txt.zst"), (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".parquet",))
TEXT_PER_BYTE = 3  # of a compressed file, roughly
TO_THE_END = 1 << 62  # of a file whose length is not known before it is read


class Files(Source):
    """Your own text: every file that matches a glob pattern, in sorted order, each real file once.

    .txt: one document per file. .jsonl: one per line, .parquet: one per row, both from the column `text`. All UTF-8;
    a byte-order mark is no part of the text. .txt and .jsonl may be compressed: .txt.gz, .jsonl.zst.
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
        sizes = [(path, _text_size(path)) for path in texts]
        if big := [path for path, size in sizes if size > LONGEST_TEXT and not is_compressed(path)]:
            raise _too_long(big[0])
        line_units = [unit for path in lines for unit in _line_units(path)]
        return [*group_files(sizes), *line_units, *parquet_units(rows, self.text)]

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        if unit.paths[0].endswith(".parquet"):
            return parquet_texts(unit, self.text)
        if uncompressed_name(unit.paths[0]).endswith(".jsonl"):
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
        kinds = [[path for path in matches.files if path.endswith(suffixes)] for suffixes in KINDS]
        if unknown := [path for path in matches.files if not path.endswith(sum(KINDS, ()))]:
            raise DataError(
                f"data.source.pattern={self.pattern!r} matches {unknown[0]}: expected .txt, .jsonl (also .gz or .zst "
                "of these) or .parquet"
            )
        return kinds


def _too_long(path: str) -> DataError:
    return DataError(f"{path} is one document of more than 1 GiB: split it, or write one document per .jsonl line")


def _text_size(path: str) -> int:
    """The size of the text in a file; a guess if it is compressed."""
    return _size(path) * (TEXT_PER_BYTE if is_compressed(path) else 1)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def _file_text(path: str) -> str:
    with opened(path) as file:
        pieces, n_bytes = [], 0
        while piece := file.read(BLOCK_BYTES):
            pieces.append(piece)
            n_bytes += len(piece)
            if n_bytes > LONGEST_TEXT:
                raise _too_long(path)
        return decoded(b"".join(pieces), path)


def _line_units(path: str) -> list[Unit]:
    """The units of a .jsonl file; a compressed one is one unit, as it can only be read from its beginning."""
    if is_compressed(path):
        return [Unit((path,), 0, TO_THE_END, _text_size(path))]
    size = _size(path)
    step = unit_bytes(size)
    spans = ((start, min(start + step, size)) for start in range(0, size, step))
    return [Unit((path,), start, stop, stop - start) for start, stop in spans]


def _line_texts(unit: Unit, column: str) -> Iterator[str | None]:
    """Yields the texts of lines that begin in [start, stop): one that begins before belongs to the unit before."""
    with opened(unit.paths[0]) as file:
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
