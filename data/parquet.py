"""Reads the text column of .parquet files, local or on the hub; start and stop of a unit are row groups."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

from data.descriptors import descriptor_budget
from data.errors import DataError
from data.opening import is_remote, opened
from data.source import MEGABYTE, Unit, unit_bytes
from data.text import decoded


def parquet_units(paths: Sequence[str], column: str) -> list[Unit]:
    """Returns the units of files, which know how many documents they have; reads the footers."""
    with ThreadPoolExecutor(min(8, descriptor_budget())) as pool:  # the footers of 80 remote files, not one by one
        return [unit for units in pool.map(lambda path: _row_group_units(path, column), paths) for unit in units]


def _row_group_units(path: str, column: str) -> list[Unit]:
    with _parquet(path) as parquet:
        metadata = parquet.metadata
        _check_column(path, parquet.schema_arrow, column)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes = [_text_bytes(group, column) for group in groups]
    target = 64 * MEGABYTE if is_remote(path) else unit_bytes(sum(sizes))  # a remote unit costs a few requests
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


def parquet_texts(unit: Unit, column: str) -> Iterator[str | None]:
    """Yields the texts of a unit, None for a row without text."""
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
        with opened(path) as file:
            yield pq.ParquetFile(file)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, fsspec's, or one of the hub client's libraries'
        raise DataError(
            f"cannot read {path} ({type(error).__name__}: {error}): "
            + ("run the same command again, it continues here" if is_remote(path) else "is it a .parquet file?")
        ) from error
