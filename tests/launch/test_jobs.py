"""The job runner, mostly with a stand-in for train.py that starts in milliseconds."""

import csv
import errno
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from configs import ConfigError, RunConfig, as_yaml, compose, expand
from files.lock import Lock
from launch import jobs, processes, runner, standstill
from launch.job import Interrupted, Job, Outcome
from launch.jobs import run_jobs
from launch.launcher import Running, Start
from launch.local import Local
from launch.processes import cuda_devices, environments, log_path, reported
from launch.progress import JobProgress, line, table
from launch.sweep import best_first, sweep

ROOT = Path(__file__).parents[2]
TWO = {"_target_": "launch.local.Local", "at_once": 2}

# What it does follows from its seed. It notes its start and its end in `events`, its environment in the run directory.
STAND_IN = """
import fcntl, json, os, signal, sys
from pathlib import Path

given = dict(override.split("=", 1) for override in sys.argv[1:])
run_dir, seed = Path(given["run_dir"]), int(given["seed"])
run_dir.mkdir(parents=True, exist_ok=True)
shared, result = run_dir.parent, run_dir / "result.json"
signal.alarm(20)  # whatever goes wrong

def note(what):
    with (shared / "events").open("a") as events:
        events.write(f"{what} {run_dir.name}\\n")

def end(status, code, message=None):
    loss = seed / 10 if status == "finished" else None
    result.write_text(json.dumps({"status": status, "step": 10, "val/loss": loss}))
    note("end")
    print("step 10/10")
    if message:
        print(message, file=sys.stderr)
        print("hint: none")
    sys.exit(code)

def save(number, frame):
    end("stopped", 75)

note("start")
keys = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
(run_dir / "environment").write_text(json.dumps({key: os.environ.get(key) for key in keys}))
if seed == 11:
    end("diverged", 3, "error: not finite at step 6")
if seed == 12:
    print("error: data.root holds nothing", file=sys.stderr)
    sys.exit(2)
if seed == 13:
    raise RuntimeError("out of luck")
if seed == 14:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 15 and not result.exists():  # trains until it is asked to stop; then continues to its end
    signal.signal(signal.SIGTERM, save)
    (shared / "waiting").open("w").close()
    signal.pause()
if seed == 16:  # hangs
    lock = (run_dir / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    signal.signal(signal.SIGTERM, lambda number, frame: (shared / "meeting").open("w").close())
    (shared / "waiting").open("w").close()
    while True:
        signal.pause()
if seed == 17:
    sys.exit(0)
if seed == 18:
    end("finished", 139)
if seed in (20, 21):  # each needs the other to run
    (shared / "meeting").open("r" if seed == 20 else "w").close()
end("finished", 0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The stand-in; `waiting` and `meeting` are FIFOs: whoever opens one waits for somebody at the other end."""
    (tmp_path / "runs").mkdir()
    for name in ("waiting", "meeting"):
        os.mkfifo(tmp_path / "runs" / name)
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


@pytest.fixture(scope="module")
def default() -> RunConfig:
    return compose([])


@pytest.fixture
def job(tmp_path: Path, default: RunConfig) -> Callable[..., Job]:
    """job(seed): a job in runs/<seed>, its config.yaml in place as train.py would write it."""

    def make(seed: int, device: str = "cpu") -> Job:
        run_dir = tmp_path / "runs" / str(seed)
        run_dir.mkdir(exist_ok=True)
        config = replace(default, seed=seed, device=device)
        (run_dir / "config.yaml").write_text(as_yaml(config))
        return Job(f"s{seed}", (f"seed={seed}", f"run_dir={run_dir}", f"device={device}"))

    return make


def events(tmp_path: Path) -> list[str]:
    file = tmp_path / "runs" / "events"
    return file.read_text().splitlines() if file.is_file() else []


def environment(tmp_path: Path, seed: int) -> dict[str, str | None]:
    found: dict[str, str | None] = json.loads((tmp_path / "runs" / str(seed) / "environment").read_text())
    return found


