"""What all benchmarks share: variants in separate processes, interleaved rounds, medians, ratios.

A variant is a function that returns a function for one round. Each runs in its own process, because allocator settings,
thread pools and compiled code belong to a process. Every round runs all variants in turn, so that a slow minute of the
machine affects all of them; only one process computes at a time, but that on a GPU all warm up, which is to compile,
together. A round beside which other programs took more than a tenth of a core is taken again (Linux), at most
MOST_RETAKES times; what is left of such rounds is said. Ratios are of the rounds of a turn, their median with its 95 %
interval.
"""

import argparse
import importlib.util
import io
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from configs import ConfigError
from data.metadata import shard_name
from files.errors import PathError
from files.paths import expanded
from reproduce.rounds import ratio
from trainer import environment

MOST = 100_000
PADDED = 64  # of nanoGPT's vocabulary, a multiple
MOST_FOREIGN, CLOCK_SECONDS = 0.1, 0.03  # of a core, by other programs; what the kernel's clock of 10 ms can mistake
MOST_RETAKES, PAUSE_SECONDS = 10, 0.5
SCRIPT = Path(__file__).with_name("bench.py")  # what a variant's process runs
Round = Callable[[], None]  # does the work once, and waits for the device


def serve(settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Round]) -> None:
    """Runs in a variant's process: warms up, then answers every line on stdin.

    With the seconds of a round, those that other programs took meanwhile, and the bytes of peak memory so far.
    """
    device = environment.pick_device("auto")
    with redirect_stdout(io.StringIO()):  # stdout is for answers
        run = make(settings)
    for _ in range(settings["warmup"]):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        others = foreign_seconds()
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        print(seconds, foreign_seconds() - others, environment.memory_bytes(device), flush=True)


