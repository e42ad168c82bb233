"""A claim of a speed-up: how much less of the budget a candidate needs for its baseline's loss.

Two protocols, the paper's settings and equal tuning; in both the baseline runs for T, and candidates for shares of T,
each run with a full schedule of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from typing_extensions import override

from report.results import Axis, Figure, Measure
from reproduce import exhibits, records, statistics
from reproduce.claim import ArmSpec, Claim, Point
from reproduce.evidence import Evidence
from reproduce.fields import ClaimError, limited, nearest
from reproduce.judging import Expected, check_arms_exist, difference, judged
from reproduce.kind import Kind
from reproduce.plans import Planned, plan
from reproduce.protocols import Comparison, Outcomes, Plan, Points, Protocol, best, waiting
from reproduce.records import Losses, Ratios, Recorded
from reproduce.statistics import Interval
from reproduce.training import TrainingFields, check_training, steps_of

FULL, HALF = 1.0, 0.5  # shares of T
NO_EFFECT = {"steps": 1.0, "flops": 1.0, "seconds": 1.0, "gap": 0.0}  # of what a comparison may claim
TIMING_ROUNDS = 7  # of every arm, interleaved
FEWEST_BUDGETS = 4  # for a curve


@dataclass
class Round:
    """A round of tuning: runs every remaining point of an arm for a fraction of T, and keeps the best."""

    fraction: float = limited(above=0, most=1)
    keep: int = limited(least=1)


@dataclass
class Pair:
    """A row of `comparisons`. claimed: keys of NO_EFFECT. fractions: by protocol, in place of the claim's."""

    candidate: str
    baseline: str
    claimed: dict[str, float]
    fractions: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class SpeedUpFields(TrainingFields):
    """fractions: of T, by protocol, what candidates are run for. untuned: why the paper's settings get no verdict."""

    protocols: list[str] = limited()
    fractions: dict[str, list[float]] = limited()
    halving: list[Round] = limited()
    comparisons: list[Pair] = limited()
    timing_steps: int = limited(least=1)  # of a block; a multiple of what the optimizers do every so many steps
    untuned: str = ""


@dataclass(frozen=True)
class Paper(Protocol[SpeedUpFields]):
    """The paper's own hyperparameters and definition: nothing is tuned."""

    name: ClassVar[str] = "paper"

    @property
    @override
    def description(self) -> str:
        words, untuned = "the paper's hyperparameters and its own definition of a speed-up", self.claim.fields.untuned
        return f"{words}; untuned: {untuned}" if untuned else words

    @property
    @override
    def no_verdict(self) -> str:
        return "untuned, so no verdict" if self.claim.fields.untuned else ""

    @override
    def plan(self, outcomes: Outcomes) -> Plan:
        points = {arm.name: [arm.paper] for arm in self.claim.arms}
        return Plan([], points, _compared(self.claim, self.name, points))


@dataclass(frozen=True)
class Tuned(Protocol[SpeedUpFields]):
    """Equal tuning for every arm by successive halving of its grid, then a comparison with seeds that it never saw."""

    name: ClassVar[str] = "tuned"

    @property
    @override
    def description(self) -> str:
        n, start = len(self.claim.arms[0].grid), ""
        for each in self.claim.fields.halving:
            start += f"{n} points at {each.fraction:g} T, "
            n = each.keep
        return (
            f"the same recorded tuning for every arm ({start}best {n}, seed {self.claim.fields.tuning_seed}), then "
            "the comparison with fresh seeds"
        )

    @override
    def plan(self, outcomes: Outcomes) -> Plan:
        claim, tuning = self.claim, list[Planned]()
        survivors: dict[str, list[Point]] = {arm.name: list(arm.grid) for arm in claim.arms}
        for n, each in enumerate(claim.fields.halving, 1):
            steps, seed = steps_of(claim, each.fraction), claim.fields.tuning_seed
            batch = [
                plan(claim, arm, self.name, f"tuning, round {n}", seed, steps, point)
                for arm in claim.arms
                for point in survivors[arm.name]
            ]
            tuning += batch
            if waiting(batch, outcomes):  # the next round is known once this one is through
                return Plan(tuning, None, [])
            survivors = best(batch, outcomes, each.keep)
        return Plan(tuning, survivors, _compared(claim, self.name, survivors))


PROTOCOLS: dict[str, type[Protocol[SpeedUpFields]]] = {each.name: each for each in (Paper, Tuned)}


