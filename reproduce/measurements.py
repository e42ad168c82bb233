"""Claims that train nothing, and the step times that all others are given in seconds by: claim to findings."""

from collections.abc import Callable, Mapping
from typing import Any

from report.results import Arm, Measure, Protocol
from reproduce import memory, timing, toy
from reproduce.claims import ArmSpec, Claim
from reproduce.evidence import Evidence
from reproduce.findings import Expected, Findings, measure, overall, sentence
from reproduce.measures import Ratios
from reproduce.statistics import Interval

ROUNDS = 7  # of every arm, interleaved
DESCRIPTIONS = {
    "toy": "small losses with a known Hessian, every method at its best point of a grid of equal size",
    "memory": "the state that the optimizers declare for models of full size; nothing is trained",
    "overhead": "seconds per step, all arms interleaved on this machine; the state that the optimizers declare",
}


def of_toy(claim: Claim) -> Findings:
    """A claim about small losses."""
    return _found(claim, toy.heterogeneous(claim.fields["settings"]))


def of_memory(claim: Claim) -> Findings:
    """A claim about bytes of optimizer state."""
    return _found(claim, memory.state_memory({**_arms_of(claim), **claim.fields["settings"]}))


def of_overhead(claim: Claim) -> Findings:
    """A claim about the time of a step and the state beside it."""
    settings = claim.fields["settings"]
    ratios = _ratios(claim, settings["rounds"], settings["steps"])
    evidence = memory.state_memory({**_arms_of(claim), "sizes": settings["sizes"]})
    evidence.measures = [_overhead(claim, row, ratios, evidence) for row in claim.fields["expect"]]
    return _found(claim, evidence)


def time_arms(claim: Claim) -> Ratios:
    """Seconds per step of every arm beside each other's, where the claim is about a speed-up."""
    if claim.kind != "speed_up":
        return {}
    return _ratios(claim, ROUNDS, claim.fields["timing_steps"])


MEASUREMENTS: Mapping[str, Callable[[Claim], Findings]] = {
    "toy": of_toy,
    "memory": of_memory,
    "overhead": of_overhead,
}


def _ratios(claim: Claim, rounds: int, steps: int) -> Ratios:
    times = timing.step_times({arm.name: arm.overrides for arm in claim.arms}, claim.common, rounds=rounds, steps=steps)
    names = [arm.name for arm in claim.arms]
    return {(ours, other): timing.overhead(times, ours, other) for ours in names for other in names if ours != other}


def _overhead(claim: Claim, row: Mapping[str, Any], ratios: Ratios, evidence: Evidence) -> Measure:
    """One row of `expect`."""
    candidate, baseline = claim.arm(row["arm"]), claim.arm(row["against"])
    expected = Expected(row["claimed"], row["no_effect"], log_scale=True)
    if row["measure"] == "step_time":
        interval, what = ratios[candidate.name, baseline.name], "seconds per step"
    else:
        interval, what = _state_ratio(evidence, candidate, baseline), "bytes of optimizer state"
    return measure(row["measure"], f"{what}, {candidate.label} beside {baseline.label}", "x", interval, expected)


def _state_ratio(evidence: Evidence, candidate: ArmSpec, baseline: ArmSpec) -> Interval:
    """The same for every size that the figure shows, or the largest; exact."""
    bars = {series.arm: series.y for series in evidence.figures[0].series}
    pairs = zip(bars[candidate.name], bars[baseline.name], strict=True)
    ratio = max(ours / theirs for ours, theirs in pairs if ours is not None and theirs)
    return Interval(ratio, ratio, ratio)


def _arms_of(claim: Claim) -> dict[str, Any]:
    return {
        "arms": {arm.name: list(arm.overrides) for arm in claim.arms},
        "labels": {arm.name: arm.label for arm in claim.arms},
        "baseline": claim.baseline.name,
    }


def _found(claim: Claim, evidence: Evidence) -> Findings:
    """The evidence under one protocol: every judged number must hold."""
    judged = [row for row in evidence.measures if row.verdict]
    verdict = overall([row.verdict for row in judged])
    words = sentence(verdict, judged)
    protocol = Protocol(claim.kind, DESCRIPTIONS[claim.kind], verdict, words, None, evidence.measures)
    arms = [Arm(arm.name, arm.label, arm.role, {claim.kind: [*claim.common, *arm.overrides]}) for arm in claim.arms]
    return Findings([protocol], arms, evidence.figures, evidence.tables, evidence.notes)
