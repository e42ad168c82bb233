"""The catalogue of optimizers: python scripts/optimizers.py [--write], for every option of configs/optim.

The paper is read off the class's docstring, lr and its origin off the option's file, state, passes and sharding off the
optimizer itself, built for GPT-2 124M without memory. --write renews the table in docs/optimizers.md.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

import torch

from assembly.model import meta_model
from configs import FOLDER, ConfigError, answer, compose
from files.writing import write_between
from model import LanguageModel
from optim.base import RuleOptimizer
from optim.build import build
from optim.ensemble import OptimizerSet
from optim.memory import state_bytes
from optim.nodes import locate, main_node
from reproduce.state import GPT2_VOCABULARY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
BEGIN, END = "<!-- catalogue: written by scripts/optimizers.py --write -->\n", "<!-- end of catalogue -->\n"
COLUMNS = ("option", "paper", "state, B/param", "lr", "update needs", "a rank computes")
BATCH = 480  # sequences, of which estimators take a share
WRITE = "--write"


@dataclass(frozen=True)
class Entry:
    """A row. bytes_per_parameter: of GPT-2 124M. passes: forward and backward, of a step on average, beside its own."""

    option: str
    name: str
    paper: str
    kind: str
    bytes_per_parameter: float
    extra_passes: float
    sharding: str
    lr: float
    lr_from: str


def main(arguments: list[str]) -> int:
    """Prints the catalogue; returns the exit status."""
    if arguments not in ([], [WRITE]):
        raise ConfigError(f"{' '.join(arguments)!r} is no argument of this script, which takes {WRITE} or nothing")
    entries = list(catalogue())
    print(markdown(entries))
    for entry in entries:
        print(f"{entry.option}: lr={entry.lr:g}. {entry.lr_from}")
    if arguments:
        write_page(entries, PAGE)
    return 0


def catalogue() -> Iterator[Entry]:
    """An entry for every option."""
    model = meta_model(compose(["model=gpt2_small"]), GPT2_VOCABULARY)
    for path in sorted((FOLDER / "optim").glob("*.yaml")):
        yield _entry(path, model)


def write_page(entries: Sequence[Entry], path: Path) -> None:
    """Replaces the table between BEGIN and END. Raises: ConfigError: if the file has no such place."""
    if not write_between(path, BEGIN, END, markdown(entries)):
        raise ConfigError(f"{path} has no place for the catalogue: {BEGIN.strip()} and {END.strip()}")


def markdown(entries: Sequence[Entry]) -> str:
    """The table, in lines that a laptop shows in full."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for entry in entries:
        steps = "" if not entry.extra_passes else f" + {entry.extra_passes:.2f} passes"
        cells = (f"`{entry.option}`", entry.paper, f"{entry.bytes_per_parameter:.2f}", f"{entry.lr:g}")
        lines.append(f"| {' | '.join((*cells, entry.kind + steps, entry.sharding))} |")
    return "\n".join(lines) + "\n"


def _entry(path: Path, model: LanguageModel) -> Entry:
    node, parameters = compose([f"optim={path.stem}"]).optim, dict(model.named_parameters())
    main = main_node(node)
    optimizer = build(node, parameters, model.roles(), seed=0, global_batch=BATCH)
    member, found = optimizer.optimizers[0], locate(main["_target_"])
    kind, sharding = _kind(member)
    return Entry(
        path.stem,
        found.__name__,
        _paper(found),
        kind,
        state_bytes(node, parameters, model.roles()) / sum(p.numel() for p in parameters.values()),
        _passes(optimizer),
        sharding,
        float(main["lr"]),
        path.read_text("utf-8").partition("\n")[0].removeprefix("# "),
    )


def _paper(found: type) -> str:
    """Authors and number of the paper that the class's first line names."""
    first = (found.__doc__ or "").strip().partition("\n\n")[0]
    number = re.search(r"arXiv:[\d.]+\d", first)
    authors = re.search(r"\(([^(),]+),", first)
    if authors is None:
        return "torch's own" if found.__module__.startswith("torch") else "none"
    return f"{authors[1]}, {number[0]}" if number else authors[1]


def _kind(member: torch.optim.Optimizer) -> tuple[str, str]:
    """What the update of an element needs, and what a rank computes under FSDP2."""
    if not isinstance(member, RuleOptimizer) or member.elementwise:
        return "elements", "its elements"
    return ("elements and sums", "its rows") if member.splits_rows else ("full matrices", "matrices it owns")


def _passes(optimizer: OptimizerSet) -> float:
    """Forward and backward passes of a training batch that estimates add to a step, on average."""
    steps = optimizer.refresh_interval * 100
    return sum(estimator.passes(steps) for estimator in optimizer.estimators) / (steps * BATCH)


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], __doc__, main))
