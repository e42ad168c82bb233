"""launch=slurm and launch/slurm.sbatch without a SLURM; with one see test_slurm_cluster.py."""

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from typing_extensions import override

from configs import ConfigError, compose
from files.lock import lock_while_open
from files.writing import write_text
from launch.job import Job
from launch.jobs import run_jobs
from launch.launcher import Launcher, Running, Start
from launch.slurm import Slurm
from launch.slurm_queue import Partition, Queue, QueuedJob, _partition, can_see, said
from launch.slurm_runs import SlurmRun
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
        ({"gpus_per_rank": -1}, "launch.gpus_per_rank=-1 must be >= 0"),
        ({"minutes": 5}, "launch.stop_seconds=300 must be less than launch.minutes=5"),
        ({"options": {"cpus-per-task": 3}}, "launch.options.cpus-per-task is set by launch.cpus_per_rank"),
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
        ((), "launch.ranks=8 wants a strategy for several processes: add parallel=ddp or parallel=fsdp2"),
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


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a command on the PATH that does what the lines of a shell say."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, lines: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("kind", "node", "srun", "expected"),
    [
        ("nfs4", "n1", "echo absent", True),
        ("ext4", HERE, "echo absent", True),
        ("ext4", "n1", "echo seen", True),
        ("ext4", "n1", "echo absent", False),
        ("ext4", "n1", "echo srun: error: Unable to allocate resources >&2; exit 1", None),
        ("ext4", "n1", "echo srun: error: Invalid account >&2; exit 1", None),
        ("ext4", "", "echo absent", False),
    ],
)
def test_a_folder_of_this_machine_alone_is_told(
    kind: str,
    node: str,
    srun: str,
    expected: bool | None,
    command: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command("sinfo", f"echo {node}")
    command("srun", srun)
    monkeypatch.setattr("launch.slurm_queue._file_system", lambda folder: kind)
    assert can_see(tmp_path, "main", []) is expected
    command("srun", 'while [[ $1 != sh ]]; do shift; done; exec "$@"')
    monkeypatch.setattr("launch.slurm_queue._file_system", lambda folder: "ext4")
    command("sinfo", "echo n1")
    assert (can_see(tmp_path, "main", []), can_see(tmp_path / "no", "main", [])) == (True, False)


MAIN = 'echo "main*|2|64|gpu:8|infinite"'


@pytest.mark.parametrize(
    ("sinfo", "squeue", "settings", "message"),
    [
        ("echo a >&2; echo no controller >&2; exit 1", "", {}, "launch=slurm: sinfo says no controller"),
        ("exit 3", "", {}, "launch=slurm: sinfo says nothing, and ends with exit status 3"),
        ("", "", {}, "launch=slurm: sinfo lists no partition; it says nothing"),
        ("printf 'a|b|c|d\\n\\xff'", "", {}, "launch=slurm: sinfo lists no partition; it says a|b|c|d"),
        (MAIN, "echo timed out >&2; exit 1", {}, "launch=slurm: squeue says timed out"),
        (MAIN, "", {"partition": "main,big"}, "launch.partition=big does not exist; SLURM has main"),
    ],
)
def test_a_slurm_that_does_not_answer_is_one_line(
    sinfo: str, squeue: str, settings: dict[str, Any], message: str, command: Callable[[str, str], None]
) -> None:
    for name, lines in (("sinfo", sinfo), ("squeue", squeue), ("sbatch", "")):
        command(name, lines)
    with pytest.raises(ConfigError) as error:
        Slurm(**settings).check([])
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
    command("sinfo", f"echo welcome; {MAIN}")
    command("squeue", "")
    Slurm(partition="main,main").check([])


def test_a_queue_that_hangs_is_asked_once_in_a_while(
    command: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("squeue", f"echo >> {tmp_path / 'asked'}; exec sleep 9")
    monkeypatch.setattr("launch.slurm_queue.said", partial(said, seconds=0.3))
    queue = Queue(seconds=0.2)
    assert [queue.job(str(n)) for n in range(50)] == [None] * 50
    assert "squeue has not answered for 0.3 s" in queue.error
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_the_queue_is_that_of_the_user_whatever_the_environment_says(
    command: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOGNAME", "somebody"), ("SQUEUE_STATES", "PENDING"), ("SLURM_CONF", "/x")):
        monkeypatch.setenv(name, value)
    command(
        "squeue", f'[[ "$*" == *--user={os.getuid()}* && -z $SQUEUE_STATES && $SLURM_CONF == /x ]] && echo "7|R||n1"'
    )
    assert Queue().job("7") == QueuedJob("R", "", "n1")


@pytest.fixture
def submitting(command: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A launcher on a SLURM in which every job waits: sbatch notes its environment, squeue shows job 12 as `queue`."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    command("sinfo", MAIN)
    command("srun", "")
    command("sbatch", "env >> environment; echo 12 1 x >> submitted; echo Submitted batch job 12")
    command("squeue", "cat queue")
    (tmp_path / "queue").write_text("12|PENDING|Priority|\n")
    launcher = Slurm(gpus_per_rank=0)
    launcher._queue = Queue(seconds=0.0)
    return launcher


def a_run(tmp_path: Path) -> Start:
    overrides = (f"run_dir={tmp_path / 'run'}",)
    return Start(overrides, compose(overrides))


def test_while_slurm_does_not_answer_no_run_has_ended_and_none_is_submitted_again(
    submitting: Slurm, command: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.slurm_runs.SETTLING_SECONDS", 0.0)
    start = a_run(tmp_path)
    (run,) = submitting.start([start], SCRIPT)
    assert isinstance(run, Running)
    command("squeue", "echo busy >&2; exit 1")
    assert (run.ending(), submitting.room()) == (None, 0)
    (again,) = submitting.start([start], SCRIPT)
    assert isinstance(again, BlockingIOError)
    (tmp_path / "queue").write_text("")
    following = SlurmRun(start.run_dir, "13", submitting._queue, before=None, logs=tmp_path)
    assert (following.ending(), following.note) == (None, "job 13; launch=slurm: squeue says busy")
    assert len((tmp_path / "submitted").read_text().splitlines()) == 1
    command("squeue", "cat queue")
    assert submitting.room() > 0
    assert [each.ending() is None for each in (run, following)] == [False, False]


def test_a_result_counts_if_it_is_not_the_one_before_the_submission(submitting: Slurm, tmp_path: Path) -> None:
    start, result = a_run(tmp_path), {"status": "stopped", "step": 3, "val/loss": 1.0}
    start.run_dir.mkdir()
    write_text(start.run_dir / "result.json", json.dumps(result))
    submitting.start([start], SCRIPT)
    for status, expected in (("stopped", None), ("finished", "finished")):
        if status == "finished":
            write_text(start.run_dir / "result.json", json.dumps(result | {"status": status}))
        following = submitting.found(start)  # by another command, which finds the result that came meanwhile
        assert following is not None
        (tmp_path / "queue").write_text("")
        ending = following.ending()
        assert (ending and ending.status) == expected
        (tmp_path / "queue").write_text("12|COMPLETING||n1\n")


def test_a_job_gets_nothing_of_the_job_from_which_it_is_submitted(
    submitting: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SBATCH_TIMELIMIT", "SLURM_CONF", "SBATCH_CONSTRAINT"):
        monkeypatch.setenv(name, "1")
    submitting.start([a_run(tmp_path)], SCRIPT)
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert {name for name in names if name.startswith(("SLURM_", "SBATCH_"))} == {"SLURM_CONF", "SBATCH_CONSTRAINT"}
    assert os.environ["SLURM_MEM_PER_NODE"] == "1"
    monkeypatch.setenv("SBATCH_PARTITION", "long")
    assert (Slurm().partition, Slurm(partition="short").partition) == ("long", "short")


def test_all_that_a_job_needs_must_be_seen_by_nodes(
    submitting: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def sees(folder: Path, partition: str, options: Sequence[str]) -> bool:
        asked.append(folder)
        return folder != hidden

    monkeypatch.setattr("launch.slurm.can_see", sees)
    for hidden, what in ((SCRIPT.parents[1], "which has the code"), (tmp_path, "where runs are to be")):
        with pytest.raises(ConfigError, match=f"the nodes of partition main do not see {hidden}, {what}: choose"):
            submitting.check([a_run(tmp_path)])
    hidden = Path()
    asked.clear()
    submitting.check([a_run(tmp_path), a_run(tmp_path)])
    assert asked == [SCRIPT.parents[1], tmp_path]


def test_ctrl_c_does_not_end_sbatch_between_submission_and_record(
    submitting: Slurm, command: Callable[[str, str], None], tmp_path: Path
) -> None:
    command("sbatch", "kill -INT $$; echo Submitted batch job 12")
    (run,) = submitting.start([a_run(tmp_path)], SCRIPT)
    assert isinstance(run, SlurmRun) and run.job == "12"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_run_that_somebody_else_has_does_not_end_the_others_of_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(
        "import json, sys\nfrom pathlib import Path\nrun_dir = Path(sys.argv[1])\nrun_dir.mkdir()\n"
        "(run_dir / 'result.json').write_text(json.dumps({'status': 'finished', 'step': 1, 'val/loss': 1.0}))"
    )
    before, places = signal.getsignal(signal.SIGTERM), [tmp_path / "taken", tmp_path / "free"]
    with (tmp_path / "taken.log").open("a") as log:
        assert lock_while_open(log)
        assert Task(tmp_path / "script.py", [((str(place),), place) for place in places], 1)() == 1
    signal.signal(signal.SIGTERM, before)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"failed: log {tmp_path / 'taken'}.log: ") and "has just started the run" in first
    assert second == f"finished: log {tmp_path / 'free'}.log"


HANGS = """
import fcntl, json, os, signal, sys, time
from pathlib import Path
run_dir = Path(sys.argv[1])
run_dir.mkdir()
if run_dir.name == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = (run_dir / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (run_dir / "config.yaml").write_text("timeout_seconds: 0.1")
    (run_dir / "heartbeat").touch()
    os.utime(run_dir / "heartbeat", (time.time() - 7205,) * 2)
    signal.pause()
time.sleep(0.5)
(run_dir / "result.json").write_text(json.dumps({"status": "finished", "step": 1, "val/loss": 1.0}))
"""


def test_a_run_that_hangs_does_not_end_the_others_of_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.watch.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("launch.slurm_task.LOOK_SECONDS", 0.05)
    (tmp_path / "script.py").write_text(HANGS)
    before, places = signal.getsignal(signal.SIGTERM), [tmp_path / "hangs", tmp_path / "goes"]
    assert Task(tmp_path / "script.py", [((str(place),), place) for place in places], 1)() == 1
    signal.signal(signal.SIGTERM, before)
    failed, finished = sorted(capsys.readouterr().out.splitlines())
    assert finished == f"finished: log {tmp_path / 'goes'}.log"
    assert failed.startswith(f"failed: log {tmp_path / 'hangs'}.log: no progress for 2 h, timeout_seconds=0.1: it was")


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (
            "stopped: log {log}: stopped; the same command continues\nsubmitit INFO - Exiting",
            "stopped; the same command",
        ),
        (None, "job 12_3 has printed nothing in {logs}: it was cancelled before it began, or its node does not see"),
        ("failed: log {log}: ValueError: no data\nsrun: error: task 0", "ValueError: no data"),
        ("failed: log {log}x: other\nModuleNotFoundError: No module named 'launch'\nsrun: ended", "No module named"),
        ("bash: python: command not found", "job 12_3 left SLURM's queue without a result; it printed last, in {logs}"),
    ],
)
def test_a_job_without_a_result_says_why(
    printed: str | None, message: str, submitting: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.slurm_runs.SETTLING_SECONDS", 0.0)
    known = {"log": tmp_path / "run.log", "logs": tmp_path}
    if printed is not None:
        (tmp_path / "12_3_1_log.out").write_text(printed.format(**known))
    run = SlurmRun(tmp_path / "run", "12_3", submitting._queue, before=None, logs=tmp_path)
    ending = run.ending()
    expected = ("stopped", 75) if message.startswith("stopped") else ("failed", 1)
    assert ending is not None and (ending.status, ending.exit_status) == expected
    assert message.format(**known) in str(ending.message)


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