def foreign_seconds() -> float:
    """Returns the CPU time that all other processes have taken so far; 0 where the kernel does not say."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def is_disturbed(seconds: float, foreign: float) -> bool:
    """Whether other programs took too much of a round."""
    return foreign > max(MOST_FOREIGN * seconds, CLOCK_SECONDS)


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


class Rounds(NamedTuple):
    """Of a variant: the seconds of every round, and the peak memory of its process, on the device if there is one."""

    seconds: list[float]
    peak_bytes: int


class Worker:
    """A variant's process, seen from the benchmark."""

    peak_bytes = 0

    def __init__(self, script: Path, settings: Mapping[str, Any]) -> None:
        command = [sys.executable, str(script), "worker", json.dumps(dict(settings))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def warm_up(self) -> None:
        """Waits until the variant is ready for its first round."""
        self._wait()

    def round(self) -> tuple[float, bool]:
        """Runs one round, again where it was disturbed; returns its seconds, and whether the last one was, too."""
        assert self._process.stdin is not None
        for _ in range(MOST_RETAKES):
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
            seconds, foreign, peak_bytes = map(float, self._wait().split())
            self.peak_bytes = int(peak_bytes)
            if not is_disturbed(seconds, foreign):
                return seconds, False
            time.sleep(PAUSE_SECONDS)
        return seconds, True

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
    return {name: found.seconds for name, found in measured(script, variants, rounds).items()}


def measured(script: Path, variants: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, Rounds]:
    """Returns what is measured of every variant; every round runs all variants in turn."""
    workers: dict[str, Worker] = {}
    together = environment.pick_device("auto").type == "cuda"
    try:
        for name, settings in variants.items():
            workers[name] = Worker(script, settings)
            if not together:
                workers[name].warm_up()
        for worker in workers.values() if together else ():
            worker.warm_up()
        found: dict[str, list[tuple[float, bool]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(worker.round())
    finally:
        for worker in workers.values():
            worker.close()
    if n := sum(was_disturbed for each in found.values() for _, was_disturbed in each):
        most = f"over {MOST_FOREIGN:.0%} of a core"
        print(f"warning: beside {n} of {rounds * len(found)} rounds other programs took {most}", file=sys.stderr)
    return {name: Rounds([seconds for seconds, _ in each], workers[name].peak_bytes) for name, each in found.items()}


class Command(NamedTuple):
    """A command whose whole time is measured. until: how the line of its output begins that ends the measurement."""

    arguments: Sequence[str]
    folder: Path  # where it is started
    until: str | None = None


class Took(NamedTuple):
    """What a command took. cpu_seconds: of all its threads and of the processes that it waited for."""

    seconds: float
    cpu_seconds: float


def took(command: Command) -> Took:
    """Starts the command and waits for its end, or for the line that ends the measurement; then it is killed.

    Raises: RuntimeError: if it fails, or ends without that line; its own message is shown.
    """
    environment_of_it = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        command.arguments,
        cwd=command.folder,
        env=environment_of_it,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if command.until is not None and line.startswith(command.until):
                found = Took(time.perf_counter() - started, _cpu_seconds(psutil.Process(process.pid)))
                process.kill()
                return found
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or command.until is not None:
        raise RuntimeError(f"{' '.join(command.arguments)}: {''.join(lines[-20:])}")
    return Took(time.perf_counter() - started, used.ru_utime + used.ru_stime)


def taking_turns(commands: Mapping[str, Command], rounds: int) -> dict[str, list[Took]]:
    """What every command took in every round; every round runs all of them in turn, after one to fill caches."""
    found: dict[str, list[Took]] = {name: [] for name in commands}
    for n in range(rounds + 1):
        for name, command in commands.items():
            one = took(command)
            if n:
                found[name].append(one)
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def row_of(name: str, taken: Sequence[Took], ours: Sequence[Took] | None) -> dict[str, str]:
    """A row of a table of commands; ours: those of the same rounds that it is compared with, None: it is not."""
    median, spread = median_and_spread([each.seconds for each in taken])
    cpu, _ = median_and_spread([each.cpu_seconds for each in taken])
    x = "" if ours is None else in_words([each.seconds for each in taken], [each.seconds for each in ours])
    cpu_x = "" if ours is None else in_words([each.cpu_seconds for each in taken], [each.cpu_seconds for each in ours])
    return {
        "what": name,
        "seconds": f"{median:.2f} ± {spread:.0%}",
        "x": x,
        "CPU seconds": f"{cpu:.2f}",
        "CPU x": cpu_x,
    }


def nanogpts_train(peer: str, folder: Path, data: Path, n_ids: int, settings: Mapping[str, Any]) -> Command:
    """nanoGPT's train.py on a CPU, uncompiled, to be started in folder, which becomes one that it can run in.

    data: a data set of ours, whose tokens it reads; n_ids: how many ids it has. settings: other keys of its command
    line. Raises: ValueError: if peer is no checkout of it.
    """
    for name in ("train.py", "model.py", "configurator.py"):
        if not (Path(peer) / name).is_file():
            raise ValueError(f"--peer {peer} is no nanoGPT checkout: it has no {name}")
    place = folder / "data" / "ours"
    place.mkdir(parents=True)
    for split in ("train", "val"):
        (place / f"{split}.bin").symlink_to(data.resolve() / shard_name(split, 0))
    (place / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": padded(n_ids)}))
    (folder / "configurator.py").symlink_to(Path(peer).resolve() / "configurator.py")  # it is looked for there
    given = {"dataset": "ours", "device": "cpu", "compile": False, "gradient_accumulation_steps": 1, **settings}
    flags = [f"--{key}={value}" for key, value in given.items()]
    return Command([sys.executable, str(Path(peer).resolve() / "train.py"), *flags], folder)


def in_words(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Returns the median of the ratios of each round, with its 95 % interval where there are rounds enough for one."""
    found = ratio(theirs, ours)
    bounds = f" ({found.low:.2f} to {found.high:.2f})" if found.low > 0 else ""
    return f"{found.estimate:.2f}{bounds}"


def padded(n_ids: int) -> int:
    """Returns the size of nanoGPT's vocabulary, as its users pad it."""
    return -(-n_ids // PADDED) * PADDED


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
