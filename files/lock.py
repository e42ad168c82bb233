"""Locks a file, so that one process at a time uses a folder, also on file systems without locks.

Where flock works, the system releases the lock when its owner ends, however it ends. Some mounts of Lustre and NFS
refuse flock. There a second file, <name>.owner, names the owner, which renews the file's time every RENEW_SECONDS. An
owner counts as gone if it has not done so for STALE_SECONDS; on the same machine, as soon as its process has ended. The
limits of this: an owner that was suspended for so long may lose the lock to another process; and if two processes take
over from an owner that is gone, and one is suspended between two adjacent calls, both may believe that they own it.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

import psutil

from files.errors import ReadingError
from files.reading import opened

log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
RENEW_SECONDS, STALE_SECONDS = 15.0, 90.0
POLL_SECONDS = 0.5  # how often a waiting process tries again
READER_SECONDS, READER_POLL_SECONDS = 0.25, 0.005  # in which is_held() of other processes has released the lock
SETTLING_SECONDS = 1.0  # in which all processes that take over have written the owner file
CLOCK_STEP_SECONDS = 2.0  # by which clock corrections may change a process's start time
NO_LOCKS = (
    "warning: the file system of %s has no file locks (%s); a time stamp that is renewed every %.0f s says instead "
    "that this process uses it"
)


class InUseError(ValueError):
    """Raised if a live process holds the lock; the message names it."""


class Lock:
    """Locks a file until release().

    Raises: InUseError: if another live process holds the lock. OSError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._is_new = path, not path.exists()
        self._file, self._claim = _taken(path)

    def sign(self) -> None:
        """Writes this process's name into the file, for the message of InUseError."""
        with suppress(OSError):  # a full disk: then the message lacks the name
            self._file.truncate(0)
            self._file.write(json.dumps(_myself()).encode())

    def release(self, *, leave_no_trace: bool = False) -> None:
        """Releases the lock. leave_no_trace: also deletes the file if it did not exist before."""
        if self._claim is not None:
            self._claim.end()
        if leave_no_trace and self._is_new:
            self._path.unlink(missing_ok=True)
        self._file.close()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Locks the file while entered; waits while a live process holds the lock. what: in the log, what it is doing.

    Raises: OSError: if the file cannot be written.
    """
    lock = _waited_for(path, what)
    lock.sign()
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of the file; writes nothing."""
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


def holder(path: Path) -> str | None:
    """Returns the live process that holds the lock of the file, "process 7 on a-machine"; None if there is none."""
    if not is_held(path):
        return None
    owner = _read(path)
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown machine')}"


def lock_while_open(file: FileIO | IO[Any]) -> bool:
    """Locks a file for as long as this process, or one that inherits the open file, lives and does not close it.

    False if another process has locked it; true also for what is no regular file, or where there are no locks.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return True
    try:
        return _flocked_at_last(file)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return True


class _Claim:
    """A file that names the owner where there is no flock; its time is when the owner was last alive.

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
        """Releases the lock."""
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
        """Takes over from an owner that is gone."""
        owner, mine = _read(self._path), self._path.with_name(f"{self._path.name}.{self._me['token']}")
        if _is_alive(self._path, owner, _now_in(mine)):
            raise InUseError(_describe(owner))
        mine.write_text(json.dumps(self._me))
        if _read(self._path) == owner:
            mine.replace(self._path)
        mine.unlink(missing_ok=True)
        time.sleep(SETTLING_SECONDS)  # several may take over; the last one to write the file is the owner
        if (found := _read(self._path)) != self._me:
            raise InUseError(_describe(found))

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
    """The locked file, and the claim that replaces the lock where there is no flock."""
    while True:
        file = FileIO(path, "a+", opener=_opened_itself)
        try:
            if not _flocked_at_last(file):
                file.close()
                raise InUseError(_describe(_read(path)))
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            claim = _Claim(_owner_file(path))
            log.warning(NO_LOCKS, path.parent, error.strerror, RENEW_SECONDS)
            return file, claim
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, None
        file.close()  # the owner deleted it after this process had opened it


def _opened_itself(path: str, flags: int) -> int:
    """Opens the file, but never the target of a symbolic link: the owner's name would replace its content."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _flocked_at_last(file: FileIO | IO[Any]) -> bool:
    """Takes the lock, and whether that was possible; tries for a moment, as is_held() of others may hold it."""
    until = time.monotonic() + READER_SECONDS
    while not (is_mine := _flocked(file, fcntl.LOCK_EX)) and time.monotonic() < until:
        time.sleep(READER_POLL_SECONDS)
    return is_mine


def _flocked(file: FileIO | IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(owner_file: Path, owner: dict[str, Any], now: float) -> bool:
    """Whether the owner that the file names still runs."""
    try:
        age = now - owner_file.stat().st_mtime
    except FileNotFoundError:
        return False
    if owner.get("system") != _system():
        return age < STALE_SECONDS
    found, recorded = _started(owner.get("pid")), owner.get("started")
    return found is not None and isinstance(recorded, float) and abs(found - recorded) < CLOCK_STEP_SECONDS


def _now_in(probe: Path) -> float:
    """The time of the file system's clock, which may differ from this machine's. probe: a file to create for that."""
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "system": _system(), "started": _started(pid)}


def _system() -> str:
    """Identifies this start of the machine and its process namespace, as containers number processes anew."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: Any) -> float | None:
    """When the process of this number started, None if there is none: numbers are used again."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """The owner that the file names; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _describe(owner: dict[str, Any]) -> str:
    where = "" if owner.get("host") == socket.gethostname() else f" on {owner.get('host', 'an unknown machine')}"
    return f"process {owner.get('pid', 'unknown')}{where}"


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")
