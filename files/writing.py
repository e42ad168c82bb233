"""Writes files so that after a crash or on a full disk they are complete, or as they were before."""

import errno
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file at path by content, atomically and durably; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Returns the value, with None for every number in it that is not finite: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, content: str) -> None:
    """Replaces the file at path by content, as write_bytes does."""
    write_bytes(path, content.encode())


def write_between(path: Path, begin: str, end: str, content: str) -> bool:
    """Replaces what stands between begin and end in the UTF-8 file at path; returns whether it has them."""
    before, has_begin, rest = path.read_text("utf-8").partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        return False
    write_text(path, f"{before}{begin}{content}{end}{after}")
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file at path by content, atomically and durably; on a full disk it uses what reserve() reserved.

    Raises: OSError: if the file cannot be written; it is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write the same file
    try:
        _write(temporary, content, "wb")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in FULL or not _reserved(path).is_file():
            raise
        _write(_reserved(path), content, "r+b")
        _reserved(path).replace(path)
    _reserved(path).unlink(missing_ok=True)
    fsync_folder(path.parent)


def reserve(path: Path, n_bytes: int) -> None:
    """Reserves disk space for a later write of up to n_bytes to path.

    Raises: OSError: if there is not enough; nothing is reserved then.
    """
    try:
        _write(_reserved(path), b" " * n_bytes, "wb")
    except OSError:
        release(path)
        raise


def release(path: Path) -> None:
    """Frees the disk space that was reserved for path, if any."""
    with suppress(OSError):
        _reserved(path).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Deletes unfinished files of killed processes in a folder; only the one process that writes may call this."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink()


def fsync(path: Path) -> None:
    """Waits until the content of a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Waits until the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reserved(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")


def _write(path: Path, content: bytes, mode: str) -> None:
    with path.open(mode) as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
