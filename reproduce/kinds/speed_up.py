"""A claim that one optimizer reaches another's loss with less: fewer steps, FLOPs or seconds.

Judged are the parts that the claim names of every comparison, each by itself; all must hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from typing_extensions import override

from inference.curves import SpeedUp as Found
from inference.intervals import Interval, divided, gap_closed
from inference.power import power
from report.results import Axis, Figure, Measure
from reproduce import exhibits, records, speed_ups
from reproduce.arms import ArmSpec, Point
from reproduce.claim import Claim
from reproduce.evidence import Evidence
from reproduce.fields import limited, nearest
from reproduce.judging import Expected, PartFields, check_arms_exist, check_part, difference, judged, part
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError, Mistakes
from reproduce.plans import plan
from reproduce.protocols import Comparison, Plan, Protocol
from reproduce.records import Losses, Ratios, Recorded
from reproduce.training import FULL, HALF, TrainingFields, check_training, steps_of
from reproduce.tuned import NAME, Tuned
from reproduce.tuner import Outcomes

PAPER = "paper"
TIMING_ROUNDS = 7  # of every arm, interleaved, and more until the ratios are known
NO_EFFECT = {"steps": 1.0, "flops": 1.0, "seconds": 1.0}  # of what a comparison may claim
WORDS = {"steps": "steps", "flops": "FLOPs", "seconds": "seconds"}


@dataclass
class Pair:
    """A row of `comparisons`. claims: keys of NO_EFFECT. half_budget: the paper's own test, 1 if it holds exactly."""

    candidate: str
    baseline: str
    claims: dict[str, PartFields] = field(default_factory=dict)
    half_budget: PartFields | None = None


@dataclass
class SpeedUpFields(TrainingFields):
    """The fields of a claim file; paper_schedule: overrides of runs by the paper's own protocol."""

    protocols: list[str] = limited()
    comparisons: list[Pair] = limited()
    timing_steps: int = limited(least=1)  # of a block; a multiple of what the optimizers do every so many steps
    paper_schedule: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Paper(Protocol[SpeedUpFields]):
    """The paper's own hyperparameters and definition: nothing is tuned."""

    name: str = PAPER

    @property
    @override
    def description(self) -> str:
        return "the paper's hyperparameters and schedule, and its definition of twice as fast: T/2 steps against T"

    @override
    def plan(self, outcomes: Outcomes) -> Plan:
        claim, fields = self.claim, self.claim.fields
        points: dict[str, Point] = {arm.name: arm.paper for arm in claim.arms}
        runs = [
            plan(claim, arm, self.name, purpose, seed, steps_of(claim, fraction), arm.paper, schedule=self._schedule)
            for arm in claim.arms
            for fraction, purpose in ((HALF, "half budget"), (FULL, "full budget"))
            for seed in fields.seeds
        ]
        return Plan(points, runs)

    @property
    def _schedule(self) -> Point:
        return tuple(self.claim.fields.paper_schedule)


PROTOCOLS: dict[str, Callable[[Claim[SpeedUpFields]], Protocol[SpeedUpFields]]] = {PAPER: Paper, NAME: Tuned}


