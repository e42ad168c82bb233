"""What all benchmarks share: variants in separate processes, interleaved rounds, medians, ratios.

A variant is a function that returns a function for one round. Each runs in its own process, because allocator settings,
thread pools and compiled code belong to a process. Every round runs all variants in turn, so that a slow minute of the
machine affects all of them; only one process computes at a time.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from configs import ConfigError
from files.errors import PathError
from files.paths import expanded
from trainer import environment

MOST = 100_000
SCRIPT = Path(__file__).with_name("bench.py")  # what a variant's process runs
Round = Callable[[], None]  # does the work once, and waits for the device


def serve(settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Round]) -> None:
    """Runs in a variant's process: warms up, then answers every line on stdin with the seconds of a round."""
    with redirect_stdout(io.StringIO()):  # stdout is for answers
        run = make(settings)
    for _ in range(settings["warmup"]):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


def a_path(text: str) -> str:
    """Returns a path of the command line, with ~ and variables replaced."""
    try:
        return str(expanded(text, "path"))
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def a_count(text: str, least: int = 1) -> int:
    """Returns a whole number of the command line, 1 or more."""
    if not text.isdecimal() or not least <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {MOST}, got {text!r}")
    return int(text)


def a_count_or_0(text: str) -> int:
    """Returns a whole number of the command line, 0 or more."""
    return a_count(text, least=0)


def check_writable(file: str) -> None:
    """Checks, before anything is measured, that the file can be written. Raises: ConfigError: if not."""
    folder = Path(file).absolute().parent
    if Path(file).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json {file} cannot be written; name a file in a folder that is there")


class Worker:
    """A variant's process, seen from the benchmark."""

    def __init__(self, script: Path, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, str(script), "worker", json.dumps(dict(settings))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._wait()

    def seconds(self) -> float:
        """Runs one round; returns its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return float(self._wait())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _wait(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a benchmark's process ended early; its own message stands above")
        return line


def interleaved(script: Path, variants: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every round of every variant; every round runs all variants in turn."""
    workers: dict[str, Worker] = {}
    try:
        for name, settings in variants.items():
            workers[name] = Worker(script, settings)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, worker in workers.items():
                seconds[name].append(worker.seconds())
    finally:
        for worker in workers.values():
            worker.close()
    return seconds


def module_in(file: Path) -> ModuleType:
    """Imports the module in a file, which must exist."""
    spec = importlib.util.spec_from_file_location(f"peer_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def median_and_spread(seconds: Sequence[float]) -> tuple[float, float]:
    """Returns the median, and half the interquartile range relative to it."""
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return statistics.median(seconds), (quartiles[2] - quartiles[0]) / 2 / statistics.median(seconds)


def report(
    title: str, rows: Sequence[Mapping[str, str]], results: Sequence[Mapping[str, Any]], file: str | None
) -> None:
    """Prints the rows as a table; writes results, versions and device to a JSON file."""
    import torch

    device = environment.pick_device("auto")
    where = f"{environment.device_name(device)}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    table = Table(*rows[0], title=f"{title}\n{where}")
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if file is not None:
        Path(file).write_text(json.dumps({"machine": where, "results": list(results)}, indent=2) + "\n")
