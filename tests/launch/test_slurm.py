"""launch=slurm and launch/slurm.sbatch without a SLURM; with one see test_slurm_cluster.py."""

import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from typing_extensions import override

from configs import ConfigError, compose
from launch.jobs import Job, run_jobs
from launch.launcher import Launcher, Running, Start
from launch.slurm import Slurm, SlurmRun
from launch.slurm_queue import Partition, Queue, _partition, can_see
from launch.slurm_task import Task, rank_variables

HERE = socket.gethostname().partition(".")[0]
SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
VARIABLES = {
    "SLURM_JOB_NAME": "a-run",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "64",
}


def test_srun_gets_the_cpus_that_the_job_has(tmp_path: Path) -> None:
    for name, text in (
        ("scontrol", "echo n1"),
        ("srun", 'printf "%s\\n" "$@" > srun.arguments; echo $OMP_NUM_THREADS'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        **VARIABLES,
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", SCRIPT, "data.prompt=a b"], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    assert "--cpus-per-task=64" in arguments[: arguments.index("torchrun")]
    assert arguments[-1] == "data.prompt=a b"
    assert done.stdout.splitlines()[0] == "16"  # threads of a rank


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 3, "nodes": 2}, "launch.ranks=3 must be a multiple of launch.nodes=2"),
        ({"ranks": 2, "nodes": 2, "runs_per_job": 2}, "launch.runs_per_job=2 shares one node"),
        ({"at_once": 0}, "launch.at_once=0 must be >= 1"),
        ({"minutes": 0}, "launch.minutes=0 must be >= 1"),
        ({"minutes": 5}, "launch.stop_seconds=300 must be less than launch.minutes=5"),
        ({"gpus_per_rank": -1}, "launch.gpus_per_rank=-1 must be >= 0"),
    ],
)
def test_settings_that_make_no_job_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Slurm(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 1, 8, 1)),
        ({"ranks": 8}, (1, 8, 8, 8)),
        ({"ranks": 16, "nodes": 2}, (2, 8, 8, 8)),
        ({"ranks": 2, "nodes": 2, "cpus_per_rank": 3}, (2, 1, 3, 1)),
        ({"ranks": 2, "runs_per_job": 4}, (1, 1, 64, 8)),
        ({"gpus_per_rank": 0}, (1, 1, 8, None)),
    ],
)
def test_a_job_asks_for_what_its_ranks_need(settings: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    found = Slurm(**settings).resources()
    assert tuple(found[key] for key in ("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node")) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "launch.ranks=8, but parallel=single: add parallel=ddp or parallel=fsdp2"),
        (("parallel=ddp",), r"global_batch=8 must be a multiple of micro_batch \* launch.ranks = 8 \* 8 = 64"),
    ],
)
def test_a_run_that_so_many_ranks_would_refuse_is_refused_before(overrides: tuple[str, ...], message: str) -> None:
    runs = [Start(each, compose(each)) for each in (("parallel=ddp", "micro_batch=1"), overrides)]
    Slurm(ranks=8)._check_ranks(runs[:1])
    with pytest.raises(ConfigError, match=message):
        Slurm(ranks=8)._check_ranks(runs)


def test_without_slurm_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="launch=slurm: there is no SLURM here"):
        run_jobs([Job("one", (f"run_dir={tmp_path / 'run'}",))], Slurm(), show=False)


@pytest.mark.parametrize(
    ("kind", "node", "srun", "expected"),
    [
        ("nfs4", "n1", "exit 1", True),
        ("ext4", HERE, "exit 1", True),
        ("ext4", "n1", "exit 0", True),
        ("ext4", "n1", "exit 1", False),
        ("ext4", "n1", "echo srun: error: Unable to allocate resources >&2; exit 1", None),
    ],
)
def test_a_folder_of_this_machine_alone_is_told(
    kind: str, node: str, srun: str, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sinfo", f"echo {node}"), ("srun", srun)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("launch.slurm_queue._file_system", lambda folder: kind)
    assert can_see(tmp_path, "main", []) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("main*|2|64|(null)|infinite", Partition("main", True, 2, 64, 0, math.inf)),
        ("gpu|16|128+|gpu:h100:8(S:0-1),nvme:1|2-00:30:00", Partition("gpu", False, 16, 128, 8, 48 * 60 + 30)),
        ("gpu|1|8|gpu:4|1:00:00", Partition("gpu", False, 1, 8, 4, 60)),
        ("gpu|1|8|gpu|30:00", Partition("gpu", False, 1, 8, 1, 30)),
    ],
)
def test_nodes_are_read_from_sinfo(line: str, expected: Partition) -> None:
    assert _partition(line) == expected


