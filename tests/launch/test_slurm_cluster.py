"""launch=slurm on a real SLURM of two nodes on this machine; skipped where its packages are not installed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs import ConfigError
from launch.job import Interrupted, Job, Outcome
from launch.jobs import run_jobs
from launch.slurm import Slurm
from launch.slurm_queue import Queue, partitions
from launch.slurm_runs import queued
from tests.launch import slurm_cluster

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(not slurm_cluster.is_there(), reason="needs SLURM's packages (.ci/run installs them) and root"),
]

# Notes its start and end, with the job that it is in; trains until the folder has a file `go`, or until it is stopped.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(override.split("=", 1) for override in sys.argv[1:])
run_dir = Path(given["run_dir"])
run_dir.mkdir(parents=True, exist_ok=True)
signal.alarm(90)

def note(what):
    with (run_dir.parent / "events").open("a") as events:
        events.write(f"{what} {run_dir.name} {os.environ['SLURM_JOB_ID']} {os.environ.get('RANK', '-')}\\n")

def end(status, code):
    (run_dir / "result.json").write_text(json.dumps({"status": status, "step": 10, "val/loss": 1.0}))
    note(status)
    sys.exit(code)

signal.signal(signal.SIGTERM, lambda *_: end("stopped", 75))
(run_dir / "config.yaml").touch()
note("start")
while not (run_dir.parent / "go").exists():
    time.sleep(0.05)
end("finished", 0)
"""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as config:
        yield config