class SpeedUp(Kind[SpeedUpFields]):
    """The verdict follows the first number of the first comparison that the paper makes a claim about."""

    Fields = SpeedUpFields

    @override
    def check(self, claim: Claim[SpeedUpFields]) -> None:
        check_training(claim)
        _check_protocols(claim)
        for row in claim.fields.comparisons:
            _check_pair(claim, row)
        if Tuned.name in claim.fields.protocols:
            _check_tuning(claim)

    @override
    def protocols(self, claim: Claim[SpeedUpFields]) -> list[Protocol[SpeedUpFields]]:
        return [PROTOCOLS[name](claim) for name in claim.fields.protocols]

    @override
    def time_arms(self, claim: Claim[SpeedUpFields]) -> Ratios:
        from reproduce import timing  # torch and train.py come with it

        return timing.ratios(claim, rounds=TIMING_ROUNDS, steps=claim.fields.timing_steps)

    @override
    def conclude(self, found: Comparison[SpeedUpFields]) -> Evidence:
        claim = found.claim
        contests = [
            _Contest(found, claim.arm(row.candidate), claim.arm(row.baseline), row.claimed)
            for row in claim.fields.comparisons
        ]
        lengths = [steps_of(claim, HALF), steps_of(claim, FULL)]
        return Evidence(
            measures=[measure for contest in contests for measure in _measures(contest)],
            figures=[exhibits.curves_figure(found, lengths), _budgets_figure(found)],
            tables=exhibits.tuning_tables(found),
        )

    @override
    def deciding(self, judged: Sequence[Measure]) -> Sequence[Measure]:
        return judged[:1]


def _check_protocols(claim: Claim[SpeedUpFields]) -> None:
    fields = claim.fields
    if not fields.protocols:
        raise ClaimError(f"field 'protocols' must name one or more of {', '.join(PROTOCOLS)}")
    for protocol in fields.protocols:
        if protocol not in PROTOCOLS:
            raise ClaimError(f"protocol {protocol!r} does not exist; {nearest(protocol, list(PROTOCOLS))}")
        _check_fractions(fields.fractions.get(protocol), f"fractions.{protocol}")
    if Paper.name in fields.protocols and (without := [arm.name for arm in claim.arms if not arm.paper]):
        raise ClaimError(f"arm {without[0]}: field 'paper' is missing: the paper's hyperparameters")
    if not fields.comparisons:
        raise ClaimError("comparisons must list one or more rows")


def _check_pair(claim: Claim[SpeedUpFields], row: Pair) -> None:
    check_arms_exist(claim, "comparisons", row.candidate, row.baseline)
    for protocol, fractions in row.fractions.items():
        _check_fractions(fractions, f"comparisons: fractions.{protocol}")
    for key, value in row.claimed.items():
        if key not in NO_EFFECT:
            raise ClaimError(f"comparisons: nothing can be claimed of {key!r}; {nearest(key, [*NO_EFFECT])}")
        if value == NO_EFFECT[key]:
            raise ClaimError(f"comparisons: claimed.{key}={value:g} must be a number, and not no effect")


def _check_fractions(fractions: Sequence[float] | None, field: str) -> None:
    if not fractions or not all(0 < each <= 1 for each in fractions):
        raise ClaimError(f"{field} must list the candidate's budgets, each in (0, 1]")


def _check_tuning(claim: Claim[SpeedUpFields]) -> None:
    sizes = {arm.name: len(arm.grid) for arm in claim.arms}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ClaimError(f"every arm needs a grid of the same size, for equal tuning; they have {sizes}")
    if not claim.fields.halving or claim.fields.halving[-1].keep != 1:
        raise ClaimError("the last round of halving must keep 1")


def _compared(claim: Claim[SpeedUpFields], protocol: str, points: Points) -> list[Planned]:
    """Baselines at T, and at T/2 for the half-budget test; candidates at the fractions of T, or their comparison's."""
    runs = []
    for arm in claim.arms:
        wanted: set[float] = set()
        for row in claim.fields.comparisons:
            if arm.name == row.baseline:
                wanted |= {HALF, FULL} if "gap" in row.claimed else {FULL}
            if arm.name == row.candidate:
                wanted |= set(row.fractions.get(protocol) or claim.fields.fractions[protocol])
        (point,) = points[arm.name]
        for fraction in sorted(wanted):
            purpose, steps = (
                {FULL: "full budget", HALF: "half budget"}.get(fraction, "curve"),
                steps_of(claim, fraction),
            )
            runs += [plan(claim, arm, protocol, purpose, seed, steps, point) for seed in claim.fields.seeds]
    return runs


class _Contest(NamedTuple):
    """Two arms, what is claimed of them, and the runs of the comparison."""

    found: Comparison[SpeedUpFields]
    candidate: ArmSpec
    baseline: ArmSpec
    claimed: Mapping[str, float]

    @property
    def name(self) -> str:
        """Part of its measures' labels."""
        return f"{self.candidate.label} beside {self.baseline.label}"

    @property
    def runs(self) -> Sequence[Recorded]:
        """Those that are compared."""
        return self.found.compared

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
    def budgets(self) -> Mapping[int, Sequence[tuple[float, float | None]]]:
        """The candidate's, with their losses, by seed."""
        return records.budgets(self.runs, self.candidate.name)

    def losses(self, arm: ArmSpec, fraction: float) -> Losses:
        """Final losses at that share of the budget, by seed."""
        return records.losses(self.runs, arm.name, steps_of(self.found.claim, fraction))


