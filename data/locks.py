"""One process at a time: locks that end with their owner, also on file systems that have none."""

import errno
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
POLL_SECONDS = 1.0  # how often a waiting process looks
HEARTBEAT_SECONDS = 10.0  # how often an owner without flock shows that it lives
STALE_SECONDS = 120.0  # without a heartbeat, after which an owner counts as dead


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file path; waits while a live process holds it. what says in the log what for.

    With flock the system frees the lock when its owner ends, however it ends. Where the file system knows no flock
    (Lustre without -o flock, NFS without lockd) a second file, path + ".owner", names the owner, and its modification
    time is renewed while the owner lives. Limits of that: whoever follows an owner that was killed waits for
    STALE_SECONDS, unless on the same machine; an owner that was suspended for as long may find that another has taken
    its place; and of two that follow a dead owner, one suspended between two adjacent calls may not notice the other.

    Raises: OSError: if path cannot be written.
    """
    with path.open("a") as lock:
        try:
            _flock(lock.fileno(), path, what)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            log.warning("%s: the file system has no locks (%s); %s.owner tells the owner", path, error.strerror, path)
            with _owned(path.with_name(path.name + ".owner"), what):
                yield
        else:
            yield


def _flock(descriptor: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is %s (%s is locked): waiting for it", what, path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def _owned(file: Path, what: str) -> Iterator[None]:
    me = f"{socket.gethostname()} {os.getpid()} {_system()} {secrets.token_hex(8)}"
    _take(file, me, what)
    ended = threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(file, me, ended), name="lock heartbeat", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        ended.set()
        heartbeat.join()
        if _owner(file) == me:
            file.unlink(missing_ok=True)


def _take(file: Path, me: str, what: str) -> None:
    is_logged = False
    while not _created(file, me):
        owner = _owner(file)
        if owner is not None and _is_dead(file, owner):
            _succeed(file, owner, me)
            time.sleep(POLL_SECONDS)  # several may have found it dead; the last one's name stays
            if _owner(file) == me:
                return
        elif not is_logged:
            log.warning("another process is %s (%s: %s): waiting for it", what, file, owner)
            is_logged = True
        time.sleep(POLL_SECONDS)


def _succeed(file: Path, owner: str, me: str) -> None:
    mine = _beside(file)
    mine.write_text(me)
    if _owner(file) == owner:
        mine.replace(file)
    mine.unlink(missing_ok=True)


def _created(file: Path, me: str) -> bool:
    """Whether file was not there, and now names me."""
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as opened:
        opened.write(me)
    return True


def _owner(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _is_dead(file: Path, owner: str) -> bool:
    _, pid, system, *_ = [*owner.split(" "), "", "", ""]
    if system == _system() != "unknown" and pid.isdecimal() and not Path("/proc", pid).exists():
        return True
    clock = _beside(file)  # the file system's: clocks of hosts differ
    clock.touch()
    try:
        return clock.stat().st_mtime - file.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False
    finally:
        clock.unlink(missing_ok=True)


def _beat(file: Path, me: str, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            if _owner(file) != me:
                log.warning("%s names another owner: this process was taken for dead", file)
                return
            os.utime(file)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.{secrets.token_hex(8)}")


def _system() -> str:
    """Names this boot of this host and its process numbers, which containers do not share."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id}-{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"
