"""Opens files to read bytes: local ones, those on the Hugging Face hub, and compressed ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import DataError

CODECS = {".gz": "gzip", ".zst": "zstd"}


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Yields the file, opened to read bytes; those of a compressed one decompressed."""
    if is_remote(path):
        import fsspec  # type: ignore[import-untyped]  # ships no types; comes with datasets, opens hf:// paths

        with fsspec.open(path, "rb") as file:
            yield file
        return
    try:
        with Path(path).open("rb") as file:
            yield _decompressed(file, CODECS[Path(path).suffix]) if is_compressed(path) else file
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> DataError:
    """Returns the error for a file that cannot be read."""
    if is_compressed(path) and error.errno is None:
        return DataError(f"{path} is damaged or not compressed as its name says ({error}): fetch or write it again")
    return DataError(f"cannot read {path} ({error.strerror or error}): make it readable, or leave it out")


def is_remote(path: str) -> bool:
    """Whether the path is an address on the hub."""
    return path.startswith("hf://")


def is_compressed(path: str) -> bool:
    """Whether the path ends in .gz or .zst."""
    return Path(path).suffix in CODECS


def uncompressed_name(path: str) -> str:
    """Returns the path without .gz or .zst at its end."""
    return path.removesuffix(Path(path).suffix) if is_compressed(path) else path


def _decompressed(file: Any, codec: str) -> Any:
    import io

    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), codec))
