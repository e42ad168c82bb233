"""Regime checks R1 to R11: whether the runs can say anything about the claim. A failed one outranks the verdict.

R1   numbers lie within the range that was run, or their bound decides
R2   seeds scatter little beside what doubling the length gains
R3   every hyperparameter's optimum is inside its bracket, the rate's clearly
R4   the baseline is as good as the best run of it that is known
R5   warm-up is long enough
R5b  the shorter runs that a number rests on lose by their tokens, not by their schedule
R6   every optimizer works as it is meant to at this length
R7   the baseline is better than a bigram table by .3 nats
R8   10 tokens per parameter, 4 epochs at most
R9   counts begin after the start
R10  a second batch size agrees
R11  a true claim would mostly be reproduced

Thresholds are ours unless a check says otherwise. A unit is what the baseline gains from T/2 to T: L(T/2) - L(T).
before() says what is known without any run; of_runs() reads the rest from the runs' own files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.verdicts import NO_EFFECT, OUT_OF_REGIME, UNDECIDED
from report import numbers
from report.results import Check, Measure
from reproduce import averages, records, speed_ups
from reproduce.claim import Claim
from reproduce.evidence import Evidence
from reproduce.protocols import Comparison
from reproduce.speed_ups import Scatter
from reproduce.training import HALF, QUARTER, WARM_UP, TrainingFields, decay_begins, steps_of
from reproduce.tuned import warm_up_steps
from reproduce.tuner import Tuning

SD, EXCESS, WARM_UP_GAIN = 0.1, 0.05, 0.1  # units
UNDER_BIGRAM = 0.3  # nats
TOKENS_PER_PARAMETER, EPOCHS = 10, 4
LARGER_BATCH = 10  # times ours, from which on a second batch size must agree
POWER = 0.8
ALWAYS = ("R1", "R2", "R11")  # noise and range: a significant absence of the effect outlives their failure


@dataclass(frozen=True)
class Surroundings:
    """What checks need beside the comparison.

    best_known: losses over T of the baseline's optimizer with other settings, by name and seed. bigram: loss and tokens
    of the table (R7), None if it is not known. second_batch: the verdict with another batch, and its factor (R10).
    power: P(reproduced if true), the least over the parts; None: it was not computed. training_tokens: of the data set,
    None if it is not here (R8).
    """

    best_known: Mapping[str, Mapping[int, float]]
    bigram: tuple[float, int] | None = None
    second_batch: tuple[str, float] | None = None
    power: float | None = None
    training_tokens: int | None = None


def outranked(verdict: str, checks: Sequence[Check]) -> str:
    """The verdict after the checks: OUT_OF_REGIME if one failed that it cannot outlive."""
    failed = {check.id for check in checks if check.passed is False}
    if verdict == NO_EFFECT:
        failed -= set(ALWAYS)
    return OUT_OF_REGIME if failed else verdict


def failed(checks: Sequence[Check]) -> str:
    """Which checks failed, in words; empty if none did."""
    return ", ".join(f"{check.id} ({check.label})" for check in checks if check.passed is False)


def combined(checks: Sequence[tuple[str, Sequence[Check]]]) -> list[Check]:
    """The checks of several comparisons, by name: of each the worst, whose value then names its comparison."""
    if len(checks) == 1:
        return list(checks[0][1])
    worst: dict[str, Check] = {}
    for name, found in checks:
        for check in found:
            named = replace(check, value=f"{name}: {check.value}")
            known = worst.get(check.id)
            if known is None or _rank(check) < _rank(known):
                worst[check.id] = named
            elif check.passed is False and known.passed is False:
                worst[check.id] = replace(known, value=f"{known.value}; {named.value}")
    return list(worst.values())


def _rank(check: Check) -> int:
    return (False, None, True).index(check.passed)


def before(claim: Claim[Any], tokens: int | None = None) -> list[Check]:
    """The checks that need no run: R5 by memories, R6 by averages, R8, R10. tokens: of the training data, if known."""
    found = [averages.memories(claim), averages.settled(claim), _tokens(claim, tokens), _batch(claim, None, "")]
    return [check for check in found if check is not None]


def of_runs(found: Comparison[Any], evidence: Evidence, verdict: str, around: Surroundings) -> list[Check]:
    """All checks of a comparison, in the order of their names; verdict: before they are heard."""
    scatter = speed_ups.scatter(found)
    checks = [
        _range(evidence.measures),
        _seeds(found, scatter),
        _inside(found, scatter),
        _best_known(found, scatter, around.best_known),
        _warm_up(found, scatter),
        _schedule(found, evidence),
        averages.itself(found),
        _bigram(found, around.bigram),
        _tokens(found.claim, around.training_tokens),
        _counts(found, evidence),
        _batch(found.claim, around.second_batch, verdict),
        _power(around.power),
    ]
    return [check for check in checks if check is not None]


def _arms(found: Comparison[Any]) -> set[str]:
    """Those that a part of the claim is about."""
    return found.claim.kind.arms_of_parts(found.claim)


def _tunings(found: Comparison[Any]) -> dict[str, Tuning]:
    """Of these arms."""
    return {name: tuning for name, tuning in found.tunings.items() if name in _arms(found)}


def _range(measures: Sequence[Measure]) -> Check:
    label, wanted = "numbers within the range that was run", "inside, or decided by the bound"
    parts = [row for row in measures if row.verdict]
    beyond = [row for row in parts if row.censored]
    open_ = [row.label for row in beyond if row.verdict == UNDECIDED]
    if parts and all(row.estimate is None for row in parts):
        return Check("R1", label, wanted, "not known", None, "no part was measured")
    value = f"{len(beyond)} of {len(parts)} beyond, given as a bound" if beyond else "all inside"
    note = f"undecided by its bound: {'; '.join(open_)}" if open_ else ""
    return Check("R1", label, wanted, value, not open_, note)


def _seeds(found: Comparison[Any], scatter: Scatter) -> Check:
    label, wanted = "scatter of the seeds at T", f"at most {SD:g} units (pooled sd)"
    if scatter.unit is None or scatter.unit <= 0:
        return Check("R2", label, wanted, "there is no unit: the baseline has no gain from T/2 to T", False)
    if scatter.sd is None:
        return Check("R2", label, wanted, "not known", None, "needs two seeds")
    share = scatter.sd / scatter.unit
    value = f"{numbers.told_from(SD, share, 2)} units: {scatter.sd:.4f} nats of {scatter.unit:.3f}"
    return Check("R2", label, wanted, value, share <= SD)


def _inside(found: Comparison[Any], scatter: Scatter) -> Check | None:
    tuned = {name: tuning for name, tuning in _tunings(found).items() if tuning.brackets}
    if not tuned:
        return None
    by_problem, excesses = dict[str, list[str]](), dict[str, float]()
    for name, tuning in tuned.items():
        label = found.claim.arm(name).label
        for axis in (axis for axis, each in tuning.brackets.items() if not each.is_inside):
            by_problem.setdefault(f"{axis} at an end", []).append(label)
        rate = next(iter(tuning.brackets.values()))
        margin = speed_ups.margin(tuning, scatter, len(found.claim.fields.tuning_seeds))
        if not all(any(above > margin for above in rate.beside(side)) for side in (-1, 1)):
            by_problem.setdefault("rates on both sides are not clearly worse", []).append(label)
        excess = speed_ups.excess(tuning, scatter, len(found.claim.fields.tuning_seeds))
        if scatter.unit and excess is not None:
            excesses[label] = excess / scatter.unit
    problems = [f"{', '.join(labels)}: {problem}" for problem, labels in by_problem.items()]
    worst = max(excesses, key=excesses.__getitem__, default="")
    if worst and excesses[worst] > EXCESS:
        problems.append(f"{worst} is {numbers.told_from(EXCESS, excesses[worst], 2)} units above its optimum")
    largest = numbers.told_from(EXCESS, excesses[worst], 3) if worst else ""
    inside = f"; {worst} is at most {largest} units above its optimum" if worst else ""
    value = "; ".join(problems) or f"all inside{inside}"
    wanted = (
        f"inside the bracket; rates beside it worse by 2 standard errors; at most {EXCESS:g} units above the optimum"
    )
    return Check("R3", "optimum of every arm's tuning", wanted, value, not problems)


def _best_known(found: Comparison[Any], scatter: Scatter, known: Mapping[str, Mapping[int, float]]) -> Check | None:
    baseline, fields = found.claim.baseline, found.claim.fields
    if baseline.fixed:
        return None  # not tuned, and the claim says why
    ours = records.losses([*found.compared, *found.tuned_at_point(baseline.name)], baseline.name, fields.budget)
    best, name = 0.0, ""
    for other, losses in known.items():
        differences = [ours[seed] - loss for seed, loss in losses.items() if ours.get(seed) is not None]  # type: ignore[operator]  # not None
        if differences and (mean := sum(differences) / len(differences)) > best:
            best, name = mean, other
    margin = 2 * (scatter.sd or 0.0)
    n = f"{len(known)} other runs of it"
    value = f"{best:.4f} nats better: {name}" if name else f"none of {n} is better"
    wanted = f"no run of any claim with its schedule better by 2 sd ({margin:.4f} nats), same seeds"
    return Check("R4", f"{baseline.label} beside the best known", wanted, value, best <= margin)


def _warm_up(found: Comparison[Any], scatter: Scatter) -> Check | None:
    gains, steps, ends = {}, {}, list[str]()
    for name, tuning in _tunings(found).items():
        bracket = tuning.brackets.get(WARM_UP)
        if bracket is not None and not bracket.beside(1):
            ends.append(f"{found.claim.arm(name).label} is best with {bracket.best:.0f} steps, the most that were run")
        elif bracket is not None and scatter.unit:
            gains[name] = -bracket.beside(1)[0] / scatter.unit
            steps[name] = bracket.best
    label, wanted = "warm-up", f"doubling it gains at most {WARM_UP_GAIN:g} units"
    if ends:
        return Check("R5", label, wanted, "; ".join(ends), False)
    if not gains:
        return averages.memories(found.claim)
    name = max(gains, key=gains.__getitem__)
    gain = numbers.told_from(WARM_UP_GAIN, max(0.0, gains[name]), 2)
    value = f"{found.claim.arm(name).label} gains {gain} units beyond {steps[name]:.0f} steps"
    return Check("R5", label, wanted, value, gains[name] <= WARM_UP_GAIN)


def _schedule(found: Comparison[Any], evidence: Evidence) -> Check:
    """Of arms on whose curve a speed-up is read, and of the baseline's runs from T/2 on, the unit of all checks.

    A slower candidate's curve is not read: where it ends, the baseline's is; nor is that of a slower baseline.
    """
    label, wanted = "shorter runs lose by their tokens alone", "a run of f T ends below the undecayed loss of T at f T"
    problems, closest = [], math.inf
    faster = {
        name
        for candidate, baseline, each in evidence.speed_ups
        if {candidate, baseline} <= _arms(found)
        for name, is_read in ((candidate, not each.interval.high < 1), (baseline, not each.interval.low >= 1))
        if is_read
    }
    for arm in (each for each in found.claim.arms if each.name in faster | {found.claim.baseline.name}):
        for fraction in sorted(found.claim.fields.fractions):
            steps = steps_of(found.claim, fraction)
            ends = records.losses(found.compared, arm.name, steps)
            if steps == found.claim.fields.budget or steps > decay_begins(found.claim.fields.budget):
                continue  # the long run decays there itself
            if fraction < HALF and arm.name not in faster:
                continue  # no number rests on it
            gaps = [
                there - end
                for run in records.of_length(found.compared, arm.name, found.claim.fields.budget)
                if (there := records.undecayed(run, steps)) is not None and (end := ends.get(run.plan.seed)) is not None
            ]
            if gaps:
                gap = sum(gaps) / len(gaps)
                closest = min(closest, gap)
                problems += [f"{arm.label} at {fraction:g} T: {-gap:+.3f} nats"] if gap <= 0 else []
    if closest == math.inf:
        return Check("R5b", label, wanted, "not known", None, "no shorter runs were evaluated there")
    value = "; ".join(problems) or f"all below, by {closest:.3f} nats or more"
    return Check("R5b", label, wanted, value, not problems)


def _bigram(found: Comparison[Any], bigram: tuple[float, int] | None) -> Check:
    label, wanted = (
        "the baseline beyond a table of pairs",
        f"{UNDER_BIGRAM:g} nats under a bigram table of the tokens seen",
    )
    losses = records.losses(found.compared, found.claim.baseline.name, found.claim.fields.budget).values()
    known = [loss for loss in losses if loss is not None]
    if bigram is None or not known:
        return Check("R7", label, wanted, "not known", None, "the data set is not here")
    mean = sum(known) / len(known)
    value = f"{mean:.3f} against {bigram[0]:.3f} (table of {bigram[1]:,} tokens)"
    return Check("R7", label, wanted, value, mean <= bigram[0] - UNDER_BIGRAM)


def _tokens(claim: Claim[TrainingFields], tokens: int | None) -> Check:
    from reproduce.sizes import sizes  # torch comes with it

    n_parameters, per_step = sizes(claim)
    seen = per_step * claim.fields.budget
    ratio = seen / n_parameters
    value = f"{numbers.told_from(TOKENS_PER_PARAMETER, ratio, 1)} tokens a parameter"
    epochs = None if tokens is None else seen / tokens
    value += "" if epochs is None else f", {numbers.told_from(EPOCHS, epochs, 2)} epochs"
    wanted = f"at least {TOKENS_PER_PARAMETER} tokens per parameter of the blocks, at most {EPOCHS} epochs"
    return Check("R8", "length", wanted, value, ratio >= TOKENS_PER_PARAMETER and (epochs is None or epochs <= EPOCHS))


def _counts(found: Comparison[Any], evidence: Evidence) -> Check | None:
    if not evidence.counts:
        return None
    budget = found.claim.fields.budget
    warm_ups = {name: warm_up_steps(found.claim, tuning) for name, tuning in _tunings(found).items()}
    name = max(warm_ups, key=warm_ups.__getitem__)
    first = steps_of(found.claim, QUARTER)
    value = f"from step {first:,} of {budget:,}; {found.claim.arm(name).label} warms up for {warm_ups[name]}"
    return Check(
        "R9", "counts begin after the start", "after warm-up and the first quarter", value, warm_ups[name] <= first
    )


def _batch(claim: Claim[TrainingFields], second: tuple[str, float] | None, verdict: str) -> Check:
    from reproduce.sizes import sizes

    label, wanted = (
        "a second batch size",
        f"the same verdict, where the paper's batch is over {LARGER_BATCH} times ours",
    )
    paper = claim.fields.paper_batch_tokens
    times = None if paper is None else paper / sizes(claim)[1]
    if times is not None and times <= LARGER_BATCH:
        return Check(
            "R10", label, wanted, f"the paper's is {numbers.told_from(LARGER_BATCH, times, 1)} times ours", True
        )
    if second is None:
        theirs = "the claim's file does not say the paper's"
        if times is not None:
            theirs = f"the paper's is {numbers.told_from(LARGER_BATCH, times, 0)} times ours"
        return Check("R10", label, wanted, f"not run; {theirs}", None)
    other, factor = second
    value = f"{other} with {factor:g} times the batch"
    says = {other, verdict}.isdisjoint((UNDECIDED, OUT_OF_REGIME))
    return Check("R10", label, wanted, value, other == verdict if says else None, "" if says else "nothing to compare")


def _power(power: float | None) -> Check | None:
    if power is None:
        return None
    wanted, value = f"with probability {POWER:g} or more", numbers.told_from(POWER, power, 2)
    return Check("R11", "a true claim would be reproduced", wanted, value, power >= POWER)
