"""A claim about how a speed-up changes along an axis: the batch, or the size of the model.

The same comparison is made at every value of the axis, each with a tuning of its own. Judged are the rows of `expect`:
the speed-up at the last value over that at the first. The two are independent: the distances of their intervals' ends
add in squares, on the logarithm (Zou and Donner, Statistics in Medicine 27, 2008).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from typing_extensions import override

from inference.curves import SpeedUp
from inference.intervals import Interval
from report.results import Axis, Figure, Measure, Series, Table
from reproduce import exhibits, speed_ups
from reproduce.arms import ArmSpec
from reproduce.claim import Claim
from reproduce.evidence import Evidence
from reproduce.fields import limited
from reproduce.judging import Expected, PartFields, check_arms_exist, check_part, judged, part
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError, Mistakes
from reproduce.protocols import Comparison, Protocol
from reproduce.training import TrainingFields, check_training
from reproduce.tuned import Tuned


@dataclass
class Place:
    """A value of the axis, and what differs there from the scale; None: nothing.

    rate_factor: what the rates where tuning starts are multiplied by; a rate carried over from another size.
    """

    value: float = limited(above=0)
    overrides: list[str] = field(default_factory=list)
    budget: int | None = limited(None, least=1)
    warmup_steps: int | None = limited(None, least=1)
    tuned_axes: int | None = limited(None, least=1)
    rate_factor: float = limited(1.0, above=0)


@dataclass
class Change:
    """A row of `expect`: two arms, and what is claimed of the ratio of their speed-ups; nothing: it is only shown."""

    candidate: str
    baseline: str
    ratio: PartFields | None = None


@dataclass
class TrendFields(TrainingFields):
    """axis: what the values are, for people."""

    axis: str = limited()
    places: list[Place] = limited()
    expect: list[Change] = limited()


class Trend(Kind[TrendFields]):
    """See the module."""

    Fields = TrendFields

    @override
    def check(self, claim: Claim[TrendFields]) -> None:
        mistakes = Mistakes()
        for check in (_check_places, _check_changes):
            with mistakes.collected():
                check(claim)
        mistakes.raise_all()

    @override
    def protocols(self, claim: Claim[TrendFields]) -> list[Protocol[TrendFields]]:
        return [Tuned(_at(claim, place), _name(claim, place)) for place in claim.fields.places]

    @override
    def arms_of_parts(self, claim: Claim[TrendFields]) -> set[str]:
        rows = [row for row in claim.fields.expect if row.ratio is not None]
        return {name for row in rows for name in (row.candidate, row.baseline)} | {claim.baseline.name}

    @override
    def conclude(self, found: Comparison[TrendFields]) -> Evidence:
        rows = []
        fitted = []
        for change in found.claim.fields.expect:
            each = speed_ups.speed_up(found, change.candidate, change.baseline)
            if each is not None:
                rows.append(_shown(found, change, each))
                fitted.append((change.candidate, change.baseline, each))
        names = [(_pair(found.claim, candidate, baseline), each) for candidate, baseline, each in fitted]
        tables = [speed_ups.fits_table(names), *exhibits.tuning_tables(found)]
        for table in tables:
            table.title = f"{table.title}, {found.protocol.name}"
        return Evidence(rows, tables=tables, speed_ups=fitted)

    @override
    def across(self, found: Sequence[Comparison[TrendFields]], evidences: Sequence[Evidence]) -> Evidence:
        claim, fields = found[0].claim, found[0].claim.fields
        by_pair = {
            (row.candidate, row.baseline): [_of(evidence, row) for evidence in evidences] for row in fields.expect
        }
        measures = [_change(claim, row, by_pair[row.candidate, row.baseline]) for row in fields.expect]
        return Evidence(measures, [_figure(claim, by_pair)], [_carried(found)])


def _check_places(claim: Claim[TrendFields]) -> None:
    values = [place.value for place in claim.fields.places]
    if len(values) < 2 or values != sorted(set(values)):
        raise ClaimError(f"places: the values {values} must be two or more, rising")
    mistakes, said = Mistakes(), set[str]()
    for place in claim.fields.places:
        own = Mistakes()
        with own.collected():
            check_training(_at(claim, place))
        mistakes.lines += [f"places: {place.value:g}: {line}" for line in own.lines if line not in said]
        said |= {*own.lines}
    mistakes.raise_all()


def _check_changes(claim: Claim[TrendFields]) -> None:
    mistakes = Mistakes()
    if not any(row.ratio for row in claim.fields.expect):
        mistakes.lines.append("expect: no row claims anything, so that nothing would be judged; give one a `ratio`")
    for row in claim.fields.expect:
        with mistakes.collected():
            check_arms_exist(claim, "expect", row.candidate, row.baseline)
        with mistakes.collected():
            if row.ratio is not None:
                check_part(f"expect: {row.candidate} against {row.baseline}", row.ratio, 1.0, log_scale=True)
    mistakes.raise_all()


def _at(claim: Claim[TrendFields], place: Place) -> Claim[TrendFields]:
    """The claim at a value of the axis."""
    fields = claim.fields
    changed = replace(
        fields,
        budget=place.budget or fields.budget,
        warmup_steps=place.warmup_steps or fields.warmup_steps,
        tuned_axes=place.tuned_axes or fields.tuned_axes,
    )
    arms = tuple(_arm_at(arm, place, changed) for arm in claim.arms)
    return replace(claim, arms=arms, common=(*claim.common, *place.overrides), fields=changed)


def _arm_at(arm: ArmSpec, place: Place, fields: TrendFields) -> ArmSpec:
    """The arm whose rate starts at the carried one, and whose warm-up, the last axis, at the place's."""
    if not arm.axes:
        return arm
    rate, *others = arm.axes[:-1]
    start = float(f"{rate.start * place.rate_factor:.4g}")
    return replace(arm, axes=(rate._replace(start=start), *others, fields.warm_up))


