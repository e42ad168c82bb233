"""Seconds that saving takes from training: of a synchronous save, and of an asynchronous one, beside torch.save.

All save the tensors of a run, parameters and AdamW's state, in turn, to a temporary folder; every other round begins
with ours, because who writes first may find less free memory. torch.save and an fsync are what a short training script
waits for; that checks no number and leaves no digest. A step trains on one sequence; steps during a save are compared
with steps without one. An asynchronous save takes from training what it blocks, and what steps take longer meanwhile:
the thread that writes also needs cores, memory bandwidth and the GIL.
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from configs import compose, plug_in
from data import Batch
from optim.build import build
from scripts.bench_optim import model_settings
from scripts.benchmarking import Round, a_count, a_path, in_words, median_and_spread, report
from trainer import Single, environment
from trainer.allocator import tune_allocator
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.manifest import name_at


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports saves and steps."""
    if not Path(arguments.folder).is_dir():
        raise ValueError(f"--folder {arguments.folder}: there is no such folder; name one on the disk to be measured")
    tune_allocator()
    rows, results = [], []
    for name in arguments.model:
        step, tensors = _training(model_settings(name))
        with TemporaryDirectory(dir=arguments.folder) as folder:
            seconds = _seconds(step, tensors, Path(folder), arguments.rounds)
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        rows.append({"model": name, "checkpoint MB": f"{n_bytes / 1e6:,.1f}", **_row(seconds)})
        results.append({"model": name, "checkpoint_bytes": n_bytes, "seconds": seconds, **_ratios(seconds)})
    report("saving a checkpoint", rows, results, arguments.json)


def _training(shape: Mapping[str, Any]) -> tuple[Round, dict[str, Tensor]]:
    """Returns a function that does a training step, and the tensors that a run saves, by their names there."""
    device = environment.pick_device("auto")
    strategy = Single(device=device, precision=environment.pick_precision("auto", device), compiled=False)
    torch.manual_seed(0)
    model = plug_in(shape)
    strategy.prepare(model)
    node = compose(["optim=adamw"]).optim
    parameters = dict(model.named_parameters())
    optimizer = build(node, parameters, model.roles(), seed=0, global_batch=1)
    tokens = torch.randint(0, shape["vocab_size"], (2, 1, shape["block_size"]), device=device)
    batch = Batch(tokens[0], tokens[1], range(1))

    def step() -> None:
        strategy.forward_backward([batch], lambda m, b: m(b.inputs, b.targets), 1)
        strategy.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        strategy.synchronize()

    step()
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in parameters.items()}
    return step, tensors | {f"optim.{name}": tensor for name, tensor in optimizer.save_state()[0].items()}


def _seconds(step: Round, tensors: Mapping[str, Tensor], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of saves and steps in every round but the first, which allocates buffers."""
    stores = {
        is_async: CheckpointStore(folder / str(is_async), keep=1, permanent_every=None, asynchronous=is_async)
        for is_async in (False, True)
    }
    found: dict[str, list[float]] = {
        key: [] for key in ("torch.save", "synchronous", "blocked", "alone", "beside", "lost")
    }
    for n in range(rounds + 1):
        checkpoint = Checkpoint(tensors, {"step": n})
        saves = {
            "torch.save": partial(_torch_save, tensors, folder / "by_torch.pt"),
            "synchronous": partial(stores[False].save, checkpoint),
        }
        waited = {key: _clocked(saves[key]) for key in sorted(saves, reverse=n % 2 == 0)}
        alone = [_clocked(step) for _ in range(3)]
        blocked = _clocked(partial(stores[True].save, checkpoint))
        beside: list[float] = []
        while not beside or _is_writing():
            beside.append(_clocked(step))
        stores[True].wait()
        if not all((store.folder / name_at(n)).is_dir() for store in stores.values()):
            raise ValueError(f"--folder {folder.parent} did not take a checkpoint, see above; name another")
        if n:
            for key in saves:
                found[key].append(waited[key])
            found["blocked"].append(blocked)
            found["alone"] += alone
            found["beside"] += beside[:-1] or beside  # the last one outlasts the save
            found["lost"].append(blocked + sum(beside) - len(beside) * statistics.median(alone))
    return found


def _torch_save(tensors: Mapping[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(dict(tensors), file)
        file.flush()
        os.fsync(file.fileno())


def _clocked(function: Round) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _is_writing() -> bool:
    return any(thread.name == "checkpoint" for thread in threading.enumerate())


def _ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Ratios of medians: time blocked and time lost to a synchronous save; a step during a save to one without."""
    medians = {key: statistics.median(found) for key, found in seconds.items()}
    return {
        "blocked_fraction": medians["blocked"] / medians["synchronous"],
        "lost_fraction": medians["lost"] / medians["synchronous"],
        "slowdown": medians["beside"] / medians["alone"],
    }


def _row(seconds: Mapping[str, list[float]]) -> dict[str, str]:
    """The row of the printed table."""
    cells, ratios = {}, _ratios(seconds)
    for key, found in seconds.items():
        median, spread = median_and_spread(found)
        cells[key] = f"{median * 1e3:,.1f} ± {spread:.0%}"
    beside_torch = {key: in_words(seconds[key], seconds["torch.save"]) for key in ("synchronous", "lost")}
    return {
        "torch.save + fsync ms": cells["torch.save"],
        "synchronous ms": cells["synchronous"],
        "x torch.save": beside_torch["synchronous"],
        "asynchronous blocks ms": f"{cells['blocked']} ({ratios['blocked_fraction']:.1%})",
        "costs in all ms": f"{cells['lost']} ({ratios['lost_fraction']:.0%})",
        "in all x torch.save": beside_torch["lost"],
        "step ms": cells["alone"],
        "beside a save ms": f"{cells['beside']} ({ratios['slowdown']:.2f}x)",
    }


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py checkpoint`."""
    command.add_argument("--model", nargs="+", default=["gpt2_small"])
    command.add_argument("--rounds", type=a_count, default=7)
    command.add_argument(
        "--folder", type=a_path, default=".", help="on the disk to be measured; what is written there is deleted"
    )
