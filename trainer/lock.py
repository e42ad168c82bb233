"""Who uses a folder: one process at a time, found out also where the file system has no locks.

The lock file holds who has it. Where flock works, the system frees the lock when its owner ends, however it ends.
Some mounts of Lustre and NFS refuse flock. There the owner renews the time of the file owner beside the lock file every
BEAT_SECONDS, and one that has not for STALE_SECONDS counts as gone, on the same machine one whose process is gone at
once. Two processes that take over from the same dead owner within the same moment may then both believe they have it.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
BEAT_SECONDS, STALE_SECONDS = 15.0, 90.0
CLOCK_STEP_SECONDS = 2.0  # by which corrections of the clock shift when a process seems to have begun
NO_LOCKS = (
    "warning: the file system of %s has no file locks (%s); a time stamp that is renewed every %.0f s says instead "
    "that this process uses it"
)


class InUseError(ValueError):
    """A live process has the lock; the message names it."""


class Lock:
    """The lock of a file, held until release().

    Raises: InUseError: if another live process has it. OSError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._is_new = path, not path.exists()
        self._file, self._renewal = _taken(path)

    def sign(self) -> None:
        """Writes who has it into the file, for the message that others get."""
        with suppress(OSError):  # a full disk: then they are not told
            self._file.truncate(0)
            self._file.write(json.dumps(_myself()).encode())

    def release(self, *, leave_no_trace: bool = False) -> None:
        """Lets others have it; leave_no_trace: and deletes the file, if it was not there before."""
        if self._renewal is not None:
            self._renewal.end()
        if leave_no_trace and self._is_new:
            self._path.unlink(missing_ok=True)
        self._file.close()


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of the file; changes nothing."""
    try:
        with path.open("rb", buffering=0) as file:
            return not _flocked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return _is_alive(_owner_file(path), time.time())


class _Renewal:
    """A file of its own that says who has the lock, and when that was last true.

    Raises: InUseError: if another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if _is_alive(path, _now_in(path.parent)):
            raise InUseError(_words(_read(path)))
        path.unlink(missing_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:  # another process came first
            raise InUseError(_words(_read(path))) from None
        os.write(descriptor, json.dumps(_myself()).encode())
        os.close(descriptor)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Gives the lock up."""
        self._over.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)


def _taken(path: Path) -> tuple[FileIO, _Renewal | None]:
    """The open file, locked, and what stands for the lock where there are none."""
    while True:
        file = path.open("a+b", buffering=0)
        try:
            if not _flocked(file, fcntl.LOCK_EX):
                file.close()
                raise InUseError(_words(_read(path)))
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            log.warning(NO_LOCKS, path.parent, error.strerror, BEAT_SECONDS)
            return file, _Renewal(_owner_file(path))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, None
        file.close()  # its owner deleted it after this process had opened it


def _flocked(file: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(owner_file: Path, now: float) -> bool:
    """Whether the owner that the file names still is there."""
    try:
        age = now - owner_file.stat().st_mtime
    except FileNotFoundError:
        return False
    owner = _read(owner_file)
    if owner.get("host") != socket.gethostname():
        return age < STALE_SECONDS
    found, recorded = _started(owner.get("pid")), owner.get("started")
    return found is not None and isinstance(recorded, float) and abs(found - recorded) < CLOCK_STEP_SECONDS


def _now_in(folder: Path) -> float:
    """The time by the clock of the file system, which need not be this machine's."""
    probe = folder / f".{socket.gethostname()}-{os.getpid()}.clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def _started(pid: Any) -> float | None:
    """When the process of this number began, None if there is none: numbers are given again."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """Who the file says has the lock; nothing where that is unreadable."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _words(owner: dict[str, Any]) -> str:
    where = "" if owner.get("host") == socket.gethostname() else f" on {owner.get('host', 'an unknown machine')}"
    return f"process {owner.get('pid', 'unknown')}{where}"


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")
