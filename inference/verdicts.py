"""What an interval says about a claim: the five verdicts, the rule in words, and the verdict on several numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

from inference.intervals import Interval, StatisticsError

REPRODUCED = "reproduced"
WEAKER = "weaker than claimed"
NO_EFFECT = "no effect or worse"
UNDECIDED = "undecided"
OUT_OF_REGIME = "out of regime"  # said by the regime checks, never by an interval
VERDICTS = (REPRODUCED, WEAKER, NO_EFFECT, UNDECIDED, OUT_OF_REGIME)

RULE = (
    f'A number is "{REPRODUCED}" if its 95 % interval reaches the least value that rounds to the claimed one and lies '
    "wholly beyond the middle between no effect and the claim (for ratios the geometric middle). "
    f'It is "{NO_EFFECT}" if none of the interval lies beyond no effect by more than 5 % (of a ratio, but at most a '
    f'quarter of the way to the claim; of the claimed difference otherwise), "{WEAKER}" if some does but all of it '
    f'falls short of that least value, and "{UNDECIDED}" otherwise.'
)
BAND = 0.05  # what still counts as no effect: of a ratio, or of the way to the claim
MOST_SEEDS = 100  # a forecast beyond this is no advice


def verdict(
    interval: Interval,
    *,
    claimed: float,
    least: float,
    no_effect: float,
    worse: float | None = None,
    log_scale: bool = False,
) -> str:
    """RULE, applied to one number.

    least: the value nearest to no_effect that still rounds to the claimed one ("2x" is 1.75 to 2.25: least 1.75).
    worse: where no effect ends, BAND beyond no_effect if None. The claim may lie on either side of no_effect.

    The true value is never refuted because it is known better: an interval that holds a value within the rounding
    gives neither WEAKER nor NO_EFFECT, however narrow it is. An interval that holds no effect but nothing that rounds
    to the claim is WEAKER: the claim is refuted, whether or not there is some effect.

    Raises: StatisticsError: unless no_effect, worse, the middle, least and claimed follow each other in this order.
    """
    return _Rule.of(claimed, least, no_effect, worse, log_scale).verdict(interval)


def check(*, claimed: float, least: float, no_effect: float, log_scale: bool = False) -> None:
    """Raises: StatisticsError: if verdict() cannot be asked of these limits."""
    _Rule.of(claimed, least, no_effect, None, log_scale)


def more_seeds(
    interval: Interval,
    n: int,
    *,
    claimed: float,
    least: float,
    no_effect: float,
    worse: float | None = None,
    log_scale: bool = False,
) -> int:
    """About how many more seeds than n verdict() needs to decide, 1 to MOST_SEEDS, if the estimate stays.

    A forecast: the bounds approach the estimate as Student's t over sqrt(n) does, on the logarithm for a ratio. A
    bound that is infinite stays so; if both are, nothing is known of the noise and the seeds double (3 at least).
    """
    rule = _Rule.of(claimed, least, no_effect, worse, log_scale)
    estimate, low, high = (_log(each) if log_scale else each for each in interval)
    if n < 2 or not math.isfinite(estimate) or (math.isinf(low) and math.isinf(high)):
        return min(max(n, 3 - n), MOST_SEEDS)
    for more in range(1, MOST_SEEDS):
        shrink = _standard_errors(n + more) / _standard_errors(n)
        bounds = [estimate + (bound - estimate) * shrink for bound in (low, high)]
        narrow = Interval(*(math.exp(min(each, 700.0)) if log_scale else each for each in (estimate, *bounds)))
        if rule.verdict(narrow) != UNDECIDED:
            return more
    return MOST_SEEDS


def overall(verdicts: Sequence[str]) -> str:
    """The verdict on a claim whose parts must all hold; of no parts it is UNDECIDED."""
    parts = set(verdicts)
    if unknown := parts - set(VERDICTS):
        raise StatisticsError(
            f"overall expects verdicts among {', '.join(VERDICTS)}, got {sorted(unknown)}; correct it"
        )
    if OUT_OF_REGIME in parts:
        return OUT_OF_REGIME
    if parts in ({REPRODUCED}, {NO_EFFECT}):
        return parts.pop()
    return WEAKER if parts & {WEAKER, NO_EFFECT} else UNDECIDED


class _Rule(NamedTuple):
    """The rule's limits in the direction of the claim, on the logarithm for ratios."""

    worse: float
    middle: float
    least: float
    log_scale: bool
    sign: float  # -1 where the claim is below no effect

    @classmethod
    def of(cls, claimed: float, least: float, no_effect: float, worse: float | None, log_scale: bool) -> "_Rule":
        """Checks the limits and brings them into one direction."""
        given = f"claimed={claimed}, least={least}, no_effect={no_effect}, worse={worse}"
        limits = [no_effect, least, claimed] if worse is None else [no_effect, least, claimed, worse]
        if not all(math.isfinite(each) for each in limits) or claimed == no_effect:
            raise StatisticsError(f"a claim needs finite values, not all of them no effect, got {given}; correct it")
        if log_scale and min(limits) <= 0:
            raise StatisticsError(f"a claim with log_scale needs values > 0, got {given}; drop log_scale")
        sign = 1.0 if claimed > no_effect else -1.0
        none, lower, claim = (sign * (math.log(each) if log_scale else each) for each in (no_effect, least, claimed))
        way = claim - none
        band = min(math.log(1 + BAND), way / 4) if log_scale else BAND * way  # a quarter: it must end before the middle
        end = none + band if worse is None else sign * (math.log(worse) if log_scale else worse)
        middle = none + way / 2
        if not none <= end < middle < lower <= claim:
            raise StatisticsError(
                f"a claim needs no_effect, worse, the middle, least, claimed in this order, got {given}; correct it"
            )
        return cls(end, middle, lower, log_scale, sign)

    def verdict(self, interval: Interval) -> str:
        """Applies the rule."""
        low, high = (self.sign * (_log(each) if self.log_scale else each) for each in interval[1:])
        if self.sign < 0:
            low, high = high, low
        if high <= self.worse:
            return NO_EFFECT
        if low > self.middle and high >= self.least:
            return REPRODUCED
        return WEAKER if high < self.least else UNDECIDED


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.log(value)  # nan stays nan


def _standard_errors(n: int) -> float:
    """Half the width of Student's 95 % interval of a mean, for an sd of 1."""
    return float(stdtrit(n - 1, 0.975)) / math.sqrt(n)
