"""Starts train.py as a process: its command, its cores and devices, its log, and how it ended."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import override

from configs import ConfigError, ReadingError
from files.lock import lock_while_open
from launch import run_files
from launch.launcher import Ending, Running
from launch.statuses import EXIT_STATUS

TRAIN = Path(__file__).parents[1] / "train.py"
GRACE_SECONDS = 120.0  # in which a process ends its step and saves

# Asks Linux to end this process with its parent (PR_SET_PDEATHSIG = 1), then becomes the command, which does not heed
# SIGUSR2: SLURM sends it to all of a job's processes, and it is for submitit's alone. This is no preexec_fn, as that
# may deadlock if the parent has threads.
TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(75)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Process(Running):
    """A running train.py, in a session of its own, so that Ctrl-C reaches the caller alone.

    overrides: those of the run in run_dir. ranks: started under torchrun if > 1. environment: variables set in addition
    to the caller's. Output goes to log_path(run_dir), which is locked until the process ends, but for ranks beside the
    first that others start (is_first=False).

    Raises: OSError: if it cannot be started; BlockingIOError: as another command has started it.
    """

    def __init__(
        self,
        script: Path,
        overrides: Sequence[str],
        run_dir: Path,
        *,
        ranks: int,
        environment: Mapping[str, str],
        is_first: bool = True,
    ) -> None:
        self._run_dir, self._log, self._began = run_dir, log_path(run_dir), time.monotonic()
        self.note = f"log {self._log}"
        self._before = stamp(run_dir)
        command = [*_command(script, ranks), *overrides]
        tied = [sys.executable, "-I", "-S", "-c", TIED_TO_PARENT, str(os.getpid())] if sys.platform == "linux" else []
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Opening a FIFO in its place fails, and does not wait.
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        # Locked until the process ends, to show the run before it has its directory; NFS locks for writing alone.
        with os.fdopen(descriptor, "ab", buffering=0) as log, FileIO(self._log, "a") as lock:
            if is_first and not lock_while_open(lock):
                raise BlockingIOError(errno.EAGAIN, "another command has just started the run", str(self._log))
            try:
                log.write(f"$ {shlex.join(command)}\n".encode())
            except OSError as error:  # a full disk: the run may still be able to write
                print(f"warning: {self._log} cannot be written: {error.strerror}", file=sys.stderr)
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._popen.poll() is not None

    @override
    def ending(self) -> Ending | None:
        code = self._popen.poll()
        if code is None:
            return None
        result = read_result(self._run_dir)
        status = self._status(code, result)
        message = None if status == "finished" else self._message(code)
        exit_status = EXIT_STATUS.get(status, code if code > 0 else 128 - code if code < 0 else 1)
        return Ending(status, result, message, time.monotonic() - self._began, exit_status)

    @override
    def ask_to_stop(self) -> None:
        self._popen.terminate()

    @override
    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._popen.pid)
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()

    def _status(self, code: int, result: dict[str, Any] | None) -> str:
        """The status in result.json if this process wrote it: torchrun exits with 1 whatever its ranks exited with."""
        if result is not None and stamp(self._run_dir) != self._before and result.get("status") in run_files.STATUSES:
            return str(result["status"])
        status = next((status for status in run_files.STATUSES if EXIT_STATUS[status] == code), "failed")
        return "failed" if result is None and status != "stopped" else status

    def _message(self, code: int) -> str:
        said = said_in(self._log, self._log_start)
        if code < 0:
            return f"ended by {signal.Signals(-code).name}" + (f"; its last line: {said}" if said else "")
        return said or f"exit status {code} without a word"


def said_in(log: Path, start: int = 0) -> str:
    """Returns the error in the end of a log, after byte `start`; empty if there is none, or no log."""
    return reported(end_of(log, start))


def end_of(log: Path, start: int = 0) -> str:
    """Returns the end of a log, after byte `start`; empty if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 65536))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def reported(log: str) -> str:
    """Returns the error in what a process wrote: its "error:" line, else an exception, else the last line."""
    lines = [re.sub(r"^\[rank\d+\]: *", "", line).strip() for line in log.splitlines()]
    for pattern in (r"error: ", r"(?!.*ChildFailedError)[\w.]*(Error|Exception|Interrupt)\b", r"\S"):
        if found := [line for line in lines if re.match(pattern, line)]:
            return found[-1]
    return ""


def log_path(run_dir: Path) -> Path:
    """Returns the file that the output of the run's processes is appended to."""
    return run_dir.with_name(f"{run_dir.name}.log")


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Returns run_files.read_result(run_dir), and None also if that is damaged."""
    with suppress(ReadingError):
        return run_files.read_result(run_dir)
    return None


def cuda_devices() -> list[str]:
    """Returns the CUDA devices that processes may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(n) for n, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def capacity(ranks: int) -> int:
    """Returns how many jobs can run at once, with a CUDA device for each rank, or a core if there are no devices.

    With a core each, a job has one thread on every machine, so its rounding does not depend on the number of cores.
    """
    return max(1, (len(cuda_devices()) or _cores()) // ranks)


def environments(at_once: int, ranks: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """Returns the variables for each of at_once jobs: its share of the cores and the devices.

    The share depends on at_once, not on how many jobs are left: another number of threads changes rounding.

    Raises: ConfigError: if the devices do not suffice for the ranks; a single process may share one with others.
    """
    if devices and ranks > 1 and at_once * ranks > len(devices):
        raise ConfigError(
            f"{at_once} jobs of {ranks} ranks at once want {at_once * ranks} CUDA devices, there are {len(devices)}; "
            "run fewer at once, or use fewer ranks"
        )
    shared = {"PYTHONUNBUFFERED": "1"}  # so that the log has all that a process wrote before it ended
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, _cores() // (at_once * ranks)))
    if not devices:
        return [shared] * at_once
    own = [[devices[(slot * ranks + rank) % len(devices)] for rank in range(ranks)] for slot in range(at_once)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": ",".join(names)} for names in own]


def _command(script: Path, ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable, str(script)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*torchrun, f"--shutdown-timeout={GRACE_SECONDS:.0f}", str(script)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def stamp(run_dir: Path) -> tuple[int, int] | None:
    """Returns the inode and time of result.json, which change when it is written."""
    try:
        found = (run_dir / run_files.RESULT).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
