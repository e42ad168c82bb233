"""What goes wrong with one rank, on purpose and at a chosen moment; the processes of the tests import it.

A place is the dotted name by which its caller finds a function.
"""

import gc
import math
import os
import pkgutil
import resource
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

import assembly.ending
import train as training
import trainer.ranks
from assembly.run import Run
from data import TokenLoader
from model import LanguageModel
from optim.sharding import local
from trainer.checkpoint import parameters_sha256

Fault = Callable[[], None]


def train(config: DictConfig, faults: Mapping[int, Sequence[Fault]]) -> None:
    """train.py with that configuration on this rank, with this rank's faults; ends as the interpreter would."""
    trainer.ranks.CAUSE_SECONDS = 0.5
    assembly.ending.plot_loss = lambda rows, path, title: None  # matplotlib takes longer than the run
    for fault in faults.get(int(os.environ["RANK"]), ()):
        fault()
    try:
        training.run_and_exit(config)
    except Exception:
        traceback.print_exc()
        os._exit(1)


def from_step(step: int, act: Callable[[], None]) -> None:
    """Does act as the loader is asked for the batches of that step."""

    def told(batches: Callable[..., Any], loader: TokenLoader, asked: int) -> Any:
        if asked == step:
            act()
        return batches(loader, asked)

    _wrap("data.TokenLoader.batches", told)


def at(step: int, place: str, act: Callable[[], None]) -> None:
    """Does act at the first call of place from that step on, before what is called."""
    armed: list[Callable[[], None]] = []

    def acted(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        if armed:
            armed.pop()()
        return function(*arguments, **settings)

    _wrap(place, acted)
    from_step(step, lambda: armed.append(act))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(3600)


def fail() -> None:
    raise LookupError("planted")


def fill_disk() -> None:
    """No file of this process may grow beyond 8 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))


def free_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def await_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def poison(first: int, last: int) -> None:
    """Makes this rank's training loss, and so its gradient, nan from step first to step last."""
    is_poisoned = False

    def switch(on: bool) -> None:
        nonlocal is_poisoned
        is_poisoned = on

    def poisoned(loss_of: Callable[..., torch.Tensor], model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return loss_of(model, batch) * (math.nan if is_poisoned and model.training else 1.0)

    from_step(first, lambda: switch(True))
    from_step(last + 1, lambda: switch(False))
    _wrap("train.next_token_loss", poisoned)


def poison_parameters() -> None:
    """Makes this rank's part of a parameter nan."""
    gc.unfreeze()  # objects from before the loop, which are not listed otherwise
    (model,) = (found for found in gc.get_objects() if issubclass(type(found), LanguageModel))
    with torch.no_grad():
        local(next(model.parameters())).fill_(math.nan)


def delay(place: str, seconds: float) -> None:
    """Makes the first call of place take so much longer."""
    once = iter([seconds])

    def delayed(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        time.sleep(next(once, 0.0))
        return function(*arguments, **settings)

    _wrap(place, delayed)


def leave_digest(folder: Path) -> None:
    """Writes the digest of the parameters that this rank ends with."""

    def digested(finish: Callable[..., Any], run: Run, status: str) -> Any:
        named = [(name, run.strategy.full_tensor(p)) for name, p in sorted(run.model.named_parameters())]
        (folder / f"digest-{run.strategy.rank}").write_text(parameters_sha256(named))
        return finish(run, status)

    _wrap("train.finish", digested)


def _wrap(place: str, wrapper: Callable[..., Any]) -> None:
    owner, _, name = place.rpartition(".")
    found = pkgutil.resolve_name(owner)
    function = getattr(found, name)
    setattr(found, name, lambda *arguments, **settings: wrapper(function, *arguments, **settings))