def _name(claim: Claim[TrendFields], place: Place) -> str:
    return f"{claim.fields.axis} {place.value:g}"


def _pair(claim: Claim[TrendFields], candidate: str, baseline: str) -> str:
    return f"{claim.arm(candidate).label} against {claim.arm(baseline).label}"


def _shown(found: Comparison[TrendFields], change: Change, each: SpeedUp) -> Measure:
    name = _pair(found.claim, change.candidate, change.baseline)
    interval = speed_ups.interval(each)
    label = f"speed-up in steps, {name}, {found.protocol.name}"
    n, note, sign = len(found.claim.fields.seeds), speed_ups.note(each), speed_ups.sign(each)
    name = f"speed_up_steps_{change.candidate}_{change.baseline}"
    return judged(name, label, "x", interval, Expected(None, 1.0, log_scale=True), n=n, note=note, censored=sign)


def _of(evidence: Evidence, row: Change) -> SpeedUp | None:
    pairs = {(candidate, baseline): each for candidate, baseline, each in evidence.speed_ups}
    return pairs.get((row.candidate, row.baseline))


def _change(claim: Claim[TrendFields], row: Change, places: Sequence[SpeedUp | None]) -> Measure:
    """The speed-up at the last place over that at the first."""
    fields, first, last = claim.fields, places[0], places[-1]
    name = _pair(claim, row.candidate, row.baseline)
    ends = f"{fields.axis} {fields.places[-1].value:g} over {fields.places[0].value:g}"
    interval, note = None, "a speed-up is missing"
    if first is not None and last is not None:
        interval, note = ratio(last.interval, first.interval), ""
        if first.censored or last.censored:
            note = "a speed-up lies beyond what was run, so the change is known by its bounds alone"
    expected = part(row.ratio, 1.0, log_scale=True)
    label = f"change of the speed-up in steps, {name}, {ends}"
    return judged(
        f"change_{row.candidate}_{row.baseline}", label, "x", interval, expected, n=len(fields.seeds), note=note
    )


def ratio(above: Interval, below: Interval) -> Interval:
    """The quotient of two independent speed-ups; an end that is not known leaves that of the quotient open."""
    if not (math.isfinite(above.estimate) and math.isfinite(below.estimate)):  # censored: the worst of both ends
        low = above.low / below.high if math.isfinite(below.high) else 0.0
        return Interval(math.nan, low, above.high / below.low if below.low > 0 else math.inf)
    estimate = above.estimate / below.estimate
    down = math.hypot(_distance(above.low, above.estimate), _distance(below.estimate, below.high))
    up = math.hypot(_distance(above.estimate, above.high), _distance(below.low, below.estimate))
    return Interval(estimate, estimate * math.exp(-down), estimate * math.exp(up) if up < 700 else math.inf)


def _distance(low: float, high: float) -> float:
    return math.log(high / low) if low > 0 and math.isfinite(high) else math.inf


def _figure(claim: Claim[TrendFields], by_pair: dict[tuple[str, str], list[SpeedUp | None]]) -> Figure:
    series = []
    for (candidate, baseline), places in by_pair.items():
        x, rows = [], []
        for place, each in zip(claim.fields.places, places, strict=True):
            if each is not None:
                x.append(place.value)
                rows.append(speed_ups.drawn(each))
        low, y, high = ([row[i] for row in rows] for i in range(3))
        series.append(Series(_pair(claim, candidate, baseline), x, y, low, high, candidate))
    axes = Axis(claim.fields.axis, log=True), Axis("speed-up in steps", log=True)
    caption = (
        "95 % intervals; each value has a tuning of its own. A speed-up beyond what was run is drawn at its bound."
    )
    return Figure("trend", f"Speed-up by {claim.fields.axis}", "lines", *axes, series, caption=caption, hline=1.0)


def _carried(found: Sequence[Comparison[TrendFields]]) -> Table:
    """The rate where tuning started at each place, and the one it chose."""
    rows = []
    for each in found:
        for arm in each.claim.arms:
            point = each.tunings[arm.name].point
            if arm.axes and point is not None:
                rate = arm.axes[0]
                rows.append([each.protocol.name, arm.label, f"{rate.start:g}", f"{point[rate.name]:g}"])
    note = (
        "The rate is carried over from the scale's own size and then tuned, so a bad guess costs runs, not the verdict."
    )
    return Table("Rates carried and tuned", ["place", "arm", "carried", "tuned"], rows, note)
