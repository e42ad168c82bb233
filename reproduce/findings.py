"""What the runs of a claim say: measures, verdicts and figures. The numbers come from measures.py and statistics.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from report.numbers import NATS, digits, estimate, in_words
from report.results import Arm, Figure, Measure, Table
from report.results import Protocol as Found
from reproduce import exhibits, measures, statistics
from reproduce.claims import ArmSpec, Claim, Point
from reproduce.measures import Measured, Ratios
from reproduce.protocols import HALF, WHOLE, Outcomes, Planned, Protocol, steps_of
from reproduce.statistics import Interval

UNTUNED = "untuned, so no verdict"


@dataclass
class Findings:
    """What a claim's runs, or its measurement, found."""

    protocols: list[Found]
    arms: list[Arm] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    difference: str = ""


class Expected(NamedTuple):
    """What the claim says of a number, and what no effect would be."""

    claimed: float | None
    no_effect: float
    log_scale: bool = False


def training(claim: Claim, protocols: Sequence[Protocol], runs: Sequence[Measured], ratios: Ratios) -> Findings:
    """The findings of a claim whose runs are all there.

    ratios: step times beside a baseline's; a pair that is missing has no measures in seconds.
    """
    outcomes = {run.plan.config_hash: run.record.loss for run in runs}
    found = Findings([])
    compared = {protocol.name: _runs_of(protocol.comparison(outcomes), runs) for protocol in protocols}
    conclude = {"speed_up": _speed_up, "sweep": _sweep}[claim.kind]
    for protocol in protocols:
        rows, figures, tables = conclude(claim, protocol, outcomes, runs, compared[protocol.name], ratios)
        found.protocols.append(_judged(claim, protocol, rows))
        found.figures += figures
        found.tables += tables
    found.arms = _arms(claim, protocols, outcomes, runs)
    last = protocols[-1].name
    found.figures += exhibits.cost_figures(claim, last, compared[last], ratios)
    found.tables.append(exhibits.diagnostics_table(claim, last, compared[last], ratios))
    found.notes = list(dict.fromkeys(note for protocol in protocols for note in _ends_of_grids(protocol, outcomes)))
    found.difference = _difference(found.protocols)
    return found