class SpeedUp(Kind[SpeedUpFields]):
    """See the module."""

    Fields = SpeedUpFields

    @override
    def check(self, claim: Claim[SpeedUpFields]) -> None:
        mistakes = Mistakes()
        for check in (check_training, _check_protocols, _check_comparisons):
            with mistakes.collected():
                check(claim)
        mistakes.raise_all()

    @override
    def protocols(self, claim: Claim[SpeedUpFields]) -> list[Protocol[SpeedUpFields]]:
        return [PROTOCOLS[name](claim) for name in claim.fields.protocols]

    @override
    def time_arms(self, claim: Claim[SpeedUpFields]) -> Ratios:
        from reproduce import timing  # torch and train.py come with it

        return timing.ratios(claim, rounds=TIMING_ROUNDS, steps=claim.fields.timing_steps)

    @override
    def power(self, found: Comparison[SpeedUpFields], evidence: Evidence) -> float | None:
        fitted = {(candidate, baseline): each for candidate, baseline, each in evidence.speed_ups}
        rows = found.claim.fields.comparisons
        contests = [_Contest.of(found, row, fitted.get((row.candidate, row.baseline))) for row in rows]
        return min((each for contest in contests for each in _power(contest)), default=None)

    @override
    def arms_of_parts(self, claim: Claim[SpeedUpFields]) -> set[str]:
        rows = [row for row in claim.fields.comparisons if row.claims or row.half_budget]
        return {name for row in rows for name in (row.candidate, row.baseline)} | {claim.baseline.name}

    @override
    def conclude(self, found: Comparison[SpeedUpFields]) -> Evidence:
        contests = [
            _Contest.of(found, row, speed_ups.speed_up(found, row.candidate, row.baseline))
            for row in found.claim.fields.comparisons
        ]
        lengths = [steps_of(found.claim, HALF), steps_of(found.claim, FULL)]
        fitted = [(each, each.speed_up) for each in contests if each.speed_up is not None]
        return Evidence(
            measures=[measure for contest in contests for measure in _measures(contest)],
            figures=[*_speed_ups_figure(found, fitted), _lengths_figure(found), exhibits.curves_figure(found, lengths)],
            tables=[
                *([speed_ups.fits_table([(each.name, speed_up) for each, speed_up in fitted])] if fitted else []),
                *exhibits.tuning_tables(found),
            ],
            speed_ups=[(each.candidate.name, each.baseline.name, speed_up) for each, speed_up in fitted],
        )


def _check_protocols(claim: Claim[SpeedUpFields]) -> None:
    fields = claim.fields
    if not fields.protocols:
        raise ClaimError(f"field 'protocols' must name one or more of {', '.join(PROTOCOLS)}")
    for protocol in fields.protocols:
        if protocol not in PROTOCOLS:
            raise ClaimError(f"protocol {protocol!r} does not exist; {nearest(protocol, list(PROTOCOLS))}")
    if PAPER in fields.protocols:
        if not fields.paper_schedule:
            raise ClaimError("field 'paper_schedule' is missing: overrides such as [schedule=cosine]")
        if without := [arm.name for arm in claim.arms if not arm.paper]:
            raise ClaimError(
                *(f"arm {name}: field 'paper' is missing: the paper's hyperparameters" for name in without)
            )


def _check_what_is_judged(claim: Claim[SpeedUpFields]) -> None:
    """Raises: ClaimError: if the protocol that decides would judge nothing."""
    rows, last = claim.fields.comparisons, next(reversed(claim.fields.protocols), "")
    judged_by = {NAME: [row for row in rows if row.claims], PAPER: [row for row in rows if row.half_budget]}
    if last in judged_by and not judged_by[last]:
        field_ = "half_budget" if last == PAPER else "claims"
        raise ClaimError(f"comparisons: no row has {field_}, so that the protocol {last!r} would judge nothing")


def _check_comparisons(claim: Claim[SpeedUpFields]) -> None:
    if not claim.fields.comparisons:
        raise ClaimError("comparisons must list one or more rows")
    mistakes = Mistakes()
    for row in claim.fields.comparisons:
        with mistakes.collected():
            check_arms_exist(claim, "comparisons", row.candidate, row.baseline)
        with mistakes.collected():
            where = f"comparisons: {row.candidate} against {row.baseline}"
            for key, fields in row.claims.items():
                with mistakes.collected(f"{where}: "):
                    _check_part(key, fields)
            if row.half_budget is not None:
                check_part(f"{where}: half_budget", row.half_budget, 0.0, log_scale=False)
    mistakes.raise_all()
    _check_what_is_judged(claim)


