"""Who uses a folder: one process at a time, found out also where the file system has no locks.

Where flock works, the system frees the lock when its owner ends, however it ends. Some mounts of Lustre and NFS refuse
flock. There a second file, with .owner at the end of its name, names the owner, who renews its time every
RENEW_SECONDS. One that has not for STALE_SECONDS counts as gone, one on the same machine as soon as its process is. So
an owner that was suspended for as long may find that another has taken its place; and of two that follow a dead owner,
one that is suspended between two adjacent calls may not notice the other.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from files.errors import ReadingError
from files.reading import opened

log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
RENEW_SECONDS, STALE_SECONDS = 15.0, 90.0
POLL_SECONDS = 0.5  # how often a waiting process looks
READER_SECONDS, READER_POLL_SECONDS = 0.25, 0.005  # in which all that only look at a lock have left it again
SETTLING_SECONDS = 1.0  # in which all that found an owner dead have written their names
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
        self._file, self._claim = _taken(path)

    def sign(self) -> None:
        """Writes who has it into the file, for the message that others get."""
        with suppress(OSError):  # a full disk: then they are not told
            self._file.truncate(0)
            self._file.write(json.dumps(_myself()).encode())

    def release(self, *, leave_no_trace: bool = False) -> None:
        """Lets others have it; leave_no_trace: and deletes the file, if it was not there before."""
        if self._claim is not None:
            self._claim.end()
        if leave_no_trace and self._is_new:
            self._path.unlink(missing_ok=True)
        self._file.close()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock of the file; waits while a live process has it. what: says in the log what for.

    Raises: OSError: if the file cannot be written.
    """
    lock = _waited_for(path, what)
    lock.sign()
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of the file; changes nothing."""
    try:
        file = opened(path)
    except ReadingError:
        return False
    if file is None:
        return False
    try:
        with file:
            return not _flocked(file, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        owner_file = _owner_file(path)
        return _is_alive(owner_file, _read(owner_file), time.time())


class _Claim:
    """A file that names the owner, where there is no flock; its time says when that was last true.

    Raises: InUseError: if another process is the owner.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._me = path, {**_myself(), "token": secrets.token_hex(8)}
        if not self._created():
            self._succeed()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Gives the lock up."""
        self._over.set()
        self._thread.join()
        if _read(self._path) == self._me:
            self._path.unlink(missing_ok=True)

    def _created(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(self._me))
        return True

    def _succeed(self) -> None:
        """Takes the place of an owner that is gone."""
        owner, mine = _read(self._path), self._path.with_name(f"{self._path.name}.{self._me['token']}")
        if _is_alive(self._path, owner, _now_in(mine)):
            raise InUseError(_words(owner))
        mine.write_text(json.dumps(self._me))
        if _read(self._path) == owner:
            mine.replace(self._path)
        mine.unlink(missing_ok=True)
        time.sleep(SETTLING_SECONDS)  # several may have found it gone; the name of the last one stays
        if (found := _read(self._path)) != self._me:
            raise InUseError(_words(found))

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(OSError):
                if _read(self._path) != self._me:
                    log.warning("warning: %s names another owner: this process was taken for gone", self._path)
                    return
                os.utime(self._path)


def _waited_for(path: Path, what: str) -> Lock:
    is_told = False
    while True:
        try:
            return Lock(path)
        except InUseError as owner:
            if not is_told:
                log.warning("another process is %s (%s has %s): waiting for it", what, owner, path)
                is_told = True
        time.sleep(POLL_SECONDS)


def _taken(path: Path) -> tuple[FileIO, _Claim | None]:
    """The open file, locked, and what stands for the lock where there are none."""
    while True:
        file = FileIO(path, "a+", opener=_opened_itself)
        try:
            if not _flocked_at_last(file):
                file.close()
                raise InUseError(_words(_read(path)))
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            claim = _Claim(_owner_file(path))
            log.warning(NO_LOCKS, path.parent, error.strerror, RENEW_SECONDS)
            return file, claim
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, None
        file.close()  # its owner deleted it after this process had opened it


def _opened_itself(path: str, flags: int) -> int:
    """Not what a symbolic link leads to: the owner's name would replace its content."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _flocked_at_last(file: FileIO) -> bool:
    """Whether the lock was to be had; readers that look at it (is_held) hold it for a moment."""
    until = time.monotonic() + READER_SECONDS
    while not (is_mine := _flocked(file, fcntl.LOCK_EX)) and time.monotonic() < until:
        time.sleep(READER_POLL_SECONDS)
    return is_mine


def _flocked(file: FileIO | BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(owner_file: Path, owner: dict[str, Any], now: float) -> bool:
    """Whether the owner that the file names still is there."""
    try:
        age = now - owner_file.stat().st_mtime
    except FileNotFoundError:
        return False
    if owner.get("system") != _system():
        return age < STALE_SECONDS
    found, recorded = _started(owner.get("pid")), owner.get("started")
    return found is not None and isinstance(recorded, float) and abs(found - recorded) < CLOCK_STEP_SECONDS


def _now_in(probe: Path) -> float:
    """The time by the clock of the file system of probe, a file to be; it need not be this machine's."""
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "system": _system(), "started": _started(pid)}


def _system() -> str:
    """Names this machine since its last start, and its process numbers, which containers do not share."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: Any) -> float | None:
    """When the process of this number began, None if there is none: numbers are given again."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, TypeError, ValueError, OverflowError):
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
