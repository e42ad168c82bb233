"""What a source of data is, and how a corpus is divided into units of work.

A unit is small, picklable and independent of the others, so that workers can share them, and a killed preparation can
continue. The corpus is the documents of unit 0, unit 1, ... in that order; how a source is divided into units does not
change the result.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from data.encoding import encode_documents

if TYPE_CHECKING:
    from data.tokenizers import Recipe

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Request:
    """A data set to prepare."""

    folder: Path  # where dataset.json is to be written, last
    recipe: "Recipe"
    settings: dict[str, Any]  # what the folder is named after; part of dataset.json
    workers: int  # threads
    console: bool  # whether to show progress


class DataSource(ABC):
    """Where the tokens of a data set come from."""

    name: ClassVar[str]
    embedded: ClassVar[bool]  # prepared quickly and without network, so that a training run may do it

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What determines the tokens, beside the tokenizer; part of the data set's name, so without paths."""

    def contents(self, root: Path) -> Mapping[str, Any]:
        """Returns what else determines the tokens: checksums of data sets that they are taken from; part of the name.

        root: the folder of the prepared data sets. Raises: DataError: if one is not there.
        """
        return {}

    @abstractmethod
    def fill(self, request: Request) -> None:
        """Writes a data set into a folder, dataset.json last; continues what a killed process began.

        Raises: DataError: if the source, its files or the disk do not allow it.
        """

    def files(self) -> Sequence[str]:
        """Returns the files on this machine that the tokens come from, in their order; reads few or none of them.

        Raises: MissingSource: if they are not on this machine.
        """
        return []

    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        """Returns whether the prepared data set is the one of published numbers; None if there are no such numbers."""
        return None


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a corpus that one worker reads; each source defines what start and stop count."""

    paths: tuple[str, ...]
    start: int
    stop: int
    n_bytes: int  # of text, approximately: for progress and the disk check only
    n_documents: int | None = None  # where known before reading


class Source(DataSource):
    """A corpus of documents in a fixed order."""

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus, the same list every time."""

    @abstractmethod
    def documents(self, unit: Unit) -> Iterator[str | None]:
        """Yields the texts of one unit, in order; None for a row without text. See text.is_document.

        Raises: DataError: if one cannot be read; the message names its file and position.
        """

    def provenance(self) -> Mapping[str, Any]:
        """Returns what was found on reading, such as a commit, for dataset.json; no part of the data set's name."""
        return {}

    @override
    def fill(self, request: Request) -> None:
        encode_documents(self, request)


def unit_bytes(total: int) -> int:
    """Returns the size of a unit: small enough for 64 units, to keep cores busy; at most 16 MB.

    So a kill loses little.
    """
    return min(max(total // 64, MEGABYTE // 4), 16 * MEGABYTE)


def group_files(files: Sequence[tuple[str, int]]) -> list[Unit]:
    """Returns units of files, given as (path, bytes)."""
    target = unit_bytes(sum(size for _, size in files))
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


def first_documents(units: Sequence[Unit], limit: int) -> list[Unit]:
    """Returns units with the first documents; one for all if they do not know how many they have."""
    if any(unit.n_documents is None for unit in units):
        paths = tuple(dict.fromkeys(path for unit in units for path in unit.paths))
        return [Unit(paths, units[0].start, units[-1].stop, sum(unit.n_bytes for unit in units), limit)]
    kept: list[Unit] = []
    for unit in units:
        n = min(unit.n_documents or 0, limit)
        limit -= n
        if n:
            kept.append(replace(unit, n_documents=n))
    return kept