def test_ranks_meet_by_what_srun_says() -> None:
    slurm = {
        "SLURM_NTASKS": "4",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
        "SLURM_JOB_ID": "123456",
        "SLURM_CPUS_PER_TASK": "6",
    }
    found = rank_variables(slurm)
    assert [found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["3", "1", "4", "2"]
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["OMP_NUM_THREADS"]) == ("10.0.0.1", "23456", "6")
    assert "RANK" not in rank_variables({"SLURM_NTASKS": "1"})
    assert "OMP_NUM_THREADS" not in rank_variables({"OMP_NUM_THREADS": "2"})


class EmptyQueue(Queue):
    @override
    def job(self, job_id: str) -> None:
        return None


@pytest.mark.parametrize(
    ("added", "message"),
    [("error: of this job\n", "error: of this job"), ("", "see log runs/r.log, if there is one, and out/7_*_log.out")],
)
def test_a_job_without_a_result_says_why_or_where_to_look(
    added: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.slurm.SETTLING_SECONDS", 0.0)
    log = Path("runs/r.log")
    log.parent.mkdir()
    log.write_text("error: of an earlier job\n")
    running = SlurmRun(Path("runs/r"), "7", EmptyQueue(), Path("out"))
    with log.open("a") as file:
        file.write(added)
    ending = running.ending()
    assert ending is not None and ending.status == "failed" and str(ending.message).endswith(message)


class Elsewhere(Launcher):
    """Starts nothing that goes on: each run has failed at once."""

    is_elsewhere = True

    @override
    def check(self, runs: Sequence[Start]) -> None:
        pass

    @override
    def room(self) -> int:
        return 9

    @override
    def start(self, runs: Sequence[Start], script: Path) -> list[Running | OSError]:
        return [OSError("not here") for _ in runs]


def test_what_runs_read_elsewhere_is_provided_before_any_starts(tmp_path: Path) -> None:
    jobs = [Job(f"s{seed}", (f"seed={seed}", f"run_dir={tmp_path / str(seed)}")) for seed in (1, 2)]
    provided: list[int] = []
    outcomes = run_jobs(jobs, Elsewhere(), show=False, provide=lambda config: provided.append(config.seed))
    assert (provided, [outcome.message for outcome in outcomes]) == ([1, 2], ["not here"] * 2)

    def missing(config: object) -> None:
        raise ValueError("data set runs/x does not exist")

    with pytest.raises(ValueError, match="does not exist"):
        run_jobs(jobs, Elsewhere(), show=False, provide=missing)
    run_jobs(jobs, show=False, script=tmp_path / "absent.py", provide=missing)  # here a run provides for itself


# Notes its start; trains until it is asked to stop, the second time to its end.
STAND_IN = """
import signal, sys, time
from pathlib import Path

run_dir = Path(dict(each.split("=", 1) for each in sys.argv[1:])["run_dir"])
run_dir.mkdir(exist_ok=True)
starts = run_dir / "starts"
first = not starts.exists()
with starts.open("a") as file:
    file.write("start\\n")

def stop(*_):
    (run_dir / "saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(run_dir / f"ready{first}").touch()
time.sleep(30 if first else 0)
(run_dir / "result.json").write_text('{"status": "finished", "step": 1, "val/loss": 1.0}')
"""


@pytest.mark.slow
def test_a_task_saves_and_goes_back_to_the_queue_when_submitit_is_told_so(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=5, signal_delay_s=10)
    run_dir = tmp_path / "run"
    job = executor.submit(Task(tmp_path / "stand_in.py", [((f"run_dir={run_dir}",), run_dir)], 1))
    deadline = time.monotonic() + 30
    while not (run_dir / "readyTrue").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in psutil.Process(int(job.job_id)).children(recursive=True):  # as SLURM does
        process.send_signal(signal.SIGUSR2)
    assert job.result() == 0
    assert (run_dir / "starts").read_text().splitlines() == ["start", "start"]
    assert (run_dir / "saved").exists()
