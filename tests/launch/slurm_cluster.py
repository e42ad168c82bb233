"""A SLURM of two nodes on this machine, from the distribution's packages, for tests; it needs root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SchedulerParameters=sched_interval=1
ReturnToService=2
MpiDefault=none
KillWait=5
GresTypes=gpu
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host},{host}-2 Default=YES MaxTime=60 State=UP OverSubscribe=YES
PartitionName=small Nodes={host} MaxTime=60 State=UP OverSubscribe=YES
JobRequeue=1
"""


def is_there() -> bool:
    """Whether this machine can hold one."""
    return os.geteuid() == 0 and all(shutil.which(command) for command in COMMANDS)


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Starts it, and ends it with all its jobs; yields the configuration that SLURM_CONF must name."""
    host = socket.gethostname().partition(".")[0]
    nodes = (host, f"{host}-2")  # the first has a name that can be looked up, as ranks do to meet there
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, ports=_free_ports(3), folder=folder))
    for name in ("gpu0", "gpu1"):  # files that stand for devices
        (folder / name).touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    environment = {**os.environ, "SLURM_CONF": str(config)}
    with ExitStack() as started:
        started.enter_context(_munge())
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in nodes)):
            log = started.enter_context((folder / f"{'-'.join(command)}.log").open("wb"))
            daemon = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            started.callback(_ended, daemon)
        _wait_for_nodes(environment)
        started.callback(subprocess.run, ["scancel", "--user=root"], env=environment, check=False)
        yield config


@contextmanager
def _munge() -> Iterator[None]:
    if subprocess.run(["pgrep", "-x", "munged"], capture_output=True, check=False).returncode == 0:
        yield
        return
    Path("/run/munge").mkdir(parents=True, exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["pkill", "-x", "munged"], check=False)


def _free_ports(n: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for_nodes(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.split() == ["idle", "idle"]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"SLURM does not start: {found.stdout}{found.stderr}")


def _ended(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
