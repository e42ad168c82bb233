"""Reads the text column of data sets that `datasets` opens: saved ones by rows, others as a stream, file by file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.opening import is_remote
from data.source import MEGABYTE, Unit, unit_bytes
from files.errors import one_line
from files.reading import read_json

STATE, SPLITS = "state.json", "dataset_dict.json"  # one is in a folder that save_to_disk wrote: of one split, or more
BATCH = 256  # rows that are in memory at a time


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote the folder."""
    return any((folder / name).is_file() for name in (STATE, SPLITS))


def saved_rows(folder: Path, configuration: str | None, split: str) -> Any:
    """Returns the `datasets.Dataset` of a split that save_to_disk wrote, of one data set or of several splits.

    Raises: DataError: if it cannot be read, is empty, has no such split, or a configuration is named: it has none.
    """
    if configuration is not None:
        raise DataError(
            f"data.source.name={configuration}: {folder}, which save_to_disk wrote, has no configurations: set "
            "data.source.name=null"
        )
    try:
        where = _split_folder(folder, split)
        if not (read_json(where / STATE) or {})["_data_files"]:
            raise DataError(f"{where}, which save_to_disk wrote, has no rows: name a data set that has text")
        return _loaded(where)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, json's and the library's own
        raise DataError(
            f"{folder} is no data set of save_to_disk ({type(error).__name__}: {one_line(error)}): write it again"
        ) from error


def _loaded(folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(folder)).with_format(None)


def _split_folder(folder: Path, split: str) -> Path:
    """The folder of a split's rows. Raises: DataError: if there is no such split."""
    if (folder / STATE).is_file():
        names, where = _names((read_json(folder / STATE) or {}).get("_split")), folder
    else:
        names, where = list((read_json(folder / SPLITS) or {})["splits"]), folder / split
    if split not in names:
        raise DataError(f"data.source.split={split} is no split of {folder}; it has {', '.join(names)}")
    return where


def _names(saved: str | None) -> list[str]:
    """What the one split of a data set may be called: "train" if it has no name; "test[:10%]" is "test", too."""
    name = saved or "train"
    return list(dict.fromkeys([name, name.partition("[")[0]] if "+" not in name else [name]))


def row_units(rows: Any, files: Sequence[str], column: str) -> list[Unit]:
    """Returns the units of saved rows; start and stop are rows."""
    _check_column(rows.column_names, column, files[0])
    n_rows, n_bytes = len(rows), sum(Path(file).stat().st_size for file in files)
    step = max(n_rows * unit_bytes(n_bytes) // max(n_bytes, 1), 1)
    spans = [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    return [Unit(tuple(files), start, stop, n_bytes * (stop - start) // n_rows, stop - start) for start, stop in spans]


def row_texts(rows: Any, unit: Unit, column: str) -> Iterator[str | None]:
    """Yields the texts of a unit of row_units, None for a row without text."""
    stop = unit.stop if unit.n_documents is None else min(unit.stop, unit.start + unit.n_documents)
    for start in range(unit.start, stop, BATCH):
        for i, text in enumerate(rows[start : min(start + BATCH, stop)][column], start):
            yield _text(text, column, f"{unit.paths[0]}, row {i}")


def stream_units(stream: Any, files: Sequence[str]) -> list[Unit]:
    """Returns the units of a stream; start and stop count the pieces into which `datasets` divides it, mostly files."""
    n = stream.num_shards
    sizes = [MEGABYTE if is_remote(file) else Path(file).stat().st_size for file in files]
    if n == len(files):
        return [Unit((file,), i, i + 1, size) for i, (file, size) in enumerate(zip(files, sizes, strict=True))]
    return [Unit(tuple(files), i, i + 1, sum(sizes) // n) for i in range(n)]


def stream_texts(stream: Any, unit: Unit, column: str) -> Iterator[str | None]:
    """Yields the texts of a unit of stream_units, None for a row without text."""
    n_documents = 0
    for i in range(unit.start, unit.stop):
        for row in _rows_of(stream.shard(stream.num_shards, i), unit):
            if n_documents == unit.n_documents:
                return
            where = f"{unit.paths[0]}, row {n_documents}"
            _check_column(list(row), column, where)
            yield _text(row[column], column, where)
            n_documents += 1


def _rows_of(stream: Any, unit: Unit) -> Iterator[Any]:
    try:
        yield from stream
    except Exception as error:  # of any reader that the library has
        advice = "run the same command again, it continues here" if is_remote(unit.paths[0]) else "is the file whole?"
        raise DataError(
            f"cannot read {unit.paths[0]} ({type(error).__name__}: {one_line(error)[:300]}): {advice}"
        ) from error


def _check_column(found: Sequence[str], column: str, where: str) -> None:
    if column not in found:
        raise DataError(f"{where} has no column {column!r} (data.source.text), only {list(found)}")


def _text(value: Any, column: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is a {type(value).__name__}, expected a string")
    return value
