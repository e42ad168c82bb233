"""Seconds from the start of a process to its answer, or to the first step of training.

train.py trains what the first command does, on data that are prepared already, and evaluates before its first step.
--peer is a nanoGPT checkout: its train.py does the same with the settings that its README gives for a CPU, less
compiling, on the tokens of ours.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from assembly.data import data_path
from configs import compose
from data.shards import read_meta
from scripts.benchmarking import Command, a_count, a_path, nanogpts_train, report, row_of, taking_turns

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP, ITS_FIRST_STEP = "step 0/", "iter 0:"  # how the line begins that is printed after it
# Of its README, "I only have a macbook", less what nanogpts_train gives.
ITS_SETTINGS = {
    "eval_iters": 20, "log_interval": 1, "block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128,
    "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports commands."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = data_path(compose([f"data.root={folder / 'prepared'}"]))
        commands = our_commands(folder)
        if arguments.peer:
            (theirs := folder / "peer").mkdir()
            n_ids = int(read_meta(path)["vocab_size"])
            of_peer = nanogpts_train(arguments.peer, theirs, path, n_ids, ITS_SETTINGS)
            commands["nanoGPT's train.py to its first step"] = of_peer._replace(until=ITS_FIRST_STEP)
        found = taking_turns(commands, arguments.rounds)
    ours = found["train.py to its first step"]
    rows = [row_of(name, each, ours if "first step" in name else None) for name, each in found.items()]
    results = [{"what": name, "seconds": [each._asdict() for each in taken]} for name, taken in found.items()]
    report("from the start of a process", rows, results, arguments.json)


def our_commands(folder: Path) -> dict[str, Command]:
    """Our commands, by what they show."""
    python, train, reproduce = sys.executable, str(ROOT / "train.py"), str(ROOT / "scripts" / "reproduce.py")
    run_dir, root = f"run_dir={folder / 'run'}", f"data.root={folder / 'prepared'}"
    imported = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train"
    return {
        "import torch": Command([python, "-c", "import torch"], folder),
        "import train": Command([python, "-c", imported], folder),
        "train.py --help": Command([python, train, "--help"], folder),
        "reproduce.py --help": Command([python, reproduce, "--help"], folder),
        "reproduce.py --dry-run": Command([python, reproduce, "claim=sophia_2x", "scale=nano", "--dry-run"], folder),
        "train.py to its first step": Command([python, train, run_dir, root], folder, until=FIRST_STEP),
    }


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py startup`."""
    command.add_argument("--peer", type=a_path, help="a nanoGPT checkout")
    command.add_argument("--rounds", type=a_count, default=6)