def test_jobs_run_in_the_order_given_one_after_the_other(
    script: Path, job: Callable[..., Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = run_jobs([job(3), job(1), job(2)], script=script)
    assert [(outcome.job.name, outcome.status, outcome.exit_status) for outcome in outcomes] == [
        ("s3", "finished", 0),
        ("s1", "finished", 0),
        ("s2", "finished", 0),
    ]
    assert events(tmp_path) == ["start 3", "end 3", "start 1", "end 1", "start 2", "end 2"]
    assert all(outcome.message is None and outcome.seconds > 0 for outcome in outcomes)
    assert [outcome.result["val/loss"] for outcome in outcomes if outcome.result] == [0.3, 0.1, 0.2]
    assert "[2/3] s1: finished" in capsys.readouterr().out
    assert "step 10/10" in log_path(outcomes[0].run_dir).read_text()


def test_as_many_run_at_once_as_asked_for_and_no_more(script: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    outcomes = run_jobs([job(20), job(21), job(1), job(2)], Local(at_once=2), show=False, script=script)
    assert {outcome.status for outcome in outcomes} == {"finished"}
    running, most = 0, 0
    for event in events(tmp_path):
        running += 1 if event.startswith("start") else -1
        most = max(most, running)
    assert most == 2


def test_what_has_ended_starts_no_process_again(script: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    jobs = [job(1), job(11), job(2)]
    first = run_jobs(jobs, show=False, script=script)
    second = run_jobs(jobs, show=False, script=tmp_path / "absent.py")
    assert [outcome.status for outcome in second] == ["finished", "diverged", "finished"]
    assert [outcome.result for outcome in second] == [outcome.result for outcome in first]
    assert [(outcome.seconds, outcome.exit_status) for outcome in second] == [(0, 0), (0, 3), (0, 0)]
    assert second[1].message == "diverged at step 10"


def test_another_run_in_the_directory_is_not_taken_for_the_jobs(
    script: Path, job: Callable[..., Job], tmp_path: Path
) -> None:
    run_jobs([job(1)], show=False, script=script)
    saved = tmp_path / "runs" / "1" / "config.yaml"
    saved.write_text(saved.read_text().replace("max_steps: 250", "max_steps: 200"))
    run_jobs([Job("s1", ("seed=1", f"run_dir={tmp_path / 'runs' / '1'}", "device=cpu"))], show=False, script=script)
    assert events(tmp_path).count("start 1") == 2  # train.py itself refuses then, and names the difference


def test_failures_are_collected_and_stop_no_other(script: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    outcomes = run_jobs(
        [job(seed) for seed in (11, 12, 13, 14, 17, 18, 1)], Local(at_once=3), show=False, script=script
    )
    assert [(outcome.job.name, outcome.status, outcome.exit_status) for outcome in outcomes] == [
        ("s11", "diverged", 3),
        ("s12", "failed", 2),
        ("s13", "failed", 1),
        ("s14", "failed", 128 + 9),
        ("s17", "failed", 1),
        ("s18", "finished", 0),
        ("s1", "finished", 0),
    ]
    assert [outcome.message for outcome in outcomes] == [
        "error: not finite at step 6",
        "error: data.root holds nothing",
        "RuntimeError: out of luck",
        "ended by SIGKILL",
        "exit status 0 without a word",
        None,
        None,
    ]


def test_a_job_that_cannot_start_is_a_failure_like_any_other(
    script: Path, job: Callable[..., Job], tmp_path: Path
) -> None:
    blocked = job(1)
    log_path(tmp_path / "runs" / "1").mkdir()
    outcomes = run_jobs([blocked, job(2)], show=False, script=script)
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert "Is a directory" in str(outcomes[0].message)


def test_a_mistake_in_the_last_job_shows_before_the_first_starts(
    script: Path, job: Callable[..., Job], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="job 'odd': unknown key 'sede'; the nearest valid one is 'seed'"):
        run_jobs([job(1), Job("odd", ("sede=1",))], script=script)
    assert events(tmp_path) == []


def test_two_jobs_of_one_run_directory_are_named(script: Path, job: Callable[..., Job], tmp_path: Path) -> None:
    other = Job("other", ("seed=2", f"run_dir={tmp_path}/x/../runs/1"))
    with pytest.raises(ConfigError, match="jobs 's1' and 'other' would both write run_dir="):
        run_jobs([job(1), other], script=script)
    assert events(tmp_path) == []


@pytest.fixture
def once_it_waits(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """once_it_waits(act): calls act when the stand-in has begun to wait."""
    threads = []

    def register(act: Callable[[], None]) -> None:
        def wait() -> None:
            (tmp_path / "runs" / "waiting").open().close()
            act()

        threads.append(threading.Thread(target=wait, daemon=True))
        threads[-1].start()

    yield register
    for thread in threads:
        thread.join(timeout=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_call_lets_jobs_save_and_the_next_one_continues(
    script: Path,
    job: Callable[..., Job],
    tmp_path: Path,
    once_it_waits: Callable[..., None],
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(number)
    once_it_waits(lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as caught:
        run_jobs([job(1), job(15), job(2)], script=script)
    assert caught.value.code == 75
    assert str(caught.value) == f"interrupted; the same command continues: {shlex.join(sys.orig_argv)}"
    assert capsys.readouterr().out.endswith(f"{caught.value}\n")
    assert [outcome.status for outcome in caught.value.outcomes] == ["finished", "stopped"]
    assert signal.getsignal(number) is before
    outcomes = run_jobs([job(1), job(15), job(2)], show=False, script=script)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert events(tmp_path) == ["start 1", "end 1", *["start 15", "end 15"] * 2, "start 2", "end 2"]


def test_a_job_that_hangs_is_killed_in_the_end(
    script: Path, job: Callable[..., Job], once_it_waits: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GRACE_SECONDS", 0.0)
    once_it_waits(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        run_jobs([job(16)], show=False, script=script)
    assert [outcome.message for outcome in caught.value.outcomes] == ["ended by SIGKILL"]


def test_a_second_interrupt_at_the_keyboard_kills(
    script: Path, job: Callable[..., Job], tmp_path: Path, once_it_waits: Callable[..., None]
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        (tmp_path / "runs" / "meeting").open().close()  # it was asked to save
        os.kill(os.getpid(), signal.SIGINT)

    once_it_waits(interrupt)
    with pytest.raises(Interrupted) as caught:
        run_jobs([job(16)], show=False, script=script)
    assert [outcome.message for outcome in caught.value.outcomes] == ["ended by SIGKILL"]


DRIVER = """
import sys
from pathlib import Path
from launch.jobs import Job, run_jobs
run_jobs([Job(each, tuple(each.split())) for each in sys.argv[2:]], script=Path(sys.argv[1]))
"""


def driven(script: Path, jobs_: Sequence[Job]) -> "subprocess.Popen[bytes]":
    """Another process that runs the jobs."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(script), *(" ".join(each.overrides) for each in jobs_)], cwd=ROOT
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such processes train on to their end")
def test_no_process_outlives_a_runner_killed_outright(
    script: Path, job: Callable[..., Job], tmp_path: Path, often: None
) -> None:
    with driven(script, [job(15)]) as driver:
        (tmp_path / "runs" / "waiting").open().close()
        driver.kill()
    (outcome,) = run_jobs([job(15)], show=False, script=script)  # waits for it to save, and continues it
    assert outcome.status == "finished"
    assert events(tmp_path) == ["start 15", "end 15"] * 2


def test_jobs_killed_with_all_their_processes_are_each_done_once_by_the_next_call(
    script: Path, job: Callable[..., Job], tmp_path: Path
) -> None:
    jobs_ = [job(1), job(15), job(2)]
    with driven(script, jobs_) as process:
        (tmp_path / "runs" / "waiting").open().close()
        process.send_signal(signal.SIGSTOP)  # so that it does not see its process end
        for each in psutil.Process(process.pid).children(recursive=True):
            each.kill()
        process.kill()
    script.write_text(script.read_text().replace("seed == 15", "seed == 99"))  # this time it does not wait
    outcomes = run_jobs(jobs_, show=False, script=script)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert [outcome.seconds > 0 for outcome in outcomes] == [False, True, True]
    assert events(tmp_path) == ["start 1", "end 1", "start 15", "start 15", "end 15", "start 2", "end 2"]


@pytest.mark.slow
def test_two_equal_calls_share_their_jobs(script: Path, job: Callable[..., Job], tmp_path: Path, often: None) -> None:
    """Each runs one at a time, and the first two jobs need each other to run."""
    seeds = (20, 21, 1, 2, 3)
    jobs_ = [job(seed) for seed in seeds]
    with driven(script, jobs_) as other:
        outcomes = run_jobs(jobs_, show=False, script=script)
    assert other.returncode == 0
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    assert sorted(events(tmp_path)) == sorted(f"{what} {seed}" for seed in seeds for what in ("start", "end"))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are looked at in every round."""
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.0)


class Holder:
    """Somebody else who holds the run directory of a job, and ends in the way that is given."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._lock = run_dir, Lock(run_dir / "lock")
        self._lock.sign()

    def leave(self, result: dict[str, Any] | None = None) -> None:
        if result is not None:
            (self._run_dir / "result.json").write_text(json.dumps(result))
        self._lock.release()


@pytest.mark.parametrize("loss", [0.7, None])
def test_a_run_of_somebody_else_is_waited_for_while_others_go_first_and_its_result_is_taken(
    script: Path,
    job: Callable[..., Job],
    tmp_path: Path,
    often: None,
    loss: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = job(1), job(20)
    holder = Holder(tmp_path / "runs" / "1")

    def leave() -> None:
        (tmp_path / "runs" / "meeting").open("w").close()  # the second job runs
        holder.leave(None if loss is None else {"status": "finished", "step": 10, "val/loss": loss})

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    outcomes = run_jobs([first, second], script=script)
    leaving.join()
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
    assert outcomes[0].result is not None and outcomes[0].result["val/loss"] == (loss or 0.1)
    own = [] if loss else ["start 1", "end 1"]  # one that did not finish is continued
    assert events(tmp_path) == ["start 20", "end 20", *own]
    assert f"s1: elsewhere (process {os.getpid()} on {socket.gethostname()})" in capsys.readouterr().out


def test_a_run_that_somebody_else_is_starting_is_left_to_it(
    script: Path, job: Callable[..., Job], tmp_path: Path, often: None
) -> None:
    """Its process has the log locked from its start on, before it has its run directory."""
    one, launcher = job(20), Local(at_once=2)
    launcher.check([])
    start = Start(one.overrides, compose(one.overrides))
    first, second = launcher.start([start, start], script)
    assert isinstance(first, Running) and isinstance(second, BlockingIOError)
    meeting = threading.Timer(0.1, lambda: (tmp_path / "runs" / "meeting").open("w").close())
    meeting.start()
    (outcome,) = run_jobs([one], show=False, script=script)
    assert (outcome.status, outcome.seconds) == ("finished", 0.0)
    assert events(tmp_path) == ["start 20", "end 20"]


def test_a_process_that_finds_its_run_directory_taken_is_no_failure(
    script: Path, job: Callable[..., Job], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, taken = job(12), []
    start = Local.start

    def start_late(self: Local, runs: Sequence[Start], script: Path) -> "list[Running | OSError]":
        taken.append(Holder(tmp_path / "runs" / "12"))  # between the look and the start
        threading.Timer(0.3, lambda: taken[0].leave({"status": "finished", "step": 10, "val/loss": 0.5})).start()
        return start(self, runs, script)

    monkeypatch.setattr(Local, "start", start_late)
    (outcome,) = run_jobs([one], show=False, script=script)
    assert (outcome.status, len(taken)) == ("finished", 1)
    assert events(tmp_path) == ["start 12"]


@pytest.fixture
def hanging(tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """hanging(seed): the job of that seed has done a step, and no more since; 0.1 s of that are too long."""
    monkeypatch.setattr(standstill, "OWN_SECONDS", 0.0)

    def make(seed: int) -> None:
        run_dir = tmp_path / "runs" / str(seed)
        config = (run_dir / "config.yaml").read_text()
        (run_dir / "config.yaml").write_text(config.replace("timeout_seconds: 600.0", "timeout_seconds: 0.1"))
        (run_dir / "heartbeat").touch()
        os.utime(run_dir / "heartbeat", (then := time.time() - 7205, then))

    return make


def test_a_run_that_hangs_is_named_and_ended_and_the_others_go_on(
    script: Path,
    job: Callable[..., Job],
    tmp_path: Path,
    hanging: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("launch.watch.GRACE_SECONDS", 0.1)  # it does not save when it is asked to
    jobs_ = [job(16), job(1)]
    hanging(16)
    threading.Thread(target=(tmp_path / "runs" / "waiting").read_bytes, daemon=True).start()
    monkeypatch.setattr("launch.progress.REFRESH_SECONDS", 0.0)
    outcomes = run_jobs(jobs_, script=script, alike=True)
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    log = log_path(tmp_path / "runs" / "16")
    message = f"no progress for 2 h, timeout_seconds=0.1: it was ended; the same command continues it; log {log}"
    assert (outcomes[0].message, outcomes[0].exit_status) == (message, 1)
    assert "s16: hung (no progress for 2 h, timeout_seconds=0.1: it is asked to end)" in capsys.readouterr().out


def test_a_run_of_somebody_else_that_hangs_is_named_and_left_alone(
    script: Path, job: Callable[..., Job], tmp_path: Path, hanging: Callable[[int], None]
) -> None:
    jobs_ = [job(15), job(1)]
    hanging(15)
    holder = Holder(tmp_path / "runs" / "15")
    outcomes = run_jobs(jobs_, show=False, script=script)
    holder.leave()
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert outcomes[0].message == (
        f"process {os.getpid()} on {socket.gethostname()} holds {tmp_path / 'runs' / '15'} and has made no progress "
        "for 2 h; end that process, and the same command continues it"
    )
    assert events(tmp_path) == ["start 1", "end 1"]


def test_jobs_share_the_cores_unless_the_user_said_otherwise(
    script: Path, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    run_jobs([job(1)], Local(at_once=2), show=False, script=script)
    assert environment(tmp_path, 1)["OMP_NUM_THREADS"] == "4"
    assert environments(3, 4, [])[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_jobs([job(2)], Local(at_once=2), show=False, script=script)
    assert environment(tmp_path, 2)["OMP_NUM_THREADS"] == "7"


def test_jobs_share_the_devices(
    script: Path, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visible(at_once: int, ranks: int, devices: list[str]) -> list[str | None]:
        return [each.get("CUDA_VISIBLE_DEVICES") for each in environments(at_once, ranks, devices)]

    assert visible(2, 2, ["4", "5", "6", "7"]) == ["4,5", "6,7"]
    assert visible(3, 1, ["0", "1"]) == ["0", "1", "0"]
    assert visible(2, 2, []) == [None, None]
    with pytest.raises(ConfigError, match="2 jobs of 2 ranks at once want 4 CUDA devices, there are 3; run fewer"):
        visible(2, 2, ["0", "1", "2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    run_jobs([job(20, "auto"), job(21, "auto")], Local(at_once=2), show=False, script=script)
    assert [environment(tmp_path, seed)["CUDA_VISIBLE_DEVICES"] for seed in (20, 21)] == ["GPU-a", "GPU-b"]


def test_as_many_jobs_run_at_once_as_there_are_devices_or_else_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_cores", lambda: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [processes.capacity(ranks) for ranks in (1, 2, 8)] == [6, 3, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [processes.capacity(ranks) for ranks in (1, 3, 4)] == [4, 1, 1]


def test_devices_are_those_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_devices() == []
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: a)'\necho '  MIG 1g.18gb'\necho 'GPU 1: H200 (UUID: b)'\n")
    fake.chmod(0o755)
    assert cuda_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert cuda_devices() == []


@pytest.mark.parametrize(("at_once", "ranks"), [(0, 1), (1, 0)])
def test_fewer_than_one_at_once_is_refused(at_once: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"at_once={at_once} and ranks={ranks} must be >= 1"):
        Local(at_once, ranks)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("step 1\nerror: no disk\nhint: buy one\n", "error: no disk"),
        ('Traceback\n  File "x", line 1\nValueError: bad\nrun directory x\n', "ValueError: bad"),
        (
            "[rank1]: KeyError: 'x'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n",
            "KeyError: 'x'",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("Bus error\n\n", "Bus error"),
        ("", ""),
    ],
)
def test_the_message_is_the_error_among_what_a_process_wrote(log: str, message: str) -> None:
    assert reported(log) == message


@pytest.mark.slow
def test_torchruns_ranks_tell_how_they_ended_through_the_run_directory(script: Path, job: Callable[..., Job]) -> None:
    (outcome,) = run_jobs([job(11)], Local(ranks=2), show=False, script=script)  # torchrun itself exits with 1
    assert (outcome.status, outcome.exit_status, outcome.message) == ("diverged", 3, "error: not finite at step 6")
    assert "--nproc_per_node=2" in log_path(outcome.run_dir).read_text()


def test_progress_follows_metrics_as_they_grow_and_start_over(tmp_path: Path) -> None:
    def write(mode: str, *rows: dict[str, Any], rest: str = "") -> None:
        with metrics.open(mode) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows) + rest)

    metrics, progress = tmp_path / "metrics.jsonl", JobProgress("a", tmp_path, 100, state="running")
    progress.update()
    assert (progress.step, progress.val_loss, progress.eta) == (0, None, "")
    write("w", {"step": 10, "seconds": 20.0, "val/loss": 5.5}, rest='{"step": 20, "sec')
    progress.update()
    assert (progress.step, progress.val_loss, progress.eta) == (10, 5.5, "0:03:00")
    write("a", rest='onds": 30.0}\n')
    progress.update()
    assert (progress.step, progress.val_loss, progress.eta) == (20, 5.5, "0:02:00")
    metrics.rename(tmp_path / "before")
    write("w", {"step": 5, "seconds": 1.0, "val/loss": None})
    progress.update()
    assert (progress.step, progress.val_loss) == (5, None)
    assert line(progress) == "running, step 5/100, ETA 0:00:19"


def test_the_table_keeps_to_the_screen_and_shows_first_what_runs_or_failed() -> None:
    jobs = [JobProgress(f"job{n}", Path("x"), 10, state="finished") for n in range(8)]
    jobs[3].state, jobs[7].state = "failed", "running"
    console = Console(width=80, record=True, file=StringIO())
    console.print(table(jobs, 3))
    shown = console.export_text()
    assert [name for name in (f"job{n}" for n in range(8)) if name in shown] == ["job0", "job3", "job7"]
    assert "1 running, 1 failed, 6 finished (5 not shown)" in shown


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_its_jobs_best_first(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    combinations = [["device=cpu", f"seed={seed}", f"run_dir=runs/{seed}"] for seed in (5, 11, 3, 12, 4)]
    assert sweep(str(script), combinations, launch=TWO) == 3
    (path,) = Path("runs").glob("sweep-????????.csv")
    found = rows(path)
    assert [row["seed"] for row in found] == ["3", "4", "5", "11", "12"]
    assert [row["val/loss"] for row in found] == ["0.3", "0.4", "0.5", "", ""]
    assert [row["status"] for row in found] == ["finished"] * 3 + ["diverged", "failed"]
    assert "device" not in found[0]
    printed = capsys.readouterr().out
    assert "failed: seed=12 run_dir=runs/12: error: data.root holds nothing (log runs/12.log)" in printed
    assert f"the same command tries these again: {shlex.join(sys.orig_argv)}\nsummary  {path}\n" in printed
    ranked = [text.split() for text in printed.splitlines() if text.startswith(("  3 ", "  4 ", "  5 "))]
    assert [cells[2] for cells in ranked[:3]] == ["0.3000", "0.4000", "0.5000"]
    assert ranked[3:] == [["3", "of", "5", "0.4000", "0.1000"]]  # the only arm
    assert "incomplete: seed 11 diverged, seed 12 failed" in printed


def test_a_sweep_over_seeds_ends_with_its_arms_best_first_and_incomplete_ones_last(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = {"1e-3": (5, 4, 9), "2e-3": (2, 3, 8), "4e-3": (1, 11, 12), "8e-3": (10,)}
    combinations = [
        ["device=cpu", f"optim.lr={lr}", f"seed={seed}", f"run_dir=runs/{seed}"]
        for lr, several in seeds.items()
        for seed in several
    ]
    assert sweep(str(script), combinations, launch=TWO) == 3
    (path,) = Path("runs").glob("sweep-*-arms.csv")
    printed, found = capsys.readouterr().out, rows(path)
    assert [(row["optim.lr"], row["seeds"]) for row in found] == [
        ("2e-3", "3"),
        ("1e-3", "3"),
        ("8e-3", "1"),
        ("4e-3", "1"),
    ]
    assert [float(row["val/loss mean"]) for row in found] == pytest.approx([1.3 / 3, 0.6, 1.0, 0.1])
    assert [float(row["val/loss sd"] or "nan") for row in found] == pytest.approx(
        [np.std([0.2, 0.3, 0.8], ddof=1), np.std([0.5, 0.4, 0.9], ddof=1), math.nan, math.nan], nan_ok=True
    )
    assert found[3]["missing"] == "seed 11 diverged; seed 12 failed"
    assert "incomplete: optim.lr=4e-3: seed 11 diverged, seed 12 failed" in printed
    cells = [line.split() for line in printed.splitlines() if line.startswith(("  1e-3", "  8e-3", "  4e-3"))]
    assert cells[-3:] == [
        ["1e-3", "3", "0.6000", "0.2646"],
        ["8e-3", "1", "1.0000"],
        ["4e-3", "1", "of", "3", "0.1000"],
    ]


@pytest.mark.slow
def test_a_sweep_trains_each_combination_and_a_second_one_finds_all_done(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    combinations = expand([*tiny, "seed=1,2"])
    assert sweep(str(ROOT / "train.py"), combinations, launch=TWO) == 0
    (path,) = Path("runs").glob("sweep-????????.csv")
    first, logs = path.read_text(), [log.read_text() for log in sorted(Path("runs").glob("*.log"))]
    assert sorted(row["seed"] for row in rows(path)) == ["1", "2"]
    assert {row["run_dir"] for row in rows(path)} == {compose(each).run_dir for each in combinations}
    assert all(float(row["val/loss"]) > 0 for row in rows(path))
    assert sweep(str(ROOT / "train.py"), combinations, launch=TWO) == 0
    assert path.read_text() == first
    assert [log.read_text() for log in sorted(Path("runs").glob("*.log"))] == logs
    shutil.rmtree("runs")


def test_the_runner_needs_no_torch() -> None:
    code = "import sys, launch.sweep; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("seeds", "started"),
    [
        ((12, 12.5, 1), ["12"]),  # bad input
        ((13, 13.5, 1), ["13", "13.5"]),  # the same words twice
        ((13, 14, 1), ["13", "14", "1"]),
        ((11, 11.5, 1), ["11", "11.5", "1"]),  # diverged, which is no failure
    ],
)
def test_jobs_that_are_alike_stop_at_a_failure_that_all_would_share(
    script: Path, job: Callable[..., Job], tmp_path: Path, seeds: tuple[float, ...], started: list[str]
) -> None:
    script.write_text(STAND_IN.replace('int(given["seed"])', 'int(float(given["run_dir"].rpartition("/")[2]))'))
    jobs_ = [Job(f"s{seed}", (*job(1).overrides[::2], f"run_dir={tmp_path}/runs/{seed}")) for seed in seeds]
    outcomes = run_jobs(jobs_, show=False, script=script, alike=True)
    assert [event.removeprefix("start ") for event in events(tmp_path) if event.startswith("start")] == started
    assert [outcome.job.name for outcome in outcomes] == [f"s{name}" for name in started]


def test_what_a_run_directory_is_blamed_for_is_that_jobs_alone(tmp_path: Path) -> None:
    def failed(words: str, exit_status: int = 2) -> Outcome:
        return Outcome(Job("x", ()), tmp_path / "x", "failed", None, words, 1.0, exit_status)

    own = failed(f"error: run_dir={tmp_path / 'x'} is in use by process 7")
    assert not runner.is_shared([own, own])
    assert runner.is_shared([own, failed("error: no data")])
    assert runner.is_shared([failed("RuntimeError: no. 1", 1), failed("RuntimeError: no. 2", 1)])
    assert not runner.is_shared([failed("RuntimeError: a", 1), failed("RuntimeError: b", 1)])


@pytest.mark.parametrize("loss", [math.nan, -math.inf, None])
def test_a_result_without_a_finite_loss_is_no_finished_job(
    script: Path, job: Callable[..., Job], tmp_path: Path, loss: float | None
) -> None:
    run_jobs(first := [job(1)], show=False, script=script)
    (tmp_path / "runs" / "1" / "result.json").write_text(
        json.dumps({"status": "finished", "step": 9, "val/loss": loss})
    )
    (outcome,) = run_jobs(first, show=False, script=tmp_path / "absent.py")
    assert (outcome.status, outcome.exit_status, outcome.message) == ("diverged", 3, "diverged at step 9")
    assert best_first([outcome, Outcome(first[0], tmp_path, "finished", {"val/loss": 4.0}, None, 1.0)]) == [1, 0]


@pytest.mark.parametrize("content", ["[1]", "{", "5", '{"status": 5}', '{"status": "finished", "val/loss": "x"}'])
def test_a_damaged_result_is_none_and_the_job_runs(
    script: Path, job: Callable[..., Job], tmp_path: Path, content: str
) -> None:
    one = job(1)
    (tmp_path / "runs" / "1" / "result.json").write_text(content)
    assert jobs.unfinished([one]) == [one]
    assert [outcome.status for outcome in run_jobs([one], show=False, script=script)] == ["finished"]
    assert jobs.unfinished([one]) == []


def test_a_damaged_configuration_is_left_to_the_process_that_says_so(
    script: Path, job: Callable[..., Job], tmp_path: Path
) -> None:
    one = job(1)
    (tmp_path / "runs" / "1" / "result.json").write_text('{"status": "finished", "val/loss": 1}')
    (tmp_path / "runs" / "1" / "config.yaml").write_text("a: [")
    assert jobs.unfinished([one]) == [one]


def test_a_standing_takes_in_whatever_the_rows_are(tmp_path: Path) -> None:
    rows = [
        "5",
        "[1]",
        "{",
        '{"step": "x", "seconds": []}',
        '{"step": 3, "seconds": 1e999, "val/loss": NaN}',
        "[" * 9999,
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 4, "seconds": 2.0, "val/loss": 4.5}']) + "\n")
    progress = JobProgress("x", tmp_path, 8, state="running")
    progress.update()
    assert (progress.step, progress.seconds, progress.val_loss, progress.eta) == (4, 2.0, 4.5, "0:00:02")
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    progress.update()


def test_a_full_disk_costs_a_sweep_its_csv_and_not_its_verdict(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.sweep.write_text", refuse)
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "5.log").symlink_to("/dev/full")
    combinations = [["device=cpu", f"seed={seed}", f"run_dir=runs/{seed}"] for seed in (5, 3)]
    assert sweep(str(script), combinations, launch=TWO) == 0
    printed = capsys.readouterr()
    assert "0.3000" in printed.out and "0.5000" in printed.out and "summary" not in printed.out
    assert "warning: runs/5.log cannot be written: No space left on device" in printed.err
    assert "cannot be written: No space left on device" in printed.err.splitlines()[-1]
