"""Finds out whether the files that a data set was made from still have the same content.

source_files.jsonl has a line for every file, in the documents' order: path, size, stamp (modification time, change
time and inode), sha256. A file with the recorded size and stamp is not read again; one with another stamp is hashed,
so a corpus may be copied, restored or renamed. verified.json records the stamps of files that were found unchanged.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import verified
from data.errors import DataError, MissingSource
from data.hashing import in_threads, sha256_of
from data.metadata import want
from data.shards import read_meta
from files.errors import printable
from files.reading import parse_object
from files.writing import write_bytes

if TYPE_CHECKING:
    from data.source import DataSource

log = logging.getLogger(__name__)

FILE = "source_files.jsonl"
LONGEST_LINE = 1 << 16  # bytes: a path has 4096 at most
# The resolution of a file system's times may be this coarse (FAT), so that a second edit does not change them.
TICK_NS = 2_000_000_000
MACHINES = 16  # whose stamps are recorded
TRAINING_READS = 1_000_000_000  # bytes of source files, at most, that a training run compares


@dataclass(frozen=True, slots=True)
class Status:
    """What the file system says about a file."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """What identifies an unchanged file; None if the file is so new that another edit need not change it."""
        is_old = max(self.mtime_ns, self.ctime_ns) < time.time_ns() - TICK_NS
        return (self.mtime_ns, self.ctime_ns, self.inode) if is_old else None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source file when it was read."""

    path: str
    size: int
    stamp: Sequence[int] | None
    sha256: str


def look(path: str) -> Status:
    """Returns the file's status.

    Raises: DataError: if it cannot be read.
    """
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DataError(f"cannot look at {path} ({error.strerror}): make it readable, or leave it out") from error
    return Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def digest(files: Iterable[object]) -> str:
    """Returns one sha256 of the representations of all items."""
    result = hashlib.sha256()
    for file in files:
        result.update(f"{file!r}\n".encode("utf-8", "backslashreplace"))
    return result.hexdigest()


def hashed(path: str, planned: Status) -> SourceFile:
    """Returns the file with its hash, after its documents were read.

    planned: its status before. Raises: DataError: if it has changed since, so that it is unknown what was read.
    """
    try:
        sha256 = sha256_of(Path(path))
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): make it readable, or leave it out") from error
    return seen(path, planned, sha256)


def seen(path: str, planned: Status, sha256: str) -> SourceFile:
    """As hashed, for a file whose sha256 is known from reading it."""
    now = look(path)
    # The change time is not compared: it also changes with links and permissions, which do not matter here.
    if (now.size, now.mtime_ns, now.inode) != (planned.size, planned.mtime_ns, planned.inode):
        raise DataError(
            f"{path} changed while it was read: run the same command again when no other program writes to it"
        )
    return SourceFile(path, now.size, now.stamp, sha256)


def write(folder: Path, files: Sequence[SourceFile]) -> dict[str, Any] | None:
    """Writes source_files.jsonl; returns its entry in dataset.json, None for a source without files."""
    if not files:
        return None
    write_bytes(folder / FILE, b"".join(json.dumps(asdict(file)).encode() + b"\n" for file in files))
    _remember(folder, [(file.size, file.stamp) for file in files])
    return {"n_files": len(files), "n_bytes": sum(file.size for file in files), "sha256": _content_digest(files)}