def measure(
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
        verdict = statistics.decide(interval, **bounds) if interval is not None else "undecided"  # type: ignore[arg-type]
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


def finite(value: float | None) -> float | None:
    """The value, or None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def overall(verdicts: Sequence[str | None]) -> str:
    """Of measures that must all hold."""
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


# A claim of kind speed_up.

Conclusion = tuple[list[Measure], list[Figure], list[Table]]


def _speed_up(
    claim: Claim,
    protocol: Protocol,
    outcomes: Outcomes,
    runs: Sequence[Measured],
    compared: Sequence[Measured],
    ratios: Ratios,
) -> Conclusion:
    rows = []
    for comparison in claim.fields["comparisons"]:
        pair = Pair(claim, claim.arm(comparison["candidate"]), claim.arm(comparison["baseline"]), compared)
        pair_rows = _pair_measures(pair, comparison["claimed"], ratios.get((pair.candidate.name, pair.baseline.name)))
        rows += pair_rows
    figures = [
        exhibits.curves_figure(claim, protocol.name, compared),
        exhibits.budgets_figure(claim, protocol.name, compared),
    ]
    return rows, figures, exhibits.tuning_table(claim, protocol, outcomes)


class Pair(NamedTuple):
    """Two arms and the runs that compare them."""

    claim: Claim
    candidate: ArmSpec
    baseline: ArmSpec
    runs: Sequence[Measured]

    @property
    def name(self) -> str:
        """Part of its measures' names and labels."""
        return f"{self.candidate.label} beside {self.baseline.label}"

    def losses(self, arm: ArmSpec, fraction: float) -> dict[int, float | None]:
        """Final losses at that share of the budget, by seed."""
        return measures.losses(self.runs, arm.name, steps_of(self.claim, fraction))


def _pair_measures(pair: Pair, claimed: Mapping[str, float], ratio: Interval | None) -> list[Measure]:
    """The half-budget test, the speed-ups, and the losses at equal cost."""
    n, rows = len(pair.claim.seeds), []
    in_steps = _speed_up_interval(pair)
    cost = _flops_ratio(pair)
    divergence = _divergence_note(pair)
    note = "; ".join(filter(None, (_unreached_note(pair, in_steps), divergence)))
    for key, label, factor in (
        ("steps", "steps", Interval(1.0, 1.0, 1.0)),
        ("flops", "FLOPs", None if cost is None else Interval(cost, cost, cost)),
        ("seconds", "seconds", ratio),
    ):
        if in_steps is None:
            break
        interval = _divided(in_steps, factor)
        expected = Expected(claimed.get(key), 1.0, log_scale=True)
        words = f"{pair.candidate.label}'s speed-up in {label} over {pair.baseline.label} (fitted curve)"
        rows.append(measure(f"speed_up_{key}", words, "x", interval, expected, n=n, note=note))
    if (gap := _gap(pair)) is not None:
        words = (
            f"half-budget gap closed by {pair.candidate.label} (1: T/2 steps of it equal T of {pair.baseline.label})"
        )
        rows.append(measure("half_budget_gap", words, "", gap, Expected(claimed.get("gap"), 0.0), n=n, note=divergence))
    rows += _equal_cost(pair, cost, ratio)
    if cost is not None:
        words = f"FLOPs per step, {pair.name}"
        rows.append(measure("flops_overhead", words, "x", Interval(cost, cost, cost), Expected(None, 1.0)))
    if ratio is not None:
        rows.append(measure("step_time", f"seconds per step, {pair.name}", "x", ratio, Expected(None, 1.0)))
    return rows


def _speed_up_interval(pair: Pair) -> Interval | None:
    """None where the protocol has too few budgets for a curve."""
    curves = measures.budgets(pair.runs, pair.candidate.name)
    if min((len(points) for points in curves.values()), default=0) < 4:
        return None
    return statistics.speed_up(curves, pair.losses(pair.baseline, WHOLE), pair.claim.budget)


def _gap(pair: Pair) -> Interval | None:
    """None where the protocol does not run both arms for T/2."""
    candidate, baseline = pair.losses(pair.candidate, HALF), pair.losses(pair.baseline, HALF)
    return (
        statistics.gap_closed(candidate, baseline, pair.losses(pair.baseline, WHOLE))
        if candidate and baseline
        else None
    )


def _flops_ratio(pair: Pair) -> float | None:
    candidate, baseline = (measures.flops_per_step(pair.runs, arm.name) for arm in (pair.candidate, pair.baseline))
    return candidate / baseline if candidate and baseline else None


def _divided(interval: Interval, by: Interval | None) -> Interval | None:
    """The quotient; its bounds are those of the worst cases, so it is never too narrow."""
    if by is None:
        return None
    high = interval.high / by.low if by.low > 0 else math.inf
    return Interval(interval.estimate / by.estimate, interval.low / by.high, high)


def _equal_cost(pair: Pair, flops: float | None, seconds: Interval | None) -> list[Measure]:
    """Differences in final loss where the candidate may spend what the baseline spends over T."""
    rows: list[Measure] = []
    if len(measures.budgets(pair.runs, pair.candidate.name).get(pair.claim.seeds[0], [])) < 2:
        return rows
    baseline = pair.losses(pair.baseline, WHOLE)
    for name, cost in (("steps", 1.0), ("FLOPs", flops), ("seconds", seconds.estimate if seconds else None)):
        label = f"loss difference at equal {name}, {pair.name}"
        if cost is None:
            continue
        candidate = measures.losses_at(pair.runs, pair.candidate.name, pair.claim.budget / max(cost, 1.0))
        rows.append(difference(f"loss_at_equal_{name.lower()}", label, candidate, baseline, Expected(None, 0.0)))
    return rows


def difference(
    name: str, label: str, candidate: measures.Losses, baseline: measures.Losses, expected: Expected, unit: str = NATS
) -> Measure:
    """The mean of candidate minus baseline over seeds; not measured if one of them has no value, which note counts."""
    seeds = sorted(candidate.keys() & baseline.keys())
    missing = [seed for seed in seeds if candidate[seed] is None or baseline[seed] is None]
    if missing or not seeds:
        note = f"no value for {len(missing)} of {len(seeds)} seeds: diverged, or outside the budgets that were run"
        return measure(name, label, unit, None, expected, n=len(seeds), note=note)
    ours = {seed: value for seed, value in candidate.items() if value is not None}
    theirs = {seed: value for seed, value in baseline.items() if value is not None}
    paired = statistics.paired(ours, theirs)
    row = measure(name, label, unit, paired.difference, expected, n=paired.n)
    row.sd, row.p_value = finite(paired.sd), finite(paired.p_value)
    return row


def _unreached_note(pair: Pair, in_steps: Interval | None) -> str:
    if in_steps is None or in_steps.estimate != 0:
        return ""
    return f"0: {pair.candidate.label}'s curve, as fitted, never comes to {pair.baseline.label}'s final loss"


def _divergence_note(pair: Pair) -> str:
    counts = {
        arm.label: sum(run.record.status == "diverged" for run in pair.runs if run.plan.arm == arm.name)
        for arm in (pair.candidate, pair.baseline)
    }
    return ", ".join(f"{count} diverged runs of {label} count as failures" for label, count in counts.items() if count)


# A claim of kind sweep.


def _sweep(
    claim: Claim,
    protocol: Protocol,
    outcomes: Outcomes,
    runs: Sequence[Measured],
    compared: Sequence[Measured],
    ratios: Ratios,
) -> Conclusion:
    points = protocol.points(outcomes) or {}
    rows = [_expectation(claim, row, points, compared) for row in claim.fields["expect"]]
    swept = _runs_of(protocol.tuning(outcomes), runs)
    figures = [exhibits.sweep_figure(claim, swept, compared), exhibits.curves_figure(claim, protocol.name, compared)]
    return (
        rows,
        figures,
        [exhibits.sweep_table(claim, swept, compared), *exhibits.tuning_table(claim, protocol, outcomes)],
    )


def _expectation(
    claim: Claim, row: Mapping[str, object], points: Mapping[str, Sequence[Point]], compared: Sequence[Measured]
) -> Measure:
    """One row of `expect`: a quantity of an arm, less that of the arm `against` where it is named."""
    name, arm = str(row["measure"]), claim.arm(str(row["arm"]))
    quantity, unit, words = QUANTITIES[name]
    expected = Expected(float(str(row["claimed"])), float(str(row["no_effect"])))
    values = quantity(compared, arm.name, points[arm.name])
    against = row.get("against")
    if against is None:
        label, zero = f"{words} of {arm.label}", dict.fromkeys(values, 0.0)
        return difference(f"{name}_{arm.name}", label, values, zero, expected, unit)
    other = claim.arm(str(against))
    label = f"{words} of {arm.label} less that of {other.label}"
    theirs = quantity(compared, other.name, points[other.name])
    return difference(f"{name}_{arm.name}", label, values, theirs, expected, unit)


def _final_loss(runs: Sequence[Measured], arm: str, points: Sequence[Point]) -> dict[int, float | None]:
    return {run.plan.seed: run.record.loss for run in runs if (run.plan.arm, run.plan.point) == (arm, points[0])}


def _degradation(runs: Sequence[Measured], arm: str, points: Sequence[Point]) -> dict[int, float | None]:
    first, last = (_final_loss(runs, arm, [point]) for point in (points[0], points[-1]))
    values = {seed: (first[seed], last.get(seed)) for seed in first}
    return {seed: None if a is None or b is None else b - a for seed, (a, b) in values.items()}


def _clipped_share(runs: Sequence[Measured], arm: str, points: Sequence[Point]) -> dict[int, float | None]:
    return {run.plan.seed: run.record.clipped_share for run in runs if run.plan.arm == arm}


def _win_rate(runs: Sequence[Measured], arm: str, points: Sequence[Point]) -> dict[int, float | None]:
    return {run.plan.seed: run.record.win_rate for run in runs if run.plan.arm == arm}


Quantity = Callable[[Sequence[Measured], str, Sequence[Point]], dict[int, float | None]]
QUANTITIES: dict[str, tuple[Quantity, str, str]] = {
    "best_loss": (_final_loss, NATS, "best loss"),
    "degradation": (_degradation, NATS, "loss at the last point less that at the first"),
    "clipped_share": (_clipped_share, "", "share of steps with a clipped gradient"),
    "win_rate": (_win_rate, "", "win rate (coordinates of the update that are not clipped)"),
}


# What all of them show.


def _judged(claim: Claim, protocol: Protocol, rows: list[Measure]) -> Found:
    """The protocol with its verdict: of a speed-up, what the first comparison's first judged number says; else all."""
    judged = [row for row in rows if row.verdict]
    deciding = judged[:1] if claim.kind == "speed_up" else judged
    verdict = overall([row.verdict for row in deciding])
    words = sentence(verdict, deciding)
    more = _more_seeds(deciding, len(claim.seeds)) if verdict == "undecided" else None
    if protocol.name == "paper" and "untuned" in claim.fields:
        for row in judged:
            row.verdict, row.note = (
                None,
                f"{UNTUNED} (the rule alone: {row.verdict}){'; ' if row.note else ''}{row.note}",
            )
        numbers = "; ".join(in_words(row) for row in deciding)
        return Found(protocol.name, protocol.description, "undecided", f"{UNTUNED}: {numbers}", None, rows)
    return Found(protocol.name, protocol.description, verdict, words, more, rows)


def _more_seeds(rows: Sequence[Measure], n: int) -> int | None:
    """The most that an undecided number needs."""
    needs = []
    for row in rows:
        if row.verdict == "undecided" and row.estimate is not None and row.claimed is not None:
            low = row.low if row.low is not None else -math.inf
            high = row.high if row.high is not None else math.inf
            bounds = {"claimed": row.claimed, "no_effect": row.no_effect or 0.0, "log_scale": row.log_scale}
            needs.append(statistics.more_seeds(Interval(row.estimate, low, high), n, **bounds))  # type: ignore[arg-type]
    return max(needs, default=None)


def _difference(found: Sequence[Found]) -> str:
    """In words, what tuning changed: the verdict, and every number that the paper makes a claim about."""
    if len(found) < 2:
        return ""
    first, last = found[0], found[-1]
    parts = [f"Verdict: {first.verdict} ({first.name}), {last.verdict} ({last.name})."]
    before = {(row.name, row.label): row for row in first.measures}  # a name occurs once in every comparison
    for row in last.measures:
        other = before.get((row.name, row.label))
        if other and row.claimed is not None and row.estimate is not None and other.estimate is not None:
            change = f"{estimate(other)} ({first.name}), {estimate(row)} ({last.name}), claimed {digits(row.claimed)}"
            parts.append(f"{row.label}: {change}.")
    return " ".join(parts)


def _arms(claim: Claim, protocols: Sequence[Protocol], outcomes: Outcomes, runs: Sequence[Measured]) -> list[Arm]:
    found = []
    for arm in claim.arms:
        overrides, tuning = {}, ""
        for protocol in protocols:
            points = (protocol.points(outcomes) or {}).get(arm.name, [])
            shared = [*claim.common, *arm.overrides]
            overrides[protocol.name] = [*shared, *(points[0] if len(points) == 1 else ())]
            tried = [run for run in _runs_of(protocol.tuning(outcomes), runs) if run.plan.arm == arm.name]
            tuning = _tuning_sentence(tried, points) or tuning
        found.append(Arm(arm.name, arm.label, arm.role, overrides, tuning))
    return found


def _tuning_sentence(tried: Sequence[Measured], points: Sequence[Point]) -> str:
    if not tried:
        return ""
    steps = sum(run.plan.steps for run in tried)
    diverged = sum(run.record.status == "diverged" for run in tried)
    chosen = " and ".join(" ".join(point) for point in points)
    return f"{len(tried)} runs, {steps:,} steps, {diverged} diverged; chosen: {chosen}"


def _ends_of_grids(protocol: Protocol, outcomes: Outcomes) -> list[str]:
    """A sentence for every arm and hyperparameter whose choice by tuning is the smallest or largest that was tried."""
    notes = []
    for arm, points in (protocol.points(outcomes) or {}).items():
        tried = [run.point for run in protocol.tuning(outcomes) if run.arm == arm]
        if len(points) != 1 or not tried:
            continue
        for key, chosen in _numbers(points[0]).items():
            values = sorted({numbers[key] for numbers in map(_numbers, tried) if key in numbers})
            if len(values) > 1 and chosen in (values[0], values[-1]):
                best, span = (
                    f"{protocol.claim.arm(arm).label}'s best {key}={chosen:g}",
                    f"{values[0]:g} to {values[-1]:g}",
                )
                notes.append(f"{best} is an end of what was tried ({span}): a wider grid may find a better one.")
    return notes


def _numbers(point: Point) -> dict[str, float]:
    """The hyperparameters of a point that are numbers."""
    found = {}
    for key, _, value in (override.partition("=") for override in point):
        with suppress(ValueError):
            found[key] = float(value)
    return found


def _runs_of(plans: Sequence[Planned], runs: Sequence[Measured]) -> list[Measured]:
    """The plans, with what came of the run of the same configuration."""
    known = {run.plan.config_hash: run.record for run in runs}
    return [Measured(plan, known[plan.config_hash]) for plan in plans if plan.config_hash in known]
