"""Two torchruns on this machine, as on two nodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from remains import ends, metrics
from world import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts the torchrun of a node, with one rank; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=two"]

    def start(node: int, *overrides: str) -> "subprocess.Popen[bytes]":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *meeting]
        command = [*torchrun, "--max-restarts=3", str(ROOT / "train.py"), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"node{node}.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        if node == 0:  # where all meet, as at the first node's address
            wait_for(lambda: is_open(port))
        return started[-1]

    yield start
    for each in started:
        kill(each)


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(agent: "subprocess.Popen[bytes]") -> None:
    """As if the node lost power."""
    if agent.poll() is None:
        for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
            process.send_signal(signal.SIGKILL)
        agent.wait()


def test_two_nodes_train_like_one_also_when_one_was_lost_and_both_are_started_again(
    agent: Callable[..., "subprocess.Popen[bytes]"], tiny: list[str], tmp_path: Path
) -> None:
    own = [*tiny, "parallel=ddp", "sample_tokens=0", "max_steps=60"]
    both = [agent(node, *own, f"run_dir={tmp_path / 'two'}") for node in (0, 1)]
    rows = tmp_path / "two" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and '"step": 8' in rows.read_text())
    kill(both[1])
    kill(both[0])  # torch 2.13 does not let another node take its place: rank 0 does not tell it where to meet
    again = [agent(node, *own, f"run_dir={tmp_path / 'two'}") for node in (0, 1)]
    assert [each.wait(90) for each in again] == [0, 0]
    one = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    subprocess.run([*one, *own, f"run_dir={tmp_path / 'one'}"], check=True, capture_output=True)
    assert ends(tmp_path / "two") == ends(tmp_path / "one")
    losses = [{row["step"]: row.get("train/loss") for row in metrics(tmp_path / name)} for name in ("two", "one")]
    assert losses[0] == losses[1]
    assert json.loads((tmp_path / "two" / "result.json").read_text())["status"] == "finished"
