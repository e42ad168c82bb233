"""Writes the tables of docs/benchmarks.md on one GPU from train-*.json and optim-*.json, as scripts/gpu.sh leaves them.

What an optimizer adds is its step's time beyond that of torch's fused AdamW, on the one GPU that computes all of it: to
a step of GPT-2's batch of 524,288 tokens, and to one of 65,536, the share of one of eight GPUs, of which each would
compute an eighth of a matrix method's step.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import ConfigError
from files.reading import read_json
from files.writing import write_between
from reproduce.rounds import ratio
from scripts.benchmarking import a_path, in_words, median_and_spread

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by scripts/bench.py page -->\n", "<!-- end of what bench.py page writes -->\n"
WRITES = "bash scripts/gpu.sh writes it"
BATCH, SHARE = 524_288, 65_536  # tokens
SIZE, BASELINE = "gpt2_small", "torch AdamW, fused"
AT_LEAST = 470_000  # tokens/s of AdamW for SIZE on an H100: llm.c's, a GPU
AT_MOST = {"muon": 0.03, "shampoo": 0.15, "soap": 0.30}  # goals of what is added; modded-nanogpt's: 2.5, 29, 117 %


def run(arguments: argparse.Namespace) -> None:
    """Writes the page. Raises: ConfigError: if a file or the page's marks are missing."""
    folder = Path(arguments.folder)
    train, optim = ([_read(file) for file in _files(folder, f"{kind}-*.json")] for kind in ("train", "optim"))
    if len(machines := sorted({file["machine"] for file in [*train, *optim]})) > 1:
        raise ConfigError(f"{folder} has figures of several machines: {'; '.join(machines)}; keep those of one")
    train.sort(
        key=lambda file: (file["results"][0]["flops"] / file["results"][0]["tokens"], file["results"][0]["tokens"])
    )
    if not write_between(Path(arguments.page), BEGIN, END, "\n".join(lines(machines[0], train, optim)) + "\n"):
        raise ConfigError(f"{arguments.page} has not both marks: {BEGIN.strip()} and {END.strip()}")


def lines(machine: str, train: Sequence[Mapping[str, Any]], optim: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The page's lines, from the contents of such files."""
    steps = [each for file in train for each in file["results"]]
    yield f"{machine}. A training step with torch's fused AdamW, compiled:\n"
    yield from _table(_training(steps))
    yield f"\nGoal: at least {AT_LEAST:,} tokens/s of {SIZE} on an H100."
    yield f"\nAn optimizer's step for {SIZE}, refreshes included:\n"
    yield from _table(row for file in optim for row in _optimizers(file["results"], steps))


def _training(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    ours = {(each["model"], each["tokens"]): each["seconds"] for each in results if each["variant"] == "ours"}
    for each in results:
        median, spread = median_and_spread(each["seconds"])
        peak = each["peak_flops"]
        yield {
            "model": f"{each['model']}, {each['settings']['batch']} x {each['settings']['block_size']}",
            "variant": each["variant"],
            "tokens/s": f"{each['tokens'] / median:,.0f} ± {spread:.0%}",
            "MFU": "n/a" if peak is None else f"{each['flops'] / median / peak:.1%}",
            "peak memory, GB": f"{each['peak_bytes'] / 1e9:.1f}",
            "ours / this": (
                "" if each["variant"] == "ours" else in_words(each["seconds"], ours[each["model"], each["tokens"]])
            ),
        }


def _optimizers(results: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    of_size = [each for each in results if each["model"] == SIZE]
    baseline = next((each["seconds"] for each in of_size if each["optimizer"] == BASELINE), None)
    if baseline is None:
        raise ConfigError(f"an optim-*.json has no {BASELINE!r} for {SIZE}; {WRITES}")
    own = statistics.median(baseline)
    steps = {tokens: _seconds_of_step(train, own, tokens) for tokens in (BATCH, SHARE)}
    for each in (each for each in of_size if each["optimizer"] != BASELINE):
        median, spread = median_and_spread(each["seconds"])
        added = (ratio(each["seconds"], baseline).estimate - 1) * own
        goal, state = AT_MOST.get(each["optimizer"].partition(":")[0]), each["state_bytes"]
        yield {
            "optimizer": each["optimizer"],
            "ms": f"{median * 1e3:,.2f} ± {spread:.0%}",
            "x torch's fused AdamW": in_words(each["seconds"], baseline),
            **{
                f"added to {tokens:,} tokens": "n/a" if step is None else f"{added / step:+.1%}"
                for tokens, step in steps.items()
            },
            "goal": "" if goal is None else f"{goal:+.0%}",
            "state MB": "n/a" if state is None else f"{state / 1e6:,.0f}",
        }


def _seconds_of_step(train: Sequence[Mapping[str, Any]], own: float, tokens: int) -> float | None:
    """Of a step of SIZE with the baseline, which takes own: forward and backward as often as they need, as measured
    with the largest batch, and the optimizer once. None where none was measured.
    """
    ours = [each for each in train if (each["model"], each["variant"]) == (SIZE, "ours")]
    if not ours:
        return None
    measured = max(ours, key=lambda each: int(each["tokens"]))
    return float((statistics.median(measured["seconds"]) - own) * tokens / measured["tokens"] + own)


def _table(rows: Iterator[dict[str, str]]) -> Iterator[str]:
    for n, row in enumerate(rows):
        if n == 0:
            yield f"| {' | '.join(row)} |"
            yield "|" + "---|" * len(row)
        yield f"| {' | '.join(row.values())} |"


def _files(folder: Path, pattern: str) -> list[Path]:
    if not (found := sorted(folder.glob(pattern))):
        raise ConfigError(f"{folder} has no {pattern}; {WRITES}")
    return found


def _read(path: Path) -> Any:
    found = read_json(path, may_be_link=True) or {}
    if not (isinstance(found.get("machine"), str) and found.get("results")):
        raise ConfigError(f"{path} has no machine and results, so bench.py has not written it; {WRITES}")
    return found


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py page`."""
    command.add_argument("folder", type=a_path, help="where scripts/gpu.sh left its figures")
    command.add_argument("--page", type=a_path, default=str(PAGE))