def _check_part(key: str, fields: PartFields) -> None:
    if key not in NO_EFFECT:
        raise ClaimError(f"there is no rule for a part in {key!r}; {nearest(key, [*NO_EFFECT])}")
    check_part(key, fields, NO_EFFECT[key], log_scale=True)


class _Contest(NamedTuple):
    """Two arms, what is claimed of them, and the runs of the comparison."""

    found: Comparison[SpeedUpFields]
    candidate: ArmSpec
    baseline: ArmSpec
    row: Pair
    speed_up: Found | None  # in steps; None: too few lengths

    @classmethod
    def of(cls, found: Comparison[SpeedUpFields], row: Pair, speed_up: Found | None) -> "_Contest":
        """The contest of a row of `comparisons`."""
        return cls(found, found.claim.arm(row.candidate), found.claim.arm(row.baseline), row, speed_up)

    @property
    def name(self) -> str:
        """Part of its measures' labels."""
        return f"{self.candidate.label} against {self.baseline.label}"

    @property
    def runs(self) -> Sequence[Recorded]:
        """Those that are compared."""
        return self.found.compared

    @property
    def is_papers(self) -> bool:
        """Whether this is the paper's protocol, of which the half-budget test alone is a part of the claim."""
        return self.found.protocol.name == PAPER

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.found.claim.fields.seeds)

    @property
    def seconds(self) -> Interval | None:
        """Seconds of a step of the candidate, over those of the baseline."""
        return self.found.ratios.get((self.candidate.name, self.baseline.name))

    @property
    def flops(self) -> float | None:
        """FLOPs of a step of the candidate, over those of the baseline."""
        arms = self.candidate, self.baseline
        candidate, baseline = (records.flops_per_step(self.runs, arm.name) for arm in arms)
        return candidate / baseline if candidate and baseline else None

    @property
    def costs(self) -> Mapping[str, Interval | None]:
        """What a step of the candidate costs beside one of the baseline, by key of NO_EFFECT; None: not known."""
        flops = self.flops
        exact = None if flops is None else Interval(flops, flops, flops)
        return {"steps": Interval(1.0, 1.0, 1.0), "flops": exact, "seconds": self.seconds}

    def losses(self, arm: ArmSpec, fraction: float) -> Losses:
        """Final losses at that share of the budget, by seed."""
        return records.losses(self.runs, arm.name, steps_of(self.found.claim, fraction))


def _power(contest: _Contest) -> list[float]:
    """Of every part: P(reproduced if true), as well as the costs of a step are known."""
    if contest.speed_up is None or not contest.row.claims:
        return []
    ours, theirs = contest.speed_up.candidate, contest.speed_up.baseline
    if theirs.curve is None or ours.spread is None or theirs.spread is None:
        return []
    shares, found = contest.found.claim.fields.fractions, []
    for key, fields in contest.row.claims.items():
        if (cost := contest.costs[key]) is not None:
            bounds = part(fields, NO_EFFECT[key], log_scale=True).bounds
            limits = {name: value for name, value in bounds.items() if name != "log_scale"}
            chance = power(
                theirs.curve, ours.spread, theirs.spread, shares=shares, seeds=contest.n, cost=cost, **limits
            )
            found.append(chance)
    return found


def _measures(contest: _Contest) -> list[Measure]:
    """The speed-ups, the half-budget test, and the losses at equal cost."""
    rows = [*_speed_ups(contest), *_gap(contest), *_equal_cost(contest)]
    for key, label, cost in (
        ("flops_overhead", "FLOPs per step", contest.costs["flops"]),
        ("step_time", "seconds per step", contest.seconds),
    ):
        if cost is not None:
            rows.append(judged(key, f"{label}, {contest.name}", "x", cost, Expected(None, 1.0)))
    return rows


