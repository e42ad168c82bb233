"""What the runs of a claim, or its measurement, found: protocols with their verdicts, arms, figures and tables."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from report.numbers import digits, estimate, in_words
from report.results import Arm, Figure, Measure, ProtocolResult, Table
from reproduce import exhibits
from reproduce.claim import Claim, Point
from reproduce.evidence import Evidence
from reproduce.judging import more_seeds, overall, sentence
from reproduce.protocols import Comparison
from reproduce.records import Recorded


@dataclass
class Findings:
    """What is found, in the terms of results.json."""

    protocols: list[ProtocolResult]
    arms: list[Arm] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    difference: str = ""


def of_training(comparisons: Sequence[Comparison[Any]]) -> Findings:
    """The findings of a claim whose runs are all there: of its protocols, the one that its verdict follows last."""
    claim, last = comparisons[-1].claim, comparisons[-1]
    found = Findings([])
    for each in comparisons:
        evidence = claim.kind.conclude(each)
        found.protocols.append(_judged(each, evidence.measures))
        found.figures += evidence.figures
        found.tables += evidence.tables
        found.notes += evidence.notes
    found.arms = _arms(claim, comparisons)
    found.figures += exhibits.cost_figures(last)
    found.tables.append(exhibits.diagnostics_table(last))
    found.notes = list(dict.fromkeys([*found.notes, *(note for each in comparisons for note in _ends_of_grids(each))]))
    found.difference = _difference(found.protocols)
    return found


def of_measurement(claim: Claim[Any], evidence: Evidence) -> Findings:
    """The findings of a claim that trains nothing, under one protocol that is named after its kind."""
    kind = claim.kind
    deciding = kind.deciding([row for row in evidence.measures if row.verdict])
    verdict = overall([row.verdict for row in deciding])
    words = sentence(verdict, deciding)
    protocol = ProtocolResult(kind.name, kind.description, verdict, words, None, evidence.measures)
    arms = [Arm(arm.name, arm.label, arm.role, {kind.name: [*claim.common, *arm.overrides]}) for arm in claim.arms]
    return Findings([protocol], arms, evidence.figures, evidence.tables, evidence.notes)


def _judged(found: Comparison[Any], rows: list[Measure]) -> ProtocolResult:
    """The protocol with its verdict: that of the numbers which decide."""
    protocol, n = found.protocol, len(found.claim.fields.seeds)
    judged = [row for row in rows if row.verdict]
    deciding = found.claim.kind.deciding(judged)
    if why := protocol.no_verdict:
        for row in judged:
            row.note = f"{why} (the rule alone: {row.verdict}){'; ' if row.note else ''}{row.note}"
            row.verdict = None
        numbers = "; ".join(in_words(row) for row in deciding)
        return ProtocolResult(protocol.name, protocol.description, "undecided", f"{why}: {numbers}", None, rows)
    verdict = overall([row.verdict for row in deciding])
    more = more_seeds(deciding, n) if verdict == "undecided" else None
    return ProtocolResult(protocol.name, protocol.description, verdict, sentence(verdict, deciding), more, rows)


def _difference(found: Sequence[ProtocolResult]) -> str:
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


def _arms(claim: Claim[Any], comparisons: Sequence[Comparison[Any]]) -> list[Arm]:
    found = []
    for arm in claim.arms:
        overrides, tuning = {}, ""
        for each in comparisons:
            points = each.points.get(arm.name, [])
            shared = [*claim.common, *arm.overrides]
            overrides[each.protocol.name] = [*shared, *(points[0] if len(points) == 1 else ())]
            tried = [run for run in each.tuned if run.plan.arm == arm.name]
            tuning = _tuning_sentence(tried, points) or tuning
        found.append(Arm(arm.name, arm.label, arm.role, overrides, tuning))
    return found


def _tuning_sentence(tried: Sequence[Recorded], points: Sequence[Point]) -> str:
    if not tried:
        return ""
    steps = sum(run.plan.steps for run in tried)
    diverged = sum(run.record.status == "diverged" for run in tried)
    chosen = " and ".join(" ".join(point) for point in points)
    return f"{len(tried)} runs, {steps:,} steps, {diverged} diverged; chosen: {chosen}"


def _ends_of_grids(found: Comparison[Any]) -> list[str]:
    """A sentence for every arm and hyperparameter whose choice by tuning is the smallest or largest that was tried."""
    notes = []
    for arm, points in found.points.items():
        tried = [run.plan.point for run in found.tuned if run.plan.arm == arm]
        if len(points) != 1 or not tried:
            continue
        for key, chosen in _hyperparameters(points[0]).items():
            values = sorted({each[key] for each in map(_hyperparameters, tried) if key in each})
            if len(values) > 1 and chosen in (values[0], values[-1]):
                best, span = f"{found.claim.arm(arm).label}'s best {key}={chosen:g}", f"{values[0]:g} to {values[-1]:g}"
                notes.append(f"{best} is an end of what was tried ({span}): a wider grid may find a better one.")
    return notes


def _hyperparameters(point: Point) -> dict[str, float]:
    """Those of a point that are numbers."""
    found = {}
    for key, _, value in (override.partition("=") for override in point):
        with suppress(ValueError):
            found[key] = float(value)
    return found
