"""What the runs of a claim, or its measurement, found: protocols with their verdicts, arms, figures and tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.verdicts import UNDECIDED, overall
from report.numbers import estimate
from report.results import Arm, Check, Figure, Measure, ProtocolResult, Table
from reproduce import exhibits, regime, speed_ups
from reproduce.claim import Claim
from reproduce.evidence import Evidence
from reproduce.judging import more_seeds, sentence
from reproduce.protocols import Comparison
from reproduce.records import Recorded
from reproduce.regime import Surroundings
from reproduce.tuned import COSINE_CHECK, USUAL

TOGETHER = "together"  # what several protocols' comparisons say, as a protocol of its own


@dataclass
class Findings:
    """What is found, in the terms of results.json. verdict, sentence: of the whole claim."""

    verdict: str
    sentence: str
    protocols: list[ProtocolResult]
    checks: list[Check] = field(default_factory=list)
    tuning: str = ""
    arms: list[Arm] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    difference: str = ""


def of_training(
    comparisons: Sequence[Comparison[Any]], around: Callable[[Comparison[Any], Evidence], Surroundings]
) -> Findings:
    """The findings of a claim whose runs are all there: of its protocols, the one that its verdict follows last.

    around: what the regime checks of that one need beside its runs.
    """
    claim, last = comparisons[-1].claim, comparisons[-1]
    evidences = [claim.kind.conclude(each) for each in comparisons]
    protocols = [
        _judged(claim, each.protocol.name, each.protocol.description, evidence.measures)
        for each, evidence in zip(comparisons, evidences, strict=True)
    ]
    decisive = [(last, evidences[-1])]
    if (together := claim.kind.across(comparisons, evidences)) is not None:
        protocols.append(_judged(claim, TOGETHER, "what the comparisons above say together", together.measures))
        decisive = list(zip(comparisons, evidences, strict=True))
        evidences.append(together)
    deciding = protocols[-1]
    checks = regime.combined(
        [
            (each.protocol.name, regime.of_runs(each, evidence, deciding.verdict, around(each, evidence)))
            for each, evidence in decisive
        ]
    )
    verdict = regime.outranked(deciding.verdict, checks)
    found = Findings(verdict, _sentence(verdict, deciding, checks), protocols, checks)
    found.tuning = speed_ups.tuning_sentence(last)
    found.arms = _arms(claim, comparisons)
    found.difference = _difference(found.protocols)
    _show(found, last, evidences)
    return found


def _show(found: Findings, last: Comparison[Any], evidences: Sequence[Evidence]) -> None:
    """Adds the figures, tables and notes; the first figure, of the last evidence, shows the verdict."""
    for evidence in evidences[::-1]:
        found.figures += evidence.figures
        found.tables += evidence.tables
        found.notes += evidence.notes
    found.figures += exhibits.cost_figures(last)
    schedule = "The same point with a cosine schedule to 0; one seed, as a check on the schedule that is compared with."
    found.tables += exhibits.besides_table(last, COSINE_CHECK, "Cosine check", schedule)
    found.tables += exhibits.besides_table(last, USUAL, "Usual settings", "What tuning alone gave the baseline.")
    found.tables.append(exhibits.diagnostics_table(last))
    found.notes = list(dict.fromkeys(found.notes))


def of_measurement(claim: Claim[Any], evidence: Evidence) -> Findings:
    """The findings of a claim that trains nothing, under one protocol that is named after its kind."""
    kind = claim.kind
    parts = [row for row in evidence.measures if row.verdict]
    verdict = overall([row.verdict or "" for row in parts])
    words = sentence(verdict, parts)
    protocol = ProtocolResult(kind.name, kind.description, verdict, words, None, evidence.measures)
    arms = [Arm(arm.name, arm.label, arm.role, {kind.name: [*claim.common, *arm.overrides]}) for arm in claim.arms]
    return Findings(
        verdict,
        words,
        [protocol],
        arms=arms,
        figures=evidence.figures,
        tables=evidence.tables,
        notes=evidence.notes,
    )


def _judged(claim: Claim[Any], name: str, description: str, rows: list[Measure]) -> ProtocolResult:
    """A protocol with the verdict on all its parts."""
    parts = [row for row in rows if row.verdict]
    verdict = overall([row.verdict or "" for row in parts])
    more = more_seeds(parts, len(claim.fields.seeds)) if verdict == UNDECIDED else None
    return ProtocolResult(name, description, verdict, sentence(verdict, parts), more, rows)


def _sentence(verdict: str, deciding: ProtocolResult, checks: Sequence[Check]) -> str:
    """What the verdict follows from."""
    if verdict != deciding.verdict:
        return f"Failed: {regime.failed(checks)}. By the numbers alone, {deciding.sentence}"
    more = deciding.more_seeds
    asked = f"; about {more} more seed{'s' if more > 1 else ''} would decide it" if more else ""
    return f"{deciding.sentence}{asked}"


def _difference(found: Sequence[ProtocolResult]) -> str:
    """In words, what tuning changed: the verdict, and every number that the paper makes a claim about."""
    if len(found) < 2:
        return ""
    first, last = found[0], found[-1]
    parts = [f"Verdict: {first.verdict} ({first.name}), {last.verdict} ({last.name})."]
    before = {(row.name, row.label): row for row in first.measures}  # a name occurs once in every comparison
    for row in last.measures:
        other = before.get((row.name, row.label))
        is_claimed = row.claimed is not None or (other is not None and other.claimed is not None)
        if other and is_claimed and row.estimate is not None and other.estimate is not None:
            parts.append(f"{row.label}: {estimate(other)} ({first.name}), {estimate(row)} ({last.name}).")
    return " ".join(parts)


def _arms(claim: Claim[Any], comparisons: Sequence[Comparison[Any]]) -> list[Arm]:
    found = []
    for arm in claim.arms:
        overrides, tuning = {}, ""
        for each in comparisons:
            overrides[each.protocol.name] = [*claim.common, *arm.overrides, *each.points.get(arm.name, ())]
            tuning = _tuning_sentence([run for run in each.tuned if run.plan.arm == arm.name]) or tuning
        if not tuning and arm.fixed:
            tuning = f"not tuned: {claim.fields.unequal}"
        found.append(Arm(arm.name, arm.label, arm.role, overrides, tuning))
    return found


def _tuning_sentence(tried: Sequence[Recorded]) -> str:
    if not tried:
        return ""
    steps = sum(run.plan.steps for run in tried)
    diverged = sum(run.record.status == "diverged" for run in tried)
    return f"{len(tried)} runs, {steps:,} steps, {diverged} diverged"
