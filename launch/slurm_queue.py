"""What SLURM says of its partitions and of the user's jobs; every call is one short command of SLURM's."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from configs import ConfigError
from files.errors import shown

ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
OF_ONE_MACHINE = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")  # file systems

OF_SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # variables that say where SLURM is, and who the user is
# Variables that win over what a batch script says of the same options.
OF_SBATCH = tuple(
    f"SBATCH_{name}"
    for name in (
        *("PARTITION", "ACCOUNT", "QOS", "TIMELIMIT", "SIGNAL", "ARRAY_INX", "JOB_NAME"),
        *("OPEN_MODE", "REQUEUE", "NO_REQUEUE"),
    )
)


class QueuedJob(NamedTuple):
    """A job that waits or runs. state: as SLURM names it. reason: why it waits. nodes: where it runs."""

    state: str
    reason: str
    nodes: str


class Partition(NamedTuple):
    """Nodes of one kind of a partition."""

    name: str
    is_default: bool
    nodes: int
    cpus: int  # of a node
    gpus: int  # of a node
    minutes: float  # the longest that a job may ask for; infinite without a limit


class Queue:
    """The user's jobs, asked for at most every few seconds.

    error: why SLURM has not answered the last time, empty if it has. answered: when it has, by time.monotonic().
    """

    def __init__(self, seconds: float = 3.0) -> None:
        self.error, self.answered = "", -math.inf
        self._seconds, self._asked, self._jobs = seconds, -math.inf, dict[str, QueuedJob]()

    def job(self, job_id: str) -> QueuedJob | None:
        """The job, as 12 or 12_3; None if it has ended, or SLURM has not answered yet."""
        if self._is_due():
            self.refresh()
        return self._jobs.get(job_id)

    def answers(self) -> bool:
        """Whether SLURM does; asks again if it did not."""
        if self.error and self._is_due():
            self.refresh()
        return not self.error

    def refresh(self) -> None:
        """Asks now. If SLURM does not answer, what it said last stays."""
        try:
            # By number: a login name in the environment may be that of another user.
            listed = said("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r|%N")
        except ConfigError as error:
            self.error = str(error)
        else:
            self.error, self.answered = "", time.monotonic()
            rows = [line.split("|", 3) for line in listed.splitlines() if line.count("|") >= 3]
            self._jobs = {job: QueuedJob(*rest) for job, *rest in rows if rest[0] not in ENDED}
        self._asked = time.monotonic()  # it may have taken a minute

    def _is_due(self) -> bool:
        return time.monotonic() - self._asked >= self._seconds


def partitions() -> list[Partition]:
    """Every kind of node of every partition. Raises: ConfigError: if there is no SLURM here, or it does not answer."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        raise ConfigError(
            "launch=slurm: there is no SLURM here (no sbatch on the PATH): run this on a login node, or without launch="
        )
    listed = said("sinfo", "--noheader", "--format=%P|%D|%c|%G|%l")
    found: list[Partition] = []
    for line in listed.splitlines():
        with suppress(ValueError):  # a line that a site adds
            found.append(_partition(line))
    if not found:
        raise ConfigError(
            f"launch=slurm: sinfo lists no partition; it says {shown(' '.join(listed.split())) or 'nothing'}"
        )
    return found


def can_see(folder: Path, partition: str, options: Sequence[str]) -> bool | None:
    """Whether the partition's nodes have the folder; None if that is not known.

    A network file system counts as seen. For another one, unless all nodes are this machine, a task of a minute looks,
    if SLURM has room for it within half a minute. options: of srun, such as the account.
    """
    if _file_system(folder) not in OF_ONE_MACHINE:
        return True
    asked = ["--immediate=30", "--ntasks=1", "--time=1", f"--partition={partition}", *options]
    looks = ["sh", "-c", 'test -d "$0" && echo seen || echo absent', str(folder)]
    try:
        if _hosts(partition) == {socket.gethostname().partition(".")[0]}:
            return True
        found = said("srun", *asked, *looks, seconds=120).split()
    except ConfigError:
        return None
    return True if "seen" in found else False if "absent" in found else None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps from the commands that are started what would change what they do.

    These are variables of a job that this process may be in, and Ctrl-C, which would end sbatch when it may have
    submitted: this process gets it afterwards.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _sets_options(name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        os.environ.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def said(command: str, *arguments: str, seconds: float = 60) -> str:
    """What a command of SLURM's prints. Raises: ConfigError: if it fails, or takes so long."""
    environment = {name: value for name, value in os.environ.items() if not _sets_options(name)}
    try:
        done = subprocess.run(
            [command, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"launch=slurm: {command} has not answered for {seconds:g} s; try again when SLURM does"
        ) from None
    except OSError as error:
        raise ConfigError(f"launch=slurm: {command} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"nothing, and ends with exit status {done.returncode}"])[-1]
        raise ConfigError(f"launch=slurm: {command} says {shown(last)}")
    return done.stdout


def _sets_options(name: str) -> bool:
    """Whether an environment variable would change what is asked of SLURM's commands here."""
    return name in OF_SBATCH or (name.startswith(("SLURM_", "SRUN_", "SQUEUE_", "SINFO_")) and name not in OF_SITE)


def _file_system(folder: Path) -> str:
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[str(path)] for path in (folder, *folder.parents) if str(path) in mounts), "")


def _hosts(partition: str) -> set[str]:
    listed = said("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%n")
    return {name.partition(".")[0] for name in listed.split()}


def _partition(line: str) -> Partition:
    name, nodes, cpus, gres, limit = line.split("|")
    counts = [_gpus(each) for each in gres.split(",") if each.startswith("gpu")]
    return Partition(
        name.rstrip("*"), name.endswith("*"), int(nodes), int(cpus.rstrip("+")), sum(counts), _minutes(limit)
    )


def _minutes(limit: str) -> float:
    """The number in 30:00, 12:00:00 or 2-00:00:00; infinite for any other text, such as infinite."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)):
        return math.inf
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def _gpus(gres: str) -> int:
    """The number in gpu:8, gpu:h100:8 or gpu:h100:8(S:0-1)."""
    count = gres.partition("(")[0].rpartition(":")[2]
    return int(count) if count.isdecimal() else 1
