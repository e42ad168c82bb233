"""Seconds of the first command, `python train.py`, from the start of its process to its end, and of its parts.

Data are prepared in every round. --peer is a nanoGPT checkout: its train.py trains a model of the same shape with the
same batch, as many steps (one more, as it counts) and evaluations of as many sequences, as published (fp32, eager,
unfused AdamW) on tokens of ours, which are prepared for it before. It saves two checkpoints, and draws and samples
nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from configs import RunConfig, compose
from data.shards import read_meta
from launch.stopping import leave
from scripts.benchmarking import (
    SCRIPT,
    Command,
    Took,
    a_count,
    a_path,
    nanogpts_train,
    report,
    row_of,
    took,
)

OURS, PEERS = "python train.py", "nanoGPT's train.py"
PARTS = ("imports", "preparation", "steps", "evaluation", "checkpoints", "sample", "loss curve", "teardown", "rest")
PARTS_FILE = "parts.json"


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports whole runs."""
    found: dict[str, list[Took]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        with TemporaryDirectory() as name:
            folder = Path(name)
            overrides = [*arguments.override, f"run_dir={folder / 'run'}", f"data.root={folder / 'prepared'}"]
            settings = {"folder": str(folder), "overrides": overrides, "started": time.time()}
            one = took(Command([sys.executable, str(SCRIPT), "whole", json.dumps(settings)], folder))
            found[OURS].append(one)
            for part, seconds in _parts(json.loads((folder / PARTS_FILE).read_text()), one.seconds).items():
                parts[part].append(seconds)
            if arguments.peer:
                (theirs := folder / "peer").mkdir()
                path = next(folder.glob("prepared/*/dataset.json")).parent
                n_ids, same = int(read_meta(path)["vocab_size"]), its_settings(compose(arguments.override))
                found[PEERS].append(took(nanogpts_train(arguments.peer, theirs, path, n_ids, same)))
    rows = [row_of(name, each, found[OURS]) for name, each in found.items()]
    shown = {part: f"{statistics.median(parts[part]):.2f}" for part in PARTS}
    rows += [{**dict.fromkeys(rows[0], ""), "what": f"  of ours: {part}", "seconds": shown[part]} for part in PARTS]
    results: list[dict[str, Any]] = [
        {"what": name, "seconds": [each._asdict() for each in taken]} for name, taken in found.items()
    ]
    report("the first command", rows, [*results, {"what": "parts", "seconds": parts}], arguments.json)


def its_settings(config: RunConfig) -> dict[str, Any]:
    """Ours as nanoGPT calls them. It evaluates as many sequences of the training data as of the validation data."""
    batch = config.micro_batch
    return {
        **{key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "block_size")},
        "batch_size": batch,
        "gradient_accumulation_steps": config.global_batch // batch,
        "max_iters": config.max_steps,
        "lr_decay_iters": config.max_steps,
        "eval_interval": config.eval_every,
        "eval_iters": max(config.eval_sequences // batch // 2, 1),
        "log_interval": config.log_every,
        "learning_rate": config.optim["lr"],
        "warmup_iters": config.schedule["warmup_steps"],
        "dropout": 0.0,
        "bias": True,
    }


def train_and_time(settings: Mapping[str, Any]) -> NoReturn:
    """Runs in the process that is measured: does what train.py does, and writes what its parts took."""
    import assembly.data
    import train
    from assembly import ending

    spent: dict[str, float] = defaultdict(float)
    spent["imports"] = time.time() - settings["started"]
    for module, name, part in (
        (assembly.data, "prepare", "preparation"),
        (train, "loop", "steps"),
        (train, "evaluate", "evaluation"),
        (train, "save", "checkpoints"),
        (train, "finish", "checkpoints"),  # waits for the last one
        (ending, "sample", "sample"),
        (ending, "draw", "loss curve"),
    ):
        setattr(module, name, _clocked(getattr(module, name), spent, part))
    status = train.main(compose(settings["overrides"]))
    spent["ended"] = time.time() - settings["started"]
    (Path(settings["folder"]) / PARTS_FILE).write_text(json.dumps(spent))
    leave(status)


def _clocked(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    """The function, whose seconds are added to those of its part; of steps those that no other part has."""

    def clocked(*arguments: Any, **named: Any) -> Any:
        others, started = sum(spent.values()), time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - started - (sum(spent.values()) - others)

    return clocked


def _parts(spent: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The parts of a run that took so many seconds in all."""
    found = {part: spent.get(part, 0.0) for part in PARTS}
    found["teardown"] = seconds - spent["ended"]
    found["rest"] = seconds - sum(found.values())
    return found


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py end_to_end`."""
    command.add_argument("--override", nargs="+", default=[], help="of the first command, for example max_steps=20")
    command.add_argument("--peer", type=a_path, help="a nanoGPT checkout")
    command.add_argument("--rounds", type=a_count, default=3)
