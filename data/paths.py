"""Finds the files that match a pattern, every real file once."""

import errno
import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from data.errors import DataError
from files.errors import printable

log = logging.getLogger(__name__)

_MAGIC = re.compile(r"[*?\[]")


@dataclass
class Matches:
    """The files that match a pattern, each real file once, and what was left out."""

    files: list[str] = field(default_factory=list)  # sorted
    n_links: int = 0  # left out: symbolic and hard links to, and mounts of, files and folders that are in the list
    others: list[str] = field(default_factory=list)  # left out: pipes, devices, broken links, unexpected folders
    unlisted: list[str] = field(default_factory=list)  # folders that cannot be listed, with the reason

    def log_omissions(self) -> None:
        """Logs what was left out."""
        if self.n_links:
            log.warning("%d links to files and folders that are there already were left out", self.n_links)
        for found, what in ((self.others, "matches are no regular files"), (self.unlisted, "folders cannot be listed")):
            if found:
                log.warning("%d %s and were left out, first %s", len(found), what, printable(found[0]))


def find_files(pattern: Path) -> Matches:
    """Returns the files that match an expanded glob pattern; `**` is any number of folders.

    Unlike glob.glob it follows each link to a folder once, so that loops of links end. Of several names of one file it
    returns the first without a link, else the first. If nothing matches, it looks for a file of the pattern's name.
    """
    walk = _Walk(pattern)
    names = sorted(walk.names(), key=lambda name: (name.is_linked, name.path))
    if not names and os.path.lexists(pattern):
        names = [_Name(str(pattern), False)]
    result, seen = Matches(), set[object]()
    for name in names:
        status = _status(name.path)
        if status is None or not S_ISREG(status.st_mode):
            if status is None or not S_ISDIR(status.st_mode) or not walk.expects_folders:
                result.others.append(name.path)
            continue
        real = {number_of(status), walk.real(name)}
        if real & seen:
            result.n_links += 1
            continue
        seen |= real
        result.files.append(name.path)
    result.files.sort()
    result.n_links += len(walk.known_links)
    result.unlisted = [f"{folder} ({reason})" for folder, reason in walk.unlisted.items()]
    return result


def number_of(status: os.stat_result) -> object:
    """Returns what identifies a file under any path, such as in a folder that is mounted twice.

    Some network file systems give one number to many files, so times are compared, too, unless it has hard links.
    """
    number = (status.st_dev, status.st_ino)
    return number if status.st_nlink > 1 else (*number, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _status(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise DataError(f"cannot look at {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Name:
    """A path, and whether it contains a link after the part of the pattern without wildcards."""

    path: str
    is_linked: bool


class _Walk:
    """Lists folders, linked ones last, each once for every remainder of the pattern that is matched in it."""

    def __init__(self, pattern: Path) -> None:
        parts = [*pattern.parts, *(["*"] if pattern.name == "**" else [])]
        n_fixed = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), max(len(parts) - 1, 0))
        self._base, self._parts = str(Path(*parts[:n_fixed])) if n_fixed else "", parts[n_fixed:]
        self._real_base = os.path.realpath(self._base)
        self.expects_folders = bool(parts) and parts[-1] in {"*", "*.*"}
        self.unlisted: dict[str, str] = {}  # folders, with the reason
        self.known_links: set[str] = set()  # links to folders that had been listed

    def real(self, name: _Name) -> str:
        """Returns the path with links resolved."""
        if name.is_linked:
            return os.path.realpath(name.path)
        return os.path.normpath(self._real_base + "/" + name.path[len(self._base) :])

    def names(self) -> Iterator[_Name]:
        """Yields everything that matches the pattern."""
        direct = deque([(_Name(self._base, False), 0)] if self._parts else [])
        behind_links = deque[tuple[_Name, int]]()
        seen = set()
        while direct or behind_links:
            folder, i = (direct or behind_links).popleft()
            if (key := (self.real(folder), i)) in seen:
                if folder.is_linked:
                    self.known_links.add(folder.path)
                continue
            seen.add(key)
            for entry, j in self._step(folder, i):
                if j == len(self._parts):
                    yield entry
                else:
                    (behind_links if entry.is_linked else direct).append((entry, j))

    def _step(self, folder: _Name, i: int) -> Iterator[tuple[_Name, int]]:
        """Yields what in folder matches part i of the pattern, each with the index of the part to match next."""
        part, is_last = self._parts[i], i + 1 == len(self._parts)
        if part == "**":
            yield folder, i + 1
            yield from ((name, i) for name, is_folder in self._entries(folder, "*") if is_folder)
        elif _MAGIC.search(part):
            yield from ((name, i + 1) for name, is_folder in self._entries(folder, part) if is_folder or is_last)
        else:
            path = str(Path(folder.path, part))
            if os.path.lexists(path) if is_last else Path(path).is_dir():
                yield _Name(path, folder.is_linked or Path(path).is_symlink()), i + 1

    def _entries(self, folder: _Name, part: str) -> Iterator[tuple[_Name, bool]]:
        """Yields what matches part in folder, and whether it is a folder; hidden files only match a leading dot."""
        try:
            with os.scandir(folder.path or ".") as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.unlisted[folder.path] = str(error.strerror)
            return
        for entry in entries:
            if fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                path, is_link = os.path.join(folder.path, entry.name), entry.is_symlink()  # noqa: PTH118  # "" is a folder
                is_folder = Path(path).is_dir() if is_link else entry.is_dir()
                yield _Name(path, folder.is_linked or is_link), is_folder
