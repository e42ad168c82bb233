"""Numbers beside what a claim says of them: each with its verdict by the rule, and the verdict of several."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from inference import verdicts
from inference.intervals import Interval, StatisticsError, paired
from inference.verdicts import REPRODUCED, UNDECIDED, WEAKER
from report.numbers import NATS, in_words
from report.results import Measure
from reproduce.claim import Claim
from reproduce.fields import nearest
from reproduce.mistakes import ClaimError, Mistakes
from reproduce.records import Losses


class Expected(NamedTuple):
    """What the claim says of a number: none (claimed None) if it says nothing; see verdicts.verdict."""

    claimed: float | None
    no_effect: float
    least: float | None = None  # None: claimed
    log_scale: bool = False

    def is_met(self, value: float) -> bool:
        """Whether the value reaches the claim's rounding."""
        least = self.bounds["least"]
        return bool(value >= least if self.bounds["claimed"] > self.no_effect else value <= least)

    @property
    def bounds(self) -> dict[str, Any]:
        """The arguments of verdicts.verdict."""
        assert self.claimed is not None  # asked only then
        least = self.claimed if self.least is None else self.least
        return {"claimed": self.claimed, "least": least, "no_effect": self.no_effect, "log_scale": self.log_scale}


@dataclass
class PartFields:
    """A part of a claim: the number claimed, and the end of its rounding that is nearest to no effect.

    "2x" is 1.75 to 2.25: claimed 2, least 1.75. no_effect: None: that of the quantity.
    """

    claimed: float
    least: float
    no_effect: float | None = None


@dataclass
class Expectation:
    """A row of `expect` in a claim file: a quantity of an arm, beside that of the arm `against` where it is named.

    least: the end of the claim's rounding nearest to no effect; None: claimed.
    """

    quantity: str
    arm: str
    claimed: float
    no_effect: float
    against: str | None = None
    least: float | None = None


def part(fields: PartFields | None, no_effect: float, *, log_scale: bool) -> Expected:
    """What a part claims of a number; nothing if there is none."""
    if fields is None:
        return Expected(None, no_effect, log_scale=log_scale)
    at = no_effect if fields.no_effect is None else fields.no_effect
    return Expected(fields.claimed, at, fields.least, log_scale)


def check_part(where: str, fields: PartFields, no_effect: float, *, log_scale: bool) -> None:
    """Raises: ClaimError: if the part claims what no effect would be, or its rounding lies on the other side of it."""
    at = no_effect if fields.no_effect is None else fields.no_effect
    if log_scale and min(fields.claimed, fields.least, at) <= 0:
        raise ClaimError(f"{where}: claimed={fields.claimed:g}, least={fields.least:g} must be ratios above 0")
    _check_order(where, fields.claimed, fields.least, at, log_scale=log_scale)


def _check_order(where: str, claimed: float, least: float, no_effect: float, *, log_scale: bool = False) -> None:
    if claimed == no_effect:
        raise ClaimError(f"{where}: claimed={claimed:g} and no_effect={no_effect:g} must be two different numbers")
    low, high = sorted((claimed, no_effect))
    if not low <= least <= high or least == no_effect:
        raise ClaimError(
            f"{where}: least={least:g} must lie between no_effect={no_effect:g} and claimed={claimed:g}: it is the end "
            "of the claim's rounding"
        )
    middle = math.sqrt(claimed * no_effect) if log_scale else (claimed + no_effect) / 2
    try:
        verdicts.check(claimed=claimed, least=least, no_effect=no_effect, log_scale=log_scale)
    except StatisticsError:
        raise ClaimError(
            f"{where}: least={least:g} must lie beyond {middle:.4g}, the middle between no_effect={no_effect:g} and "
            f"claimed={claimed:g}: what is nearer to no effect does not round to the claim"
        ) from None


