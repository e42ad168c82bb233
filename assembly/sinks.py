"""Opens and closes the sinks of a run and sends them rows; a sink that fails does not end the run."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TypeVar

from assembly.run import Run
from configs import flat, plug_in
from trainer import environment
from trainer.console import Console
from trainer.garbage import collect_garbage
from trainer.metrics import JsonLines, Sink
from trainer.run_directory import RunDirectoryError

T = TypeVar("T")
log = logging.getLogger(__name__)


def configured_sinks(run: Run) -> list[Sink]:
    """Returns the sinks that the configuration names; writes nothing. Raises: ValueError: if one refuses a setting."""
    settings = {"run_dir": run.directory.path, "settings": flat(run.config)}
    return [plug_in(node, **settings) for node in run.config.logging.values()]


def built_in_sinks(run: Run) -> list[Sink]:
    """Returns the sinks of every run: metrics.jsonl and the console. Raises: RunDirectoryError: if it cannot write."""
    path = run.directory.path / "metrics.jsonl"
    try:
        return [JsonLines(path, run.step), Console(max_steps=run.config.max_steps, first_step=run.step)]
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error


def close_on_exit(stack: ExitStack, run: Run) -> None:
    """Makes the stack close the sinks, which may have to wait for a disk or a network."""

    def close(sink: Sink) -> None:
        what = f"closing the sink {type(sink).__name__}"
        with run.strategy.watch.busy(what):
            attempt(what, sink.close)

    for sink in run.sinks:
        stack.callback(close, sink)


def write(run: Run, row: dict[str, float]) -> None:
    """Collects garbage, on every rank, and sends a row to all sinks; a sink that fails gets no more rows."""
    collect_garbage(row)
    with run.clock.paused(), run.strategy.watch.busy("writing metrics"):
        for sink in list(run.sinks):
            try:
                sink.write(row)
            except Exception as error:
                run.sinks.remove(sink)
                reason = f"{type(error).__name__}: {error}"
                log.warning("warning: the sink %s failed (%s) and gets no more rows", type(sink).__name__, reason)


def diagnostics(run: Run) -> dict[str, float]:
    """Returns what is logged of optimizers, memory and checkpoints; every rank must call this."""
    values = {key: float(value) for key, value in run.optimizer.diagnostics().items()}
    run.hints = run.optimizer.hints(values)
    own = run.optimizer.state_bytes(), environment.memory_bytes(run.strategy.device)
    of_ranks = zip(*run.strategy.ranks.gather(own), strict=True)
    values |= dict(zip(("optim/state_bytes", "memory/peak_bytes"), map(max, of_ranks), strict=True))
    if (written := run.store.written) is not None:
        values |= {f"checkpoint/{name}": value for name, value in asdict(written).items()}
    return values


def attempt(what: str, function: Callable[[], T]) -> T | None:
    """Returns what function returns; None, with a warning that names `what`, if it fails."""
    try:
        return function()
    except Exception as error:
        log.warning("warning: %s failed (%s: %s); the run itself is unharmed", what, type(error).__name__, error)
        return None
