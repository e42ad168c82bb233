"""Numbers beside what a claim says of them: each with its verdict by the rule, and the verdict of several."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from report.numbers import NATS, in_words
from report.results import Measure
from reproduce import statistics
from reproduce.claim import Claim
from reproduce.fields import ClaimError, nearest
from reproduce.records import Losses
from reproduce.statistics import Interval


class Expected(NamedTuple):
    """What the claim says of a number, and what no effect would be."""

    claimed: float | None
    no_effect: float
    log_scale: bool = False


@dataclass
class Expectation:
    """A row of `expect` in a claim file: a quantity of an arm, beside that of the arm `against` where it is named."""

    quantity: str
    arm: str
    claimed: float
    no_effect: float
    against: str | None = None


def check_expectations(claim: Claim[Any], rows: Sequence[Expectation], quantities: Collection[str]) -> None:
    """Raises: ClaimError: if a row is about something that is not there, or claims what no effect would be."""
    if not rows:
        raise ClaimError("expect must list one or more rows")
    for row in rows:
        check_arms_exist(claim, "expect", row.arm, *([] if row.against is None else [row.against]))
        if row.quantity not in quantities:
            raise ClaimError(f"expect: quantity={row.quantity!r} is unknown; {nearest(row.quantity, [*quantities])}")
        if row.claimed == row.no_effect:
            raise ClaimError(
                f"expect: {row.quantity} of {row.arm}: claimed={row.claimed:g} and no_effect={row.no_effect:g} must be "
                "two different numbers"
            )


def check_arms_exist(claim: Claim[Any], field: str, *names: str) -> None:
    """Raises: ClaimError: if the claim has no arm of one of the names, which stand in that field."""
    arms = [arm.name for arm in claim.arms]
    for name in names:
        if name not in arms:
            raise ClaimError(f"{field}: there is no arm {name!r}; {nearest(name, arms)}")


def judged(
    name: str,
    label: str,
    unit: str,
    interval: Interval | None,
    expected: Expected,
    *,
    n: int | None = None,
    note: str = "",
) -> Measure:
    """The number with its verdict by the rule; without an interval it could not be measured, and note says why."""
    known = interval is not None and math.isfinite(interval.estimate)
    verdict = None
    if expected.claimed is not None:
        bounds = {"claimed": expected.claimed, "no_effect": expected.no_effect, "log_scale": expected.log_scale}
        verdict = statistics.decide(interval, **bounds) if interval is not None else "undecided"  # type: ignore[arg-type]  # a bool among floats
    return Measure(
        name=name,
        label=label,
        unit=unit,
        estimate=interval.estimate if known and interval else None,
        low=finite(interval.low) if interval else None,
        high=finite(interval.high) if interval else None,
        n=n,
        claimed=expected.claimed,
        no_effect=expected.no_effect,
        log_scale=expected.log_scale,
        verdict=verdict,
        note=note,
    )


def difference(
    name: str, label: str, candidate: Losses, baseline: Losses, expected: Expected, unit: str = NATS
) -> Measure:
    """The mean of candidate minus baseline over seeds; not measured if one of them has no value, which note counts."""
    seeds = sorted(candidate.keys() & baseline.keys())
    missing = [seed for seed in seeds if candidate[seed] is None or baseline[seed] is None]
    if missing or not seeds:
        note = f"no value for {len(missing)} of {len(seeds)} seeds: diverged, or outside the budgets that were run"
        return judged(name, label, unit, None, expected, n=len(seeds), note=note)
    ours = {seed: value for seed, value in candidate.items() if value is not None}
    theirs = {seed: value for seed, value in baseline.items() if value is not None}
    paired = statistics.paired(ours, theirs)
    row = judged(name, label, unit, paired.difference, expected, n=paired.n)
    row.sd, row.p_value = finite(paired.sd), finite(paired.p_value)
    return row


def finite(value: float | None) -> float | None:
    """The value, or None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def overall(verdicts: Sequence[str | None]) -> str:
    """Returns the verdict on several measures, all of which must hold."""
    known = [verdict for verdict in verdicts if verdict]
    if "not reproduced" in known:
        return "not reproduced"
    return "reproduced" if known and set(known) == {"reproduced"} else "undecided"


def sentence(verdict: str, rows: Sequence[Measure]) -> str:
    """The numbers that the verdict follows from, or the first two of them and how many there are."""
    deciding = [row for row in rows if row.verdict == verdict]
    counted = f"{len(deciding)} of {len(rows)} numbers: " if len(rows) > 2 else ""
    rest = " ..." if len(deciding) > 2 else ""
    return f"{counted}{'; '.join(in_words(row) for row in deciding[:2])}{rest}"


def more_seeds(rows: Sequence[Measure], n: int) -> int | None:
    """The most that an undecided number needs beside its n seeds."""
    needs = []
    for row in rows:
        if row.verdict == "undecided" and row.estimate is not None and row.claimed is not None:
            low = row.low if row.low is not None else -math.inf
            high = row.high if row.high is not None else math.inf
            bounds = {"claimed": row.claimed, "no_effect": row.no_effect or 0.0, "log_scale": row.log_scale}
            needs.append(statistics.more_seeds(Interval(row.estimate, low, high), n, **bounds))  # type: ignore[arg-type]  # a bool among floats
    return max(needs, default=None)
