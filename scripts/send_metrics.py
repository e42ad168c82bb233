"""Sends the rows of runs to sinks later: python scripts/send_metrics.py RUN ... logging=wandb [key=value ...].

RUN        a run directory, a folder that holds some, or a pattern: 'runs/*'
logging=   tensorboard, wandb, or [tensorboard,wandb]: as for train.py, with the same keys
What is sent is metrics.jsonl and the configuration of each run, as if the sink had been there from the start; sent
again, it replaces what was sent before. A run that is going on is refused. Exit status: 0; 1 if a sink could not take
everything, which it says; 2 for bad input.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from typing_extensions import override

from configs import ConfigError, answer, compose, flat, plug_in, read_config
from files.lock import InUseError, Lock
from launch.listing import paths_of, run_directories
from launch.run_files import CONFIG, LOCK, METRICS
from launch.statuses import FAILED
from trainer.metrics import Sink, read_rows

Node = Mapping[str, Any]
log = logging.getLogger("trainer.send_metrics")  # beside those of the sinks


def main(arguments: list[str]) -> int:
    """Sends the rows; returns the exit status."""
    return answer(arguments, __doc__, _main)


def _main(arguments: list[str]) -> int:
    settings = [each for each in arguments if each.startswith(("logging=", "logging.", "~logging."))]
    places = [each for each in arguments if each not in settings]
    if odd := [each for each in places if each.startswith("-")]:
        raise ConfigError(f"{odd[0]} is no option; there are logging=, its keys and --help")
    nodes = compose(settings).logging
    if not nodes:
        raise ConfigError("logging= is missing: it says where to send the rows, such as logging=wandb")
    found = {path.resolve(): path for place in places for each in paths_of(place) for path in run_directories(each)}
    if not found:
        raise ConfigError("give the directories of runs: there is none in " + (", ".join(places) or "nothing"))
    return FAILED if sum(send(path, nodes) for path in found.values()) else 0


def send(run_dir: Path, nodes: Mapping[str, Node]) -> int:
    """Sends the rows of a run to the sinks that the nodes describe; returns how many warnings the sinks gave.

    Raises: ConfigError: if a process uses the run, or a sink refuses a setting. ReadingError: if a file is damaged.
    """
    settings = flat(read_config(run_dir / CONFIG))
    rows = read_rows(run_dir / METRICS) if (run_dir / METRICS).exists() else []
    with _locked(run_dir), _counted() as warnings:
        if damaged := _n_lines(run_dir / METRICS) - len(rows):
            log.warning("warning: %s: %d damaged lines are left out", run_dir / METRICS, damaged)
        for name, node in nodes.items():
            before = len(warnings)
            sink: Sink = plug_in(node, run_dir=run_dir.absolute(), settings=settings)
            try:
                _write(sink, rows)
            except Exception as error:  # a sink must not raise, but those of others may
                log.warning("warning: the sink %s failed (%s: %s)", name, type(error).__name__, error)
            if len(warnings) == before:
                print(f"{run_dir}: {len(rows)} rows to {name}", flush=True)
    return len(warnings)


def _n_lines(path: Path) -> int:
    """How many lines are complete: a killed run may leave one that is not."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _write(sink: Sink, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        for row in rows:
            sink.write({key: value for key, value in row.items() if value is not None})  # a loss that was not finite
    finally:
        sink.close()


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """While entered, no run begins in the directory."""
    try:
        lock = Lock(run_dir / LOCK)
    except InUseError as owner:
        raise ConfigError(
            f"{run_dir} is in use by {owner}, whose own sinks take its rows; wait until it ends"
        ) from None
    try:
        yield
    finally:
        lock.release(leave_no_trace=True)


class _Counter(logging.Handler):
    """Prints warnings, and keeps them: by these a sink says that its destination failed, for it must not raise."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())
        print(self.found[-1], file=sys.stderr, flush=True)


@contextmanager
def _counted() -> Iterator[list[str]]:
    counter, ours = _Counter(), logging.getLogger("trainer")
    ours.addHandler(counter)
    try:
        yield counter.found
    finally:
        ours.removeHandler(counter)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
