"""Benchmarks: python scripts/bench.py train | optim | ..., each with --help.

train       tokens/s of a training step, beside nanoGPT's (bench_train.py)
optim       ms and bytes of an optimizer's step, on one rank or several (bench_optim.py)
tensors     ms of a step of many small matrices, beside torch's foreach (bench_tensors.py)
memory      bytes of state of every optimizer for every size of model (bench_memory.py)
checkpoint  seconds that saving takes from training (bench_checkpoint.py)
data        seconds of preparing a corpus and of a batch, beside nanoGPT's ways (bench_data.py)
startup     seconds from the start of a command to its first step or its answer (bench_startup.py)
end_to_end  seconds of the first command and its parts, beside nanoGPT's train.py (bench_end_to_end.py)
page        writes what scripts/gpu.sh has measured to docs/benchmarks.md (bench_page.py)
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

    from launch.stopping import exit_at_once

    exit_at_once()  # a process that measures has nothing to say when Ctrl-C ends it with the one that has started it

from configs import ConfigError, answer
from launch.stopping import interruptible, leave
from scripts import (
    bench_checkpoint,
    bench_data,
    bench_end_to_end,
    bench_memory,
    bench_optim,
    bench_page,
    bench_startup,
    bench_tensors,
    bench_train,
)
from scripts.benchmarking import Round, a_path, check_writable, serve

FAILED = 1


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists what there is")


class Benchmark(NamedTuple):
    """A subcommand: its arguments, its function, and, if it has variants, what makes a variant's round."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    make_round: Callable[[Mapping[str, Any]], Round] | None = None


BENCHMARKS = {
    "train": Benchmark(bench_train.add_arguments, bench_train.run, bench_train.make_round),
    "optim": Benchmark(bench_optim.add_arguments, bench_optim.run, bench_optim.make_round),
    "tensors": Benchmark(bench_tensors.add_arguments, bench_tensors.run, bench_tensors.make_round),
    "memory": Benchmark(bench_memory.add_arguments, bench_memory.run),
    "checkpoint": Benchmark(bench_checkpoint.add_arguments, bench_checkpoint.run),
    "data": Benchmark(bench_data.add_arguments, bench_data.run, bench_data.make_round),
    "startup": Benchmark(bench_startup.add_arguments, bench_startup.run),
    "end_to_end": Benchmark(bench_end_to_end.add_arguments, bench_end_to_end.run),
    "page": Benchmark(bench_page.add_arguments, bench_page.run),
}


def main(arguments: list[str]) -> int:
    """Runs the chosen benchmark; returns the exit status, 2 for bad input."""
    if arguments[:1] == ["worker"]:
        settings = json.loads(arguments[1])
        make_round = BENCHMARKS[settings["benchmark"]].make_round
        assert make_round is not None
        serve(settings, make_round)
        return 0
    if arguments[:1] == ["rank"]:
        bench_optim.measure_rank(json.loads(arguments[1]))
        leave(0)
    if arguments[:1] == ["whole"]:
        bench_end_to_end.train_and_time(json.loads(arguments[1]))
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name)
        benchmark.add_arguments(command)
        command.add_argument("--json", type=a_path, help="a file for all figures")
    doc = commands.choices.get(arguments[0] if arguments else "", parser).format_help()
    with interruptible():
        return answer(arguments, doc, lambda given: _benchmark(parser, given))


def _benchmark(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parsed = parser.parse_args(arguments)
    if parsed.json is not None:
        check_writable(parsed.json)
    try:
        BENCHMARKS[parsed.command].run(parsed)
    except RuntimeError as error:  # of a process that measures; it has printed its own message
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
