"""How numbers are spelled: the one place for it, so that a number reads the same wherever it is shown."""

import math

from report.results import Measure

MISSING, NOT_MEASURED = "–", "not measured"
NATS = "nats per token"  # the unit of losses
TIMES = ("x", "×")  # the unit of ratios
LONGEST = 9  # decimals


def in_words(measure: Measure) -> str:
    """A measure as a clause: label, number, interval and claim."""
    if not is_known(measure):
        return f"{measure.label} could not be measured{f': {measure.note}' if measure.note else ''}"
    parts = [f"{measure.label} is {with_unit(estimate(measure), measure.unit)}", interval(measure)]
    if measure.claimed is not None:
        parts.append(f"claimed {claimed(measure)}")
    return ", ".join(filter(None, parts))


def measured(measure: Measure) -> str:
    """The number with its unit, without its interval."""
    return with_unit(estimate(measure), measure.unit) if is_known(measure) else NOT_MEASURED


def is_known(measure: Measure) -> bool:
    """Whether there is a number, or a bound that it lies beyond."""
    return measure.estimate is not None or _limit(measure) is not None


def estimate(measure: Measure) -> str:
    """The number without its unit, to the place that its interval leaves certain; "< 0.5" where it is censored."""
    if measure.censored:
        limit = _limit(measure)
        return MISSING if limit is None else f"{measure.censored} {digits(limit)}"
    if measure.estimate is not None and measure.unit == NATS and (measure.low, measure.high) == (None, None):
        return loss(measure.estimate)
    return digits(measure.estimate, measure)


def claimed(measure: Measure) -> str:
    """The number claimed, with the end of its rounding that still counts as the claim: "2× (≥ 1.75×)"."""
    if measure.claimed is None:
        return MISSING
    spelled = with_unit(digits(measure.claimed), measure.unit)
    if measure.least is None:
        return spelled
    base = measure.no_effect if measure.no_effect is not None else measure.least
    side = "≤" if measure.claimed < base else "≥"
    least = f"{side} {with_unit(digits(measure.least), measure.unit)}"
    return least if measure.least == measure.claimed else f"{spelled} ({least})"


def interval(measure: Measure) -> str:
    """What the bounds are, and the bounds; empty if the number is exact, or nothing more than it is known."""
    low, high = known_bounds(measure)
    says_nothing_new = low == high or (measure.censored and _limit(measure) in (low, high))
    return "" if says_nothing_new else f"{measure.bounds} {bounds(measure)}"


def told_from(limit: float, number: float, decimals: int) -> str:
    """A number with so many decimals, and as many more as tell it from the limit that it is held against."""
    while number != limit and f"{number:.{decimals}f}" == f"{limit:.{decimals}f}" and decimals < LONGEST:
        decimals += 1
    return f"{number:.{decimals}f}"


def bounds(measure: Measure) -> str:
    """From where to where; an interval without a bound on a side is open there. Empty if nothing is known."""
    known = known_bounds(measure)
    low, high = (digits(each, None if measure.censored else measure) for each in known)
    if None not in known:
        return f"{low} to {high}"
    return f"at least {low}" if known[0] is not None else f"at most {high}" if known[1] is not None else ""


def known_bounds(measure: Measure) -> tuple[float | None, float | None]:
    """The interval's ends; a censored number has none on the side that was not run."""
    low = None if measure.censored == "<" else measure.low
    high = None if measure.censored == ">" else measure.high
    return low, high


def _limit(measure: Measure) -> float | None:
    """The end of what was run, which a censored number lies beyond: the estimate where one is given, else the bound."""
    if not measure.censored:
        return None
    if measure.estimate is not None:
        return measure.estimate
    return measure.high if measure.censored == "<" else measure.low


def published(value: float, low: float | None, high: float | None, unit: str) -> str:
    """A number that others measured, as they print it, and its interval in brackets."""
    between = "" if low is None or high is None else f" ({digits(low)} to {digits(high)})"
    return f"{with_unit(digits(value), unit)}{between}"


def digits(value: float | None, measure: Measure | None = None, significant: int = 4) -> str:
    """The value to the place that the measure's interval leaves certain: one or two digits of its half width."""
    if value is None:
        return MISSING
    known = [each for each in (measure.low, measure.estimate, measure.high) if each is not None] if measure else []
    if known and (width := (max(known) - min(known)) / (len(known) - 1 or 1)) > 0:
        size = math.log10(width)
        two = size - math.floor(size) < math.log10(3.5)  # 0.012 keeps its 2, 0.065 is 0.07
        spelled = f"{value:,.{min(max(two - math.floor(size), 0), 8) if abs(value) < 1e4 else 0}f}"
        return spelled.removeprefix("-") if not spelled.strip("-0.,") else spelled  # never -0.00
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.{significant}g}"


def with_unit(spelled: str, unit: str) -> str:
    """The number before its unit."""
    if spelled == MISSING or not unit:
        return spelled
    return f"{spelled}×" if unit in TIMES else f"{spelled} {unit}"


def loss(value: float | None) -> str:
    """A loss, nats per token."""
    return MISSING if value is None else f"{value:.4f}"


def of_evaluation(value: float | None) -> str:
    """A number that an evaluation found: a count if it is whole, else as a loss."""
    return count(value) if isinstance(value, int) else loss(value)


def fraction(value: float | None) -> str:
    """A number between 0 and 1."""
    return MISSING if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share of 1, as a percentage."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def seconds(value: float | None) -> str:
    """A duration, without its unit."""
    return MISSING if value is None else f"{value:,.1f}"


def flops(value: float | None) -> str:
    """A number of operations."""
    return MISSING if value is None else f"{value:.3g}"


def count(number: int) -> str:
    """A number of things, such as steps."""
    return f"{number:,}"


def compact(value: float) -> str:
    """A number as a tick has it, with the prefixes of SI: 0.5, 5000, 20k, 1.5M, 3G, 2e+20."""
    if not 1e4 <= abs(value) < 1e18:
        return f"{value:.4g}"
    power = int(math.log10(abs(value)) + 1e-9) // 3
    return f"{value / 1000**power:.4g}{' kMGTP'[power]}"


def n_bytes(count: float | None) -> str:
    """A size in memory."""
    if count is None:
        return MISSING
    unit, scale = ("GiB", 2**30) if count >= 2**30 else ("MiB", 2**20)
    return f"{count / scale:,.2f} {unit}"


def exact(value: float | None) -> str:
    """The shortest text that reads back as the same number; nothing for None."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)
