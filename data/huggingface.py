"""Data sets of the Hugging Face hub, or in the formats that `datasets` reads, on this machine.

Where the data lie                          | how they are read
hub or local folder, .parquet files         | by row groups, as in parquet.py: counted first, continued after a kill
hub or local folder, any other format       | as a stream of `datasets`, one unit per file
a folder that save_to_disk wrote            | mapped, by rows

Nothing is stored but the tokens, and no code of a data set is executed: `datasets` no longer does that.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from typing_extensions import override

from data.errors import DataError, MissingSource
from data.parquet import parquet_texts, parquet_units
from data.paths import find_files
from data.rows import is_saved, row_texts, row_units, saved_rows, stream_texts, stream_units
from data.source import Source, Unit, first_documents
from files.errors import one_line
from files.paths import expanded

COMMIT = re.compile(r"hf://datasets/[^@]+@([^/]+)/")


class HuggingFace(Source):
    """One split of a data set, the documents in one of its columns.

    path: of the hub (`owner/name`), or a folder on this machine; name: of the configuration, null: the default one.
    revisions: branches, tags or commits of the hub, tried in their order. folder: has the .parquet files of the split,
    for machines without network; the data set is the same one. limit_documents: the first n documents (rows) only.
    expected_documents: refuses any other number, as losses only compare on the same validation set.
    """

    name = "hf"
    embedded = False

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        text: str = "text",
        revisions: Sequence[str] = ("main",),
        folder: str | None = None,
        limit_documents: int | None = None,
        expected_documents: int | None = None,
    ) -> None:
        if limit_documents is not None and not (isinstance(limit_documents, int) and limit_documents >= 2):
            raise DataError(f"data.source.limit_documents={limit_documents} must be >= 2, or null for all")
        if expected_documents is not None and not isinstance(expected_documents, int):
            raise DataError(f"data.source.expected_documents={expected_documents} must be a whole number, or null")
        if not revisions:
            raise DataError("data.source.revisions is empty: name at least one, such as main")
        self.path, self.configuration, self.split, self.text = path, name, split, text
        self.revisions, self.folder = list(revisions), folder
        self.limit_documents, self.expected_documents = limit_documents, expected_documents

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        """What determines the documents; folder is not part of it, as it holds the same ones."""
        names = ("path", "configuration", "split", "text", "revisions", "limit_documents", "expected_documents")
        return {name: getattr(self, name) for name in names}

    @override
    def units(self) -> Sequence[Unit]:
        """Returns the units of the corpus; start and stop are row groups, rows, or files of a stream."""
        units = self._all_units()
        found = (
            None if any(unit.n_documents is None for unit in units) else sum(unit.n_documents or 0 for unit in units)
        )
        if self.limit_documents is not None:
            return first_documents(units, self.limit_documents)
        if self.expected_documents not in (None, found):
            holds = "a number that is not known before they are read" if found is None else f"{found:,}"
            raise DataError(
                f"data={self.name} should have {self.expected_documents:,} documents, but "
                f"{self.folder or self.path} holds {holds}: losses would not be comparable. Use a complete copy "
                "(data.source.revisions, data.source.folder), or set data.source.expected_documents=null to accept it"
            )
        return units

    @override
    def documents(self, unit: Unit) -> Iterator[str | None]:
        if unit.paths[0].endswith(".parquet"):
            return parquet_texts(unit, self.text)
        if self.folder is None and is_saved(self._local):
            return row_texts(self._rows, unit, self.text)
        return stream_texts(self._stream, unit, self.text)

    @override
    def files(self) -> Sequence[str]:
        """Returns the files on this machine, of .parquet files with limit_documents only those needed."""
        if self.folder is None and not self._local.is_dir():
            return []
        found = self._files()
        if self.limit_documents is None or not all(path.endswith(".parquet") for path in found):
            return found
        units = first_documents(parquet_units(found, self.text), self.limit_documents)
        return list(dict.fromkeys(path for unit in units for path in unit.paths))

    @override
    def provenance(self) -> Mapping[str, Any]:
        """Returns the commit of the hub that the documents are of; nothing if they are on this machine."""
        is_here = self.folder is not None or self._local.is_dir()
        found = None if is_here else COMMIT.match(self._files()[0])
        return {} if found is None else {"commit": found[1]}

    @property
    def _local(self) -> Path:
        return expanded(self.path, "data.source.path")

    def _all_units(self) -> Sequence[Unit]:
        files = self._files(is_logged=True)
        if all(file.endswith(".parquet") for file in files):
            return parquet_units(files, self.text)
        if self.folder is None and is_saved(self._local):
            return row_units(self._rows, files, self.text)
        return stream_units(self._stream, files)

    def _files(self, *, is_logged: bool = False) -> list[str]:
        """The files of the split: paths, or addresses on the hub, which name the commit."""
        if self.folder is not None:
            return _parquet_files(self.folder, is_logged)
        if is_saved(self._local):
            return [str(each["filename"]) for each in self._rows.cache_files]
        found = self._builder.config.data_files or {}
        if self.split not in found:
            raise DataError(
                f"data.source.split={self.split} is no split of {self.path}; it has "
                f"{', '.join(map(str, found)) or 'none'}"
            )
        # By commit: if the revision moved while we read, we would mix two versions.
        return [str(file) for file in found[self.split]]

    @cached_property
    def _rows(self) -> Any:
        return saved_rows(self._local, self.configuration, self.split)

    @cached_property
    def _stream(self) -> Any:
        return self._builder.as_streaming_dataset(self.split)

    @cached_property
    def _builder(self) -> Any:
        """What `datasets` makes of the folder, or of the first revision that it can read."""
        if self._local.is_dir():
            return self._built(str(self._local))
        failures = []
        for revision in self.revisions:
            try:
                return self._built(self.path, _commit(self.path, revision))
            except DataError as error:
                failures.append(str(error))
        raise DataError(
            f"cannot list {self.path} at {' or '.join(self.revisions)} on the Hugging Face hub "
            f"({'; '.join(dict.fromkeys(failures))}): a folder of that name is not here; where there is network, fetch "
            "the .parquet files and pass data.source.folder=<folder with them>"
        )

    def _built(self, path: str, commit: str | None = None) -> Any:
        from datasets import load_dataset_builder

        try:
            return load_dataset_builder(path, self.configuration, revision=commit)
        except Exception as error:  # the library raises what four others raise
            raise DataError(
                f"data.source.path={path}: `datasets` cannot read it ({type(error).__name__}: {one_line(error)[:300]})"
            ) from error


def _commit(path: str, revision: str) -> str:
    """The commit of the hub that a revision stands for; found out first, as `datasets` tries for half a minute."""
    from huggingface_hub import HfApi  # comes with datasets

    try:
        return str(HfApi().dataset_info(path, revision=revision, timeout=20).sha)
    except Exception as error:  # the hub's client raises from four libraries
        raise DataError(f"{type(error).__name__}: {one_line(error)[:300]}") from error


def _parquet_files(folder: str, is_logged: bool) -> list[str]:
    matches = find_files(Path(escape(str(expanded(folder, "data.source.folder"))), "**", "*.parquet"))
    if is_logged:
        matches.log_omissions()
    if not matches.files:
        raise MissingSource(f"data.source.folder={folder} holds no .parquet file")
    return matches.files
