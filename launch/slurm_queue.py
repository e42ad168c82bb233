"""What SLURM says of its partitions and of the user's jobs; every call is one short command of SLURM's."""

import getpass
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from configs import ConfigError

ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
OF_ONE_MACHINE = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")  # file systems


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
    """The user's jobs, asked for at most every few seconds."""

    def __init__(self, seconds: float = 3.0) -> None:
        self._seconds, self._asked, self._jobs = seconds, -seconds, dict[str, QueuedJob]()

    def job(self, job_id: str) -> QueuedJob | None:
        """The job, as 12 or 12_3; None if it has ended."""
        if time.monotonic() - self._asked >= self._seconds:
            self.refresh()
        return self._jobs.get(job_id)

    def refresh(self) -> None:
        """Asks now. If SLURM does not answer, what it said last stays."""
        asked = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%N"]
        self._asked = time.monotonic()
        try:
            listed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
        except (subprocess.SubprocessError, OSError):
            return
        rows = [line.split("|", 3) for line in listed.splitlines() if line.count("|") >= 3]
        self._jobs = {job: QueuedJob(*rest) for job, *rest in rows if rest[0] not in ENDED}


def partitions() -> list[Partition]:
    """Every kind of node of every partition. Raises: ConfigError: if there is no SLURM here, or it does not answer."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        raise ConfigError(
            "launch=slurm: there is no SLURM here (no sbatch on the PATH): run this on a login node, or without launch="
        )
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%P|%D|%c|%G|%l"], capture_output=True, text=True, check=True, timeout=60
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["nothing"]
        raise ConfigError(f"launch=slurm: SLURM does not answer; sinfo says: {said[-1]}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError("launch=slurm: sinfo has not answered for a minute; try again when SLURM does") from None
    return [_partition(line) for line in done.stdout.splitlines() if line.count("|") == 4]


def can_see(folder: Path, partition: str, options: Sequence[str]) -> bool | None:
    """Whether the partition's nodes have the folder; None if that is not known.

    A network file system counts as seen. For another one, unless all nodes are this machine, a task of a minute looks,
    if SLURM has room for it within half a minute. options: of srun, such as the account.
    """
    if _file_system(folder) not in OF_ONE_MACHINE or _hosts(partition) <= {socket.gethostname().partition(".")[0]}:
        return True
    asked = ["srun", "--immediate=30", "--ntasks=1", "--time=1", f"--partition={partition}", *options]
    try:
        status = subprocess.run([*asked, "test", "-d", str(folder)], check=False, capture_output=True, timeout=120)
    except (subprocess.TimeoutExpired, OSError):
        return None
    said_no = status.returncode == 1 and b"Unable to allocate" not in status.stderr
    return True if status.returncode == 0 else False if said_no else None


def _file_system(folder: Path) -> str:
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[str(path)] for path in (folder, *folder.parents) if str(path) in mounts), "")


def _hosts(partition: str) -> set[str]:
    asked = ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%n"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout
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