def difference(source: "DataSource", folder: Path, *, max_bytes: int | None = None) -> str | None:
    """Returns how the source's files differ from those that the data set in folder was made from; None if not.

    None, too, for a source without files. Reads at most max_bytes of them.

    Raises: MissingSource: if none of them are on this machine. DataError: if they cannot be read, or have more bytes.
    """
    recorded = read_meta(folder).get("source_files")
    if recorded is None or not (paths := source.files()):
        return None
    if recorded["n_files"] != len(paths):
        return f"{recorded['n_files']:,} files then, {len(paths):,} now"
    now = [(path, look(path)) for path in paths]
    marks = [(status.size, status.stamp) for _, status in now]
    if digest(marks) in _known(folder):
        return None
    unsure = []
    for (path, status), then in zip(now, _read(folder, recorded), strict=True):
        if status.size != then.size or Path(path).suffix != Path(then.path).suffix:
            return f"the first is {path}"
        if then.stamp is None or status.stamp != tuple(then.stamp):
            unsure.append((path, then.sha256, then.size))
    n_bytes = sum(size for _, _, size in unsure)
    if max_bytes is not None and n_bytes > max_bytes:
        raise DataError(
            f"their times have changed and comparing {n_bytes / 1e9:.1f} GB takes long: prepare_data.py does"
        )
    with in_threads(lambda known: sha256_of(Path(known[0])), unsure) as found:
        for (path, then_sha256, _), now_sha256 in zip(unsure, found, strict=True):
            if now_sha256 != then_sha256:
                return f"the first is {path}"
    _remember(folder, marks)
    return None


def warn_if_changed(source: "DataSource", folder: Path) -> None:
    """Logs one line if the source's files have changed since the data set in folder was prepared.

    Logs nothing if the files are not on this machine, or if opening the data set says what is wrong: it is missing or
    damaged, or its tokens lie in these files. Never fails.
    """
    prepared = f"the files of data={source.name} have changed since {folder} was prepared"
    try:
        if _is_said_on_opening(source, folder):
            return
        change = difference(source, folder, max_bytes=TRAINING_READS)
    except MissingSource:
        return
    except (DataError, OSError) as error:
        log.warning("%s", printable(f"cannot tell whether {prepared}: {error}"))
        return
    if change is not None:
        log.warning("%s", printable(f"{prepared} ({change}): training on the data set as it was prepared"))


def _is_said_on_opening(source: "DataSource", folder: Path) -> bool:
    """Whether the data set is missing or damaged, or the source's files are those that hold its tokens."""
    try:
        meta = read_meta(folder)
    except DataError:
        return True
    if not meta.get("in_place") or (recorded := meta.get("source_files")) is None:
        return False
    return list(source.files()) == [file.path for file in _read(folder, recorded)]


def _known(folder: Path) -> list[str]:
    """Digests of the stamps of unchanged files: several, as every machine may have its own copy."""
    known = verified.stamps(folder).get(FILE)
    return known if isinstance(known, list) else []


def _remember(folder: Path, marks: Sequence[tuple[int, Sequence[int] | None]]) -> None:
    if all(stamp for _, stamp in marks):
        verified.remember(folder, {FILE: [*_known(folder)[1 - MACHINES :], digest(marks)]})


def _read(folder: Path, recorded: Mapping[str, Any]) -> list[SourceFile]:
    """Returns the files that source_files.jsonl lists.

    Raises: DataError: if they are not those that dataset.json counts.
    """
    try:
        with (folder / FILE).open("rb") as lines:
            files = [
                _parsed(line) for line in islice(iter(lambda: lines.readline(LONGEST_LINE), b""), recorded["n_files"])
            ]
        if len(files) != recorded["n_files"] or _content_digest(files) != recorded["sha256"]:
            raise ValueError("it does not list the files that dataset.json counts")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / FILE} is damaged ({error}): delete the folder and prepare it again") from error
    return files


def _parsed(line: bytes) -> SourceFile:
    found = parse_object(line, "a line of it")
    stamp = None if found.get("stamp") is None else want(found["stamp"], list, "stamp")
    path, sha256 = (want(found.get(key), str, key) for key in ("path", "sha256"))
    return SourceFile(path, want(found.get("size"), int, "size"), stamp, sha256)


def _content_digest(files: Iterable[SourceFile]) -> str:
    """A digest of the contents alone: it does not depend on where the files are."""
    return digest((Path(file.path).suffix, file.sha256) for file in files)