def _measures(contest: _Contest) -> list[Measure]:
    """The speed-ups, the half-budget test, and the losses at equal cost."""
    rows = [*_speed_ups(contest), *_gap(contest), *_equal_cost(contest)]
    if (cost := contest.flops) is not None:
        words, interval = f"FLOPs per step, {contest.name}", Interval(cost, cost, cost)
        rows.append(judged("flops_overhead", words, "x", interval, Expected(None, 1.0)))
    if (ratio := contest.seconds) is not None:
        rows.append(judged("step_time", f"seconds per step, {contest.name}", "x", ratio, Expected(None, 1.0)))
    return rows


def _speed_ups(contest: _Contest) -> list[Measure]:
    """In steps, FLOPs and seconds; none where the protocol has too few budgets for a curve."""
    if min((len(points) for points in contest.budgets.values()), default=0) < FEWEST_BUDGETS:
        return []
    candidate, baseline, budget = contest.candidate.label, contest.baseline.label, contest.found.claim.fields.budget
    in_steps = statistics.budget_ratio(contest.budgets, contest.losses(contest.baseline, FULL), budget)
    unreached = f"0: {candidate}'s curve, as fitted, never comes to {baseline}'s final loss"
    note = "; ".join(filter(None, (unreached if in_steps.estimate == 0 else "", _divergence_note(contest))))
    cost, rows = contest.flops, []
    for key, label, factor in (
        ("steps", "steps", Interval(1.0, 1.0, 1.0)),
        ("flops", "FLOPs", None if cost is None else Interval(cost, cost, cost)),
        ("seconds", "seconds", contest.seconds),
    ):
        expected = Expected(contest.claimed.get(key), NO_EFFECT[key], log_scale=True)
        words = f"{candidate}'s speed-up in {label} over {baseline} (fitted curve)"
        interval = statistics.divided(in_steps, factor)
        rows.append(judged(f"speed_up_{key}", words, "x", interval, expected, n=contest.n, note=note))
    return rows


def _gap(contest: _Contest) -> list[Measure]:
    """The half-budget test; none where the protocol does not run both arms for T/2."""
    candidate, baseline = contest.losses(contest.candidate, HALF), contest.losses(contest.baseline, HALF)
    if not candidate or not baseline:
        return []
    gap = statistics.gap_closed(candidate, baseline, contest.losses(contest.baseline, FULL))
    ours, theirs = contest.candidate.label, contest.baseline.label
    words = f"half-budget gap closed by {ours} (1: T/2 steps of it equal T of {theirs})"
    expected = Expected(contest.claimed.get("gap"), NO_EFFECT["gap"])
    return [judged("half_budget_gap", words, "", gap, expected, n=contest.n, note=_divergence_note(contest))]


def _equal_cost(contest: _Contest) -> list[Measure]:
    """Differences in final loss where the candidate may spend what the baseline spends over T."""
    rows: list[Measure] = []
    fields = contest.found.claim.fields
    if len(contest.budgets.get(fields.seeds[0], [])) < 2:
        return rows
    baseline, ratio = contest.losses(contest.baseline, FULL), contest.seconds
    for name, cost in (("steps", 1.0), ("FLOPs", contest.flops), ("seconds", ratio.estimate if ratio else None)):
        if cost is None:
            continue
        label = f"loss difference at equal {name}, {contest.name}"
        candidate = records.losses_at(contest.runs, contest.candidate.name, fields.budget / max(cost, 1.0))
        rows.append(difference(f"loss_at_equal_{name.lower()}", label, candidate, baseline, Expected(None, 0.0)))
    return rows


def _divergence_note(contest: _Contest) -> str:
    counts = {
        arm.label: sum(run.record.status == "diverged" for run in contest.runs if run.plan.arm == arm.name)
        for arm in (contest.candidate, contest.baseline)
    }
    return ", ".join(f"{count} diverged runs of {label} count as failures" for label, count in counts.items() if count)


def _budgets_figure(found: Comparison[SpeedUpFields]) -> Figure:
    """Final loss against the number of steps, each point a run with its own schedule."""
    claim, protocol = found.claim, found.protocol.name
    series = []
    for arm in claim.arms:
        points = [point for seed in records.budgets(found.compared, arm.name).values() for point in seed]
        line = exhibits.points_series(arm.label, arm.name, points)
        series += [line] if line.x else []
    at_end = records.losses(found.compared, claim.baseline.name, claim.fields.budget)
    level = exhibits.average(list(at_end.values()))
    return Figure(
        f"budgets-{protocol}",
        f"Final loss by length of the run, protocol {protocol}",
        "lines",
        Axis(f"{exhibits.STEPS}, each run with its own full schedule"),
        Axis(exhibits.LOSS),
        series,
        caption="Mean over seeds, and the extremes. A candidate as fast as claimed meets the dashed line left of T.",
        hline=level,
        hline_label=f"{claim.baseline.label}, {claim.fields.budget:,} steps" if level is not None else "",
    )