def _speed_ups(contest: _Contest) -> list[Measure]:
    """In steps, FLOPs and seconds. Without a curve, for which there are too few lengths, a part is not measured."""
    rows: list[Measure] = []
    for key, cost in contest.costs.items():
        expected = part(contest.row.claims.get(key), NO_EFFECT[key], log_scale=True)
        name, label = f"speed_up_{key}", f"speed-up in {WORDS[key]}, {contest.name}"
        if (found := contest.speed_up) is not None:
            interval = None if cost is None else divided(speed_ups.interval(found), cost)
            note = speed_ups.note(found) if cost is not None else f"{WORDS[key]} per step are not known"
            sign = speed_ups.sign(found)
            rows.append(judged(name, label, "x", interval, expected, n=contest.n, note=note, censored=sign))
        elif expected.claimed is not None and not contest.is_papers:
            note = "too few lengths beyond warm-up for a curve"
            rows.append(judged(name, label, "x", None, expected, n=contest.n, note=note))
    return rows


def _gap(contest: _Contest) -> list[Measure]:
    """The half-budget test; it is a part of the claim only in the paper's protocol."""
    half = contest.losses(contest.candidate, HALF)
    if not half or not contest.losses(contest.baseline, HALF):
        return []
    gap = gap_closed(half, contest.losses(contest.baseline, HALF), contest.losses(contest.baseline, FULL))
    ours, theirs = contest.candidate.label, contest.baseline.label
    words = f"half-budget gap closed by {ours} (1: T/2 steps of it equal T of {theirs})"
    expected = part(contest.row.half_budget if contest.is_papers else None, 0.0, log_scale=False)
    return [judged("half_budget_gap", words, "", gap, expected, n=contest.n)]


def _equal_cost(contest: _Contest) -> list[Measure]:
    """Differences in final loss where both arms may spend the same; the dearer step gets fewer of them."""
    rows: list[Measure] = []
    budget = contest.found.claim.fields.budget
    if contest.speed_up is None:
        return rows
    for key, cost in contest.costs.items():
        if cost is None:
            continue
        ours, theirs = budget / max(cost.estimate, 1.0), budget * min(cost.estimate, 1.0)
        candidate = records.losses_at(contest.runs, contest.candidate.name, ours)
        baseline = records.losses_at(contest.runs, contest.baseline.name, theirs)
        label = f"loss difference at equal {WORDS[key]}, {contest.name}"
        rows.append(difference(f"loss_at_equal_{key}", label, candidate, baseline, Expected(None, 0.0)))
    return rows


def _speed_ups_figure(found: Comparison[SpeedUpFields], fitted: Sequence[tuple[_Contest, Found]]) -> list[Figure]:
    """The figure that shows the verdict: of the comparisons with the first one's baseline."""
    from reproduce.sizes import sizes  # torch comes with it

    if not fitted:
        return []
    first = fitted[0][0]
    rows = [(each.candidate.name, each.candidate.label, s) for each, s in fitted if each.baseline is first.baseline]
    claimed = first.row.claims.get("steps")
    return [speed_ups.figure(found.claim, rows, sizes(found.claim)[0], None if claimed is None else claimed.claimed)]


def _lengths_figure(found: Comparison[SpeedUpFields]) -> Figure:
    """Final loss against the number of steps, each point a run with a schedule of its own."""
    claim, protocol = found.claim, found.protocol.name
    series = exhibits.lines(
        found, lambda arm: [point for seed in records.budgets(found.compared, arm).values() for point in seed]
    )
    at_end = records.losses(found.compared, claim.baseline.name, claim.fields.budget)
    level = exhibits.average(list(at_end.values()))
    return Figure(
        f"lengths-{protocol}",
        f"Final loss by length of the run, protocol {protocol}",
        "lines",
        Axis(f"{exhibits.STEPS}, each run with its own full schedule"),
        Axis(exhibits.LOSS),
        series,
        caption="Mean over seeds, and the extremes. A candidate meets the dashed line at T over its speed-up.",
        hline=level,
        hline_label=f"{claim.baseline.label}, {claim.fields.budget:,} steps" if level is not None else "",
    )
