"""Kills a run of two ranks at random moments, again and again; its end must be an uninterrupted run's, bit for bit.

    python tests/distributed/soak.py --cycles 20

Too long for the suite. The runs are torchrun's, DDP in fp32; every second kill takes one rank, the others all.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from remains import ends, metrics  # noqa: E402  # both need the path

OVERRIDES = ["parallel=ddp", "precision=fp32", "device=cpu", "save_every=5", "eval_every=50", "sample_tokens=0"]
OVERRIDES += ["model=pico", "micro_batch=4", "max_steps=300"]  # that two ranks share, and that the kills do not outlast


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[str]:
    """torchrun train.py with two ranks, in a process group of its own; prints into a file beside the folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    with folder.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(
            [*command, *OVERRIDES, *overrides, f"run_dir={folder}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=output,
            stderr=output,
            text=True,
        )


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The launcher's processes, none before it has started them."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill(launcher: subprocess.Popen[str], one: bool) -> str:
    """Kills one rank, which ends the job, or every process; what was killed."""
    ranks = ranks_of(launcher)
    if one and ranks:
        rank = random.randrange(len(ranks))
        os.kill(ranks[rank], signal.SIGKILL)
        launcher.wait(60)
        return f"rank {rank}"
    for pid in [launcher.pid, *ranks]:  # the ranks are in sessions of their own
        os.kill(pid, signal.SIGKILL)
    launcher.wait()
    return "all"


def main() -> int:
    """Runs both; the exit status, 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--longest", type=float, default=14.0, help="seconds from a start to its kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as train.py takes them")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with TemporaryDirectory() as scratch:
        uninterrupted, killed = Path(scratch, "uninterrupted"), Path(scratch, "killed")
        if status := start(uninterrupted, arguments.overrides).wait():
            print(uninterrupted.with_suffix(".txt").read_text())
            return status
        for cycle in range(arguments.cycles):
            launcher, seconds = start(killed, arguments.overrides), random.uniform(0, arguments.longest)
            time.sleep(seconds)
            if launcher.poll() is not None:
                print(f"ended by itself before kill {cycle + 1}: it needs more steps")
                return 2
            what = kill(launcher, one=cycle % 2 == 0)
            step = metrics(killed)[-1]["step"] if (killed / "metrics.jsonl").exists() else 0
            print(f"kill {cycle + 1}: {what}, {seconds:.1f} s after the start, logged up to step {step}", flush=True)
        status = start(killed, arguments.overrides).wait()
        print(killed.with_suffix(".txt").read_text()[-300:])
        is_equal = status == 0 and ends(uninterrupted) == ends(killed)
        print(f"{arguments.cycles} kills; " + ("equal, bit for bit" if is_equal else "different"))
        return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
