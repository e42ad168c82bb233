"""A sweep over seeds by arm, which is everything else that its runs differ in: the mean and spread of val/loss."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from configs.schema import keys_that
from files.reading import number

if TYPE_CHECKING:
    from launch.job import Outcome

SEED = "seed"


@dataclass
class Arm:
    """Runs that differ in their seeds alone. given: the other values that differ in the sweep.

    losses: val/loss of the seeds that finished. missing: the others, with how they ended.
    """

    given: tuple[str, ...]
    losses: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """Of the losses; None if there are none."""
        return fmean(self.losses) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the losses; None of fewer than two."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def seeds(self) -> str:
        """How many finished, and of how many if some did not."""
        found = len(self.losses)
        return f"{found} of {found + len(self.missing)}" if self.missing else str(found)


@dataclass
class Arms:
    """The arms of a sweep, best first. keys: in which they differ."""

    keys: list[str]
    each: list[Arm]

    def table(self) -> Table:
        """Returns the table that is printed."""
        table = Table(box=box.SIMPLE_HEAD)
        for key in self.keys:
            table.add_column(key, overflow="fold")
        has_spread = any(arm.deviation is not None for arm in self.each)
        for column in ("seeds", "mean val/loss", *["sd"] * has_spread):
            table.add_column(column, justify="right", no_wrap=True)
        for arm in self.each:
            numbers = [arm.mean, *[arm.deviation] * has_spread]
            table.add_row(*map(Text, arm.given), arm.seeds, *("" if n is None else f"{n:.4f}" for n in numbers))
        return table

    def missing(self) -> Iterator[str]:
        """Yields a line for each arm that is incomplete."""
        for arm in self.each:
            if arm.missing:
                name = " ".join(f"{key}={value}" for key, value in zip(self.keys, arm.given, strict=True))
                yield f"incomplete: {name}{': ' if name else ''}{', '.join(arm.missing)}"

    def csv(self) -> str:
        """Returns one line for each arm, with all digits of numbers."""
        content = StringIO(newline="")
        writer = csv.writer(content)
        writer.writerow([*self.keys, "seeds", "val/loss mean", "val/loss sd", "missing"])
        for arm in self.each:
            writer.writerow([*arm.given, len(arm.losses), arm.mean, arm.deviation, "; ".join(arm.missing)])
        return content.getvalue()


def arms_of(keys: Sequence[str], rows: "Sequence[tuple[Sequence[str], Outcome]]") -> Arms:
    """Returns the arms of the runs; none if seed is not among the keys.

    keys: in which the runs differ. rows: their values and the outcome of each run. Arms in which a seed is missing come
    after those that are complete: a mean without the runs that diverged compares with no other.
    """
    if SEED not in keys:
        return Arms([], [])
    place, found = keys.index(SEED), dict[tuple[str, ...], Arm]()
    kept = [n for n, key in enumerate(keys) if key not in {SEED, *keys_that("is_place")}]
    for given, outcome in rows:
        others = tuple(given[n] for n in kept)
        arm = found.setdefault(others, Arm(others))
        loss = number((outcome.result or {}).get("val/loss")) if outcome.status == "finished" else None
        if loss is None:
            arm.missing.append(f"seed {given[place]} {outcome.status}")
        else:
            arm.losses.append(loss)
    ranked = sorted(found.values(), key=lambda arm: (arm.mean is None, bool(arm.missing), arm.mean or 0.0))
    return Arms([keys[n] for n in kept], ranked)
