"""Kills scripts/reproduce.py at random moments; its results must be those of an undisturbed one, timings aside.

    python tests/reproduce/soak.py --kills 10

Too long for the suite: 82 runs or more. A claim whose arms are tuned, branch and are compared, on a model that trains
in a moment; every second kill takes the command alone, the others its runs too.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLAIM = ["claim=sophia_clip", "scale=nano", "seeds=1", "jobs=2", "model.n_layer=1", "model.n_head=2"]
CLAIM += ["model.n_embd=16", "model.block_size=16", "global_batch=8", "micro_batch=8", "data.source.megabytes=1"]
CLAIM += ["data.tokenizer.vocab_size=512"]
TIMES = {"seconds", "date", "peak_bytes", "seconds in training steps"}  # keys
PICTURES = {"step-time", "peak-memory"}
COLUMNS = ("seconds", "peak memory")


def start(out: Path, data: Path) -> subprocess.Popen[bytes]:
    """The command; prints into a file beside its folder."""
    command = [sys.executable, "scripts/reproduce.py", *CLAIM, f"data.root={data}", f"out={out}"]
    out.parent.mkdir(exist_ok=True)
    with out.with_suffix(".txt").open("a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def kill(command: subprocess.Popen[bytes], with_runs: bool) -> int:
    """Kills the command, and its runs; how many of those there were."""
    runs = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    command.kill()
    for pid in runs if with_runs else ():
        os.kill(int(pid), signal.SIGKILL)
    command.wait()
    return len(runs)


def timeless(value: Any) -> Any:
    """Results without what a clock or the machine's memory says."""
    if isinstance(value, list):
        kept = [each for each in value if not (isinstance(each, dict) and each.get("name") in PICTURES)]
        return [timeless(each) for each in kept]
    if not isinstance(value, dict):
        return value
    if {"columns", "rows"} <= value.keys():
        kept = [n for n, title in enumerate(value["columns"]) if not title.startswith(COLUMNS)]
        value = {**value, "rows": [[row[n] for n in kept] for row in value["rows"]]}
    return {key: timeless(each) for key, each in value.items() if key not in TIMES}


def main() -> int:
    """Runs both; the exit status, 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how often the command is killed")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds from a start to its kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with TemporaryDirectory() as scratch:
        uninterrupted, killed = (Path(scratch, name, "out") for name in ("uninterrupted", "killed"))
        data = Path(scratch, "data")
        if status := start(uninterrupted, data).wait():
            print(uninterrupted.with_suffix(".txt").read_text())
            return status
        for n in range(1, arguments.kills + 1):
            command, seconds = start(killed, data), random.uniform(0, arguments.longest)
            time.sleep(seconds)
            if command.poll() is not None:
                print(f"ended by itself before kill {n}; lower --longest")
                return 2
            runs = kill(command, with_runs=n % 2 == 0)
            done = len(list(killed.parent.glob("atlas/*/*/result.json")))
            print(f"kill {n}: {seconds:.1f} s after the start, {runs} running, {done} ended before", flush=True)
        status = start(killed, data).wait()
        found = [timeless(json.loads((out / "results.json").read_bytes())) for out in (uninterrupted, killed)]
        is_equal = status == 0 and found[0] == found[1]
        print(f"{arguments.kills} kills; " + ("the same results" if is_equal else "different results"))
        return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
