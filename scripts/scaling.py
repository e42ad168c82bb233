"""What a step takes on many GPUs, computed: python scripts/scaling.py [--write], which renews docs/scaling.md's table.

Nothing here is measured on several GPUs. A step is forward and backward at the speed that one GPU reached, the
communication that this does not hide, and the optimizer, of which each GPU does its share. docs/scaling.md says where
the numbers come from, and what is left out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without installation

from files.requirements import check_installed

if __name__ == "__main__":
    check_installed("train")  # before what is imported from it

from torch import Tensor

from assembly.model import meta_model
from configs import ConfigError, answer, compose
from files.writing import write_between
from model import LanguageModel
from optim.base import RuleOptimizer
from optim.build import build
from optim.owners import assigned
from reproduce.state import GPT2_VOCABULARY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END, WRITE = "<!-- written by scripts/scaling.py --write -->\n", "<!-- end of table -->\n", "--write"
BASELINE = "adamw"
WORLDS = (1, 8, 16, 32, 64, 128, 256, 512)
MODEL, SEQUENCES = "gpt2_small", 12  # sequences of 1,024 tokens on every GPU
STEP_SECONDS = SEQUENCES * 1024 / 458_500  # with AdamW's; one H200, compiled, bf16
OPTIMIZER_SECONDS = {BASELINE: 1.1e-3, "soap": 60e-3, "shampoo": 207e-3}  # there; refreshes every 10 steps included
BACKWARD = 2 / 3  # of forward and backward
PER_NODE, NODE_LINK, NETWORK_LINK = 8, 450e9, 50e9  # bytes per second of a GPU, one way: NVLink 4; 400 Gbit/s
REACHED, LATENCY = 0.8, 10e-6  # of those; seconds of a message. Assumed


@dataclass(frozen=True)
class Step:
    """Seconds. compute: forward and backward. exposed: communication that they do not hide."""

    compute: float
    exposed: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.compute + self.exposed + self.optimizer


def bandwidth(world: int) -> float:
    """Bytes per second of every GPU in a ring; between nodes all the GPUs of one send and receive at once."""
    return REACHED * (NODE_LINK if world <= PER_NODE else NETWORK_LINK * PER_NODE)


def gathered(n_bytes: float, world: int) -> float:
    """Seconds in which all get what each has a share of, n_bytes in all; also those of a reduce-scatter."""
    if world == 1:
        return 0.0
    return (world - 1) / world * n_bytes / bandwidth(world) + LATENCY * (world - 1).bit_length()


@dataclass(frozen=True)
class Shares:
    """What ranks have of an optimizer's work, where whole matrices are owned.

    largest: the largest part of its arithmetic; 1 / world where nothing is owned. numbers: of the owned matrices that
    the fullest rank has.
    """

    largest: float
    numbers: int = 0


def shares(optimizer: Any, world: int) -> Shares:
    """The shares, assigned as a run does."""
    costs: dict[Tensor, float] = {}
    for member in optimizer.optimizers:
        if isinstance(member, RuleOptimizer) and not (member.elementwise or member.splits_rows):
            costs |= member.costs()
    if not costs:
        return Shares(1 / world)
    owner, held = assigned(costs, loads := [0.0] * world), [0] * world
    for param, rank in owner.items():
        held[rank] += param.numel()
    return Shares(max(loads) / sum(loads), max(held))


def exchanged(numbers: int, strategy: str, world: int) -> float:
    """Seconds in which owners get what they update, and all get it back, in fp32; numbers: those of the fullest."""
    if world == 1 or not numbers:
        return 0.0
    if strategy == "ddp":  # all have values and gradients; every rank sends as much as the fullest
        return gathered(4 * numbers * world, world)
    link = REACHED * (NODE_LINK if world <= PER_NODE else NETWORK_LINK)
    return (4 + 4 + 4) * numbers / link + 2 * LATENCY * (world - 1).bit_length()  # value, gradient; value back


def step(model: LanguageModel, option: str, strategy: str, world: int) -> Step:
    """A step of the strategy, "ddp" or "fsdp2", on so many GPUs."""
    parameters = dict(model.named_parameters())
    numbers = sum(p.numel() for p in parameters.values())
    last = max(p.numel() for p in parameters.values())  # the embedding: its gradient is ready when backward ends
    optimizer = build(dict(compose([f"optim={option}"]).optim), parameters, model.roles(), seed=0, global_batch=480)
    compute = STEP_SECONDS - OPTIMIZER_SECONDS[BASELINE]
    if strategy == "ddp":
        hidden, open_ = 2 * gathered(4 * (numbers - last), world), 2 * gathered(4 * last, world)
        exposed = open_ + max(0.0, hidden - BACKWARD * compute)
    else:  # blocks are gathered in bf16 in both passes, gradients scattered in fp32; the embedding in fp32, in the open
        both, back = gathered(2 * (numbers - last), world), gathered(4 * (numbers - last), world)
        exposed = gathered(4 * last, world) + gathered(4 * last, world)
        exposed += max(0.0, both - (1 - BACKWARD) * compute) + max(0.0, both + back - BACKWARD * compute)
    own = shares(optimizer, world)
    exposed += exchanged(own.numbers, strategy, world)
    is_shared = own.numbers or strategy == "fsdp2"
    return Step(compute, exposed, OPTIMIZER_SECONDS[option] * (own.largest if is_shared else 1.0))


def markdown() -> str:
    """Returns the table: milliseconds of a step, and how they compare.

    AdamW's tokens per GPU beside those of one GPU; the other optimizers' seconds beside AdamW's.
    """
    model = meta_model(compose([f"model={MODEL}"]), GPT2_VOCABULARY)
    columns = [(option, strategy) for option in OPTIMIZER_SECONDS for strategy in ("ddp", "fsdp2")]
    lines = ["| GPUs | " + " | ".join(f"{option}, {strategy}" for option, strategy in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for world in WORLDS:
        cells = []
        for option, strategy in columns:
            found, adamw = (step(model, each, strategy, world) for each in (option, BASELINE))
            alone = step(model, BASELINE, strategy, 1)
            beside = f"{alone.seconds / found.seconds:.0%}" if option == BASELINE else _times(found, adamw)
            cells.append(f"{1e3 * found.seconds:.1f}, {beside}")
        lines.append(f"| {world} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(found: Step, adamw: Step) -> str:
    return f"{found.seconds / adamw.seconds:.2f}x"


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    if list(arguments) not in ([], [WRITE]):
        raise ConfigError(f"{' '.join(arguments)!r} is no argument of this script, which takes {WRITE} or nothing")
    print(table := markdown(), end="")
    if arguments and not write_between(PAGE, BEGIN, END, table):
        raise ConfigError(f"{PAGE} has no place for the table: {BEGIN.strip()} and {END.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], __doc__, main))