def check_expectations(claim: Claim[Any], rows: Sequence[Expectation], quantities: Collection[str]) -> None:
    """Raises: ClaimError: if rows are about something that is not there, or claim what no effect would be."""
    if not rows:
        raise ClaimError("expect must list one or more rows")
    mistakes = Mistakes()
    for row in rows:
        with mistakes.collected():
            check_arms_exist(claim, "expect", row.arm, *([] if row.against is None else [row.against]))
        with mistakes.collected():
            if row.quantity not in quantities:
                known = nearest(row.quantity, [*quantities])
                raise ClaimError(f"expect: quantity={row.quantity!r} is unknown; {known}")
        with mistakes.collected():
            least = row.claimed if row.least is None else row.least
            _check_order(f"expect: {row.quantity} of {row.arm}", row.claimed, least, row.no_effect)
    mistakes.raise_all()


def check_arms_exist(claim: Claim[Any], field: str, *names: str) -> None:
    """Raises: ClaimError: if the claim has no arms of some of the names, which stand in that field."""
    arms = [arm.name for arm in claim.arms]
    if odd := [name for name in names if name not in arms]:
        raise ClaimError(*(f"{field}: there is no arm {name!r}; {nearest(name, arms)}" for name in odd))
    if len(set(names)) < len(names):
        raise ClaimError(f"{field}: {names[0]} is compared with itself; name two arms")


def judged(
    name: str,
    label: str,
    unit: str,
    interval: Interval | None,
    expected: Expected,
    *,
    n: int | None = None,
    note: str = "",
    censored: str = "",
) -> Measure:
    """The number with its verdict by the rule; without an interval it could not be measured, and note says why.

    censored: "<" or ">" if the number lies beyond what was run; the interval's estimate is then the bound, and a claim
    that lies beyond it too is not reproduced by it.
    """
    known = interval is not None and math.isfinite(interval.estimate)
    verdict = None
    if expected.claimed is not None:
        verdict = UNDECIDED if interval is None else verdicts.verdict(interval, **expected.bounds)
        if verdict == REPRODUCED and interval is not None and censored and not expected.is_met(interval.estimate):
            verdict = UNDECIDED
        if verdict == WEAKER and interval is not None and interval.low <= expected.no_effect <= interval.high:
            note = "; ".join(filter(None, (note, "no effect is within the interval")))
    return Measure(
        name=name,
        label=label,
        unit=unit,
        estimate=interval.estimate if known and interval else None,
        low=finite(interval.low) if interval else None,
        high=finite(interval.high) if interval else None,
        n=n,
        claimed=expected.claimed,
        least=None if expected.claimed is None else expected.bounds["least"],
        no_effect=expected.no_effect,
        log_scale=expected.log_scale,
        verdict=verdict,
        censored=censored,
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
    pairs = paired(ours, theirs)
    row = judged(name, label, unit, pairs.difference, expected, n=pairs.n)
    row.sd = finite(pairs.sd)
    return row


def finite(value: float | None) -> float | None:
    """The value, or None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def sentence(verdict: str, parts: Sequence[Measure]) -> str:
    """The whole claim in words: its number, or how many of its parts have which verdict; a table has their numbers."""
    if not parts:
        return "The claim has no number that a rule judges here."
    if len(parts) == 1:
        return f"{verdict}: {in_words(parts[0])}"
    counts = Counter(row.verdict for row in parts)
    others = [f"{counts[each]} {each}" for each in verdicts.VERDICTS if each != REPRODUCED and counts[each]]
    return ", ".join([f"{counts[REPRODUCED]} of {len(parts)} parts reproduced", *others])


def more_seeds(rows: Sequence[Measure], n: int) -> int | None:
    """The most that an undecided number needs beside its n seeds."""
    needs = []
    for row in rows:
        if row.verdict == UNDECIDED and row.estimate is not None and row.claimed is not None:
            low = row.low if row.low is not None else -math.inf
            high = row.high if row.high is not None else math.inf
            expected = Expected(row.claimed, row.no_effect or 0.0, row.least, row.log_scale)
            needs.append(verdicts.more_seeds(Interval(row.estimate, low, high), n, **expected.bounds))
    return max(needs, default=None)