@pytest.fixture
def runs(tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of runs on a cluster that is up; what is left in the queue is cancelled."""
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setattr("launch.slurm_runs.SETTLING_SECONDS", 3.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "runs").mkdir()
    yield tmp_path / "runs"
    subprocess.run(["scancel", f"--user={os.geteuid()}"], check=True)
    wait_for(lambda: in_queue() == "", 60)


def in_queue() -> str:
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout


def slurm(**settings: Any) -> Slurm:
    made = Slurm(**{"gpus_per_rank": 0, "cpus_per_rank": 1, "minutes": 5, "stop_seconds": 30, **settings})
    made._queue = Queue(seconds=0.3)
    return made


def jobs(runs: Path, n: int, own: Sequence[str] = ()) -> list[Job]:
    return [Job(f"s{i}", (*own, f"seed={i}", f"run_dir={runs / f'r{i}'}")) for i in range(n)]


def events(runs: Path) -> list[list[str]]:
    path = runs / "events"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_script(process: psutil.Process, job: str) -> bool:
    """Whether it is the shell that runs a batch script, of that job."""
    return any(each.endswith(f"job{int(job):05d}/slurm_script") for each in (process.info["cmdline"] or [])[:2])


def start_at_once(job: str) -> None:
    """Asks SLURM to start a job that was queued again, which it would do two minutes later.

    Not in the second in which it has ended: a node would refuse it, as what it was allowed then has been revoked.
    """
    if "PD" in in_queue():
        time.sleep(3.0)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)
    time.sleep(0.5)


def begun_again(runs: Path, job: str) -> bool:
    start_at_once(job)
    return len(events(runs)) > 2


def run(runs: Path, n: int, launcher: Slurm, own: Sequence[str] = ()) -> list[Outcome]:
    return run_jobs(jobs(runs, n, own), launcher, show=False, script=runs.parent / "stand_in.py")


def test_runs_go_through_one_array_over_both_nodes(runs: Path) -> None:
    (runs / "go").touch()
    outcomes = run(runs, 5, slurm(at_once=3))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    records = [json.loads((runs / f"r{i}.slurm.json").read_text())["job"] for i in range(5)]
    assert [record.partition("_")[2] for record in records] == list("01234")
    assert len({record.partition("_")[0] for record in records}) == 1
    assert sorted(what for what, *_ in events(runs)) == ["finished"] * 5 + ["start"] * 5


def test_an_interrupted_command_leaves_its_runs_and_the_next_follows_them(runs: Path) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(events(runs)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        run(runs, 2, slurm())
    thread.join()
    assert [what for what, *_ in events(runs)] == ["start", "start"]
    found = queued([runs])
    assert list(found) == [runs / "r0", runs / "r1"] and all(" running on " in job for job in found.values())
    threading.Timer(1.0, (runs / "go").touch).start()
    assert [outcome.status for outcome in run(runs, 2, slurm())] == ["finished"] * 2
    assert sorted(what for what, *_ in events(runs)) == ["finished"] * 2 + ["start"] * 2
    assert queued([runs]) == {}


def test_a_run_that_is_queued_again_is_stopped_and_continued(runs: Path) -> None:
    def requeue() -> None:
        wait_for(lambda: len(events(runs)) == 1)
        job = events(runs)[0][2]
        subprocess.run(["scontrol", "requeue", job], check=True)
        wait_for(lambda: len(events(runs)) == 2)
        (runs / "go").touch()
        wait_for(lambda: begun_again(runs, job))

    thread = threading.Thread(target=requeue)
    thread.start()
    (outcome,) = run(runs, 1, slurm())
    thread.join()
    assert outcome.status == "finished"
    assert [what for what, *_ in events(runs)] == ["start", "stopped", "start", "finished"]
    assert len({job for _, _, job, _ in events(runs)}) == 1


def test_a_run_is_saved_before_its_job_s_limit_and_queued_again(runs: Path) -> None:
    def begin_again() -> None:
        wait_for(lambda: len(events(runs)) == 2, 90)
        (runs / "go").touch()
        wait_for(lambda: begun_again(runs, events(runs)[0][2]))

    thread = threading.Thread(target=begin_again)
    thread.start()
    (outcome,) = run(runs, 1, slurm(minutes=1, stop_seconds=50))
    thread.join()
    assert outcome.status == "finished"
    assert [what for what, *_ in events(runs)] == ["start", "stopped", "start", "finished"]


def test_a_cancelled_run_is_stopped_and_the_same_command_submits_it_again(runs: Path) -> None:
    def cancel() -> None:
        wait_for(lambda: len(events(runs)) == 1)
        subprocess.run(["scancel", events(runs)[0][2]], check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    (outcome,) = run(runs, 1, slurm())
    thread.join()
    assert (outcome.status, outcome.exit_status) == ("stopped", 75)
    (runs / "go").touch()
    (outcome,) = run(runs, 1, slurm())
    assert outcome.status == "finished"
    assert [what for what, *_ in events(runs)] == ["start", "stopped", "start", "finished"]


def test_a_run_that_fails_on_a_node_says_why_and_so_does_a_job_that_cannot_begin(runs: Path) -> None:
    (runs.parent / "stand_in.py").write_text("raise ValueError('no data')")
    outcomes = run(runs, 2, slurm(runs_per_job=2))
    assert [(outcome.status, outcome.message) for outcome in outcomes] == [("failed", "ValueError: no data")] * 2
    (outcome,) = run(runs, 1, slurm(setup=["cd /nowhere || exit 1"]))
    assert outcome.status == "failed"
    assert "it printed last, in runs/slurm: " in str(outcome.message)
    assert "cd: /nowhere: No such file or directory" in str(outcome.message)


def test_runs_share_a_job_where_nodes_are_given_out_whole(runs: Path) -> None:
    (runs / "go").touch()
    outcomes = run(runs, 3, slurm(runs_per_job=2))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    records = [json.loads((runs / f"r{i}.slurm.json").read_text())["job"].partition("_")[2] for i in range(3)]
    assert records == ["0", "0", "1"]


def test_a_function_is_called_on_a_node(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = slurm(folder=str(runs / "jobs"))
    assert launcher.called("a power", partial(pow, 2, 3)) == 8
    assert "a power: job " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"invalid literal for int\(\) with base 10: 'x'"):
        launcher.called("a number", partial(int, "x"))
    with pytest.raises(ValueError, match=r"job \d+ of SLURM failed: ZeroDivisionError: .*; see "):
        launcher.called("a quotient", partial(divmod, 1, 0))


def test_ranks_on_two_nodes_meet_and_end_as_under_torchrun(runs: Path, tiny: list[str]) -> None:
    own = [*tiny, "parallel=ddp", "seed=3"]
    over_nodes = Job("nodes", (*own, f"run_dir={runs / 'nodes'}"))
    (outcome,) = run_jobs([over_nodes], slurm(ranks=2, nodes=2), show=False)
    assert outcome.status == "finished", outcome.message
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, str(ROOT / "train.py"), *own, f"run_dir={runs / 'one'}"], check=True, capture_output=True)
    ours, theirs = (json.loads((runs / name / "result.json").read_text())["val/loss"] for name in ("nodes", "one"))
    assert ours == theirs


@pytest.mark.parametrize(("template", "nodes", "gpus"), [("one_node", 1, 2), ("slurm", 2, 1)])
def test_the_templates_run_as_they_stand(template: str, nodes: int, gpus: int, runs: Path, tiny: list[str]) -> None:
    """On two ranks; stopped by the signal before the limit, requeued, continued, finished."""
    checkout = runs.parent  # train.py, and a folder runs/ of its own
    (checkout / "train.py").symlink_to(ROOT / "train.py")
    site = [
        f"--nodes={nodes}",
        f"--gpus-per-node={gpus}",
        f"--cpus-per-task={gpus}",
        "--time=30",
        f"--job-name={template}",
    ]
    script, log = ROOT / "launch" / f"{template}.sbatch", runs / f"{template}.log"
    command = ["sbatch", "--parsable", *site, f"--output={log}", str(script), *tiny, "max_steps=40"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = done.stdout.strip()
    metrics = runs / template / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, 60)
    (shell,) = [process for process in psutil.process_iter(["cmdline"]) if is_script(process, job)]
    shell.send_signal(signal.SIGUSR1)  # to it alone, as --signal=B:USR1@300 does
    result = runs / template / "result.json"

    def has_finished() -> bool:
        start_at_once(job)
        return result.exists() and json.loads(result.read_text())["status"] == "finished"

    wait_for(has_finished, 90)
    assert "continuing at step" in log.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": "big"}, "launch.partition=big does not exist; SLURM has main, small"),
        ({"ranks": 4, "gpus_per_rank": 1}, "wants 4 GPUs of each node; those of partition main have 2"),
        ({"cpus_per_rank": 3}, "wants 3 CPUs of each node; those of partition main have 2"),
        ({"ranks": 2, "nodes": 2, "partition": "small"}, "partition small has 1 nodes"),
        ({"minutes": 61}, "launch.minutes=61 is more than partition main allows: give launch.minutes=60 or less"),
        ({"options": {"gres": "gpu:9"}}, "launch=slurm: sbatch refuses the jobs"),
    ],
)
def test_what_slurm_cannot_run_is_refused_before_anything_is_submitted(
    runs: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run(runs, 1, slurm(**settings), own=("parallel=ddp", "micro_batch=1"))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not events(runs)
    assert in_queue() == ""


def test_partitions_are_read_with_their_gpus(runs: Path) -> None:
    assert [(each.name, each.is_default, each.nodes, each.cpus, each.gpus, each.minutes) for each in partitions()] == [
        ("main", True, 2, 2, 2, 60),
        ("small", False, 1, 2, 2, 60),
    ]
