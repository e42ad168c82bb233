"""How numbers are spelled: the one place for it, so that a number reads the same wherever it is shown."""

import math

from report.results import Measure

MISSING = "–"
NATS = "nats per token"  # the unit of losses
TIMES = ("x", "×")  # the unit of ratios


def in_words(measure: Measure) -> str:
    """A measure as a clause: label, number, interval and claim."""
    if measure.estimate is None:
        return f"{measure.label} could not be measured{f': {measure.note}' if measure.note else ''}"
    parts = [f"{measure.label} is {with_unit(estimate(measure), measure.unit)}", interval(measure)]
    if measure.claimed is not None:
        parts.append(f"claimed {with_unit(digits(measure.claimed), measure.unit)}")
    return ", ".join(filter(None, parts))


def estimate_and_interval(measure: Measure) -> str:
    """The number, and its interval in brackets."""
    if measure.estimate is None:
        return "not measured"
    words = interval(measure)
    return with_unit(estimate(measure), measure.unit) + (f" ({words})" if words else "")


def estimate_and_claimed(measure: Measure) -> str:
    """The number, and the one that the paper claims, in as few words as they need."""
    if measure.estimate is None:
        return "not measured"
    unit = measure.unit.removesuffix(" per token")
    claimed = "" if measure.claimed is None else f", claimed {with_unit(digits(measure.claimed), unit)}"
    return with_unit(estimate(measure), unit) + claimed


def estimate(measure: Measure) -> str:
    """The number without its unit, to the place that its interval leaves certain."""
    if measure.estimate is not None and measure.unit == NATS and (measure.low, measure.high) == (None, None):
        return loss(measure.estimate)
    return digits(measure.estimate, measure)


def interval(measure: Measure) -> str:
    """What the bounds are, and the bounds; empty if the number is exact or nothing is known."""
    return "" if measure.low == measure.high else f"{measure.bounds} {bounds(measure)}"


def bounds(measure: Measure) -> str:
    """From where to where; an interval without a bound on a side is open there. Empty if nothing is known."""
    low, high = digits(measure.low, measure), digits(measure.high, measure)
    if measure.low is not None and measure.high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if measure.low is not None else f"at most {high}" if measure.high is not None else ""


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


def p_value(p: float | None) -> str:
    """Returns the p-value of a test, as it is shown."""
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


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
