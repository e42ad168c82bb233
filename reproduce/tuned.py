"""Equal tuning of every arm, and the runs that any claim compares after it, whatever its kind.

After tuning (tuner.py), with seeds that tuning never saw:
    comparison    every arm over T, and over the shorter lengths as branches of it
    besides       the baseline's usual settings over T, for what tuning alone gave; every arm over T with a cosine
                  schedule, one seed, as a check on the schedule
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from typing_extensions import override

from reproduce.arms import ArmSpec, Coordinates, Point
from reproduce.claim import Claim
from reproduce.plans import COSINE, Planned, plan, trunk_and_branches
from reproduce.protocols import Plan, Points, Protocol
from reproduce.training import WARM_UP, T
from reproduce.tuner import Outcomes, Tuning, tune

NAME = "tuned"
COSINE_CHECK, USUAL, TUNING = "cosine check", "usual settings", "tuning"


@dataclass(frozen=True)
class Tuned(Protocol[T]):
    """Equal tuning for every arm, then a comparison with seeds that it never saw."""

    name: str = NAME

    @property
    @override
    def description(self) -> str:
        fields = self.claim.fields
        axes = f"{fields.tuned_axes} hyperparameter{'s' if fields.tuned_axes > 1 else ''}"
        return (
            f"every arm tuned alike (bracket and vertex over {axes} at {fields.budget:,} steps, seeds "
            f"{fields.tuning_seeds}), then compared with seeds {fields.seeds} over "
            f"{len(fields.fractions)} lengths, less those that end in an arm's warm-up, branches of one run"
        )

    @override
    def plan(self, outcomes: Outcomes) -> Plan:
        arms = Arms(self.claim, self.name)
        tunings = arms.tunings(outcomes)
        points = arms.points(tunings)
        if points is None:
            return Plan(None, [], tunings=tunings)
        besides = [*self.more(points, tunings), *arms.besides(points)]
        return Plan(points, arms.compared(points, tunings), besides, tunings)

    def more(self, points: Points, tunings: dict[str, Tuning]) -> list[Planned]:
        """Further runs that a kind of claim wants of tuned arms."""
        return []


@dataclass(frozen=True)
class Arms(Generic[T]):
    """The arms of a claim on their way from tuning to comparison; protocol: whose runs they are."""

    claim: Claim[T]
    protocol: str

    def tunings(self, outcomes: Outcomes) -> dict[str, Tuning]:
        """How far the tuning of each arm has come; one that is not tuned is at its point."""
        return {arm.name: self._tuning(arm, outcomes) for arm in self.claim.arms}

    def points(self, tunings: dict[str, Tuning]) -> Points | None:
        """The overrides that tuning chose, by arm; None until it has for all."""
        found = {arm.name: self._point(arm, tunings[arm.name].point) for arm in self.claim.arms}
        return None if any(point is None for point in found.values()) else found  # type: ignore[return-value]  # none is None

    def compared(self, points: Points, tunings: dict[str, Tuning]) -> list[Planned]:
        """Every arm over T and the shorter lengths, with the seeds of the comparison."""
        fields = self.claim.fields
        return [
            run
            for arm in self.claim.arms
            for seed in fields.seeds
            for run in trunk_and_branches(
                self.claim, arm, self.protocol, seed, points[arm.name], warm_up_steps(self.claim, tunings[arm.name])
            )
        ]

    def besides(self, points: Points) -> Iterator[Planned]:
        """The runs for what tuning gave the baseline, and for the schedule."""
        fields, baseline = self.claim.fields, self.claim.baseline
        if baseline.usual:
            for seed in fields.seeds:
                point = (*_start_warm_up(self.claim), *baseline.usual)
                yield plan(self.claim, baseline, self.protocol, USUAL, seed, fields.budget, point)
        for arm in self.claim.arms:
            own = (self.claim, arm, self.protocol, COSINE_CHECK, fields.seeds[0], fields.budget, points[arm.name])
            yield plan(*own, schedule=COSINE)

    def _tuning(self, arm: ArmSpec, outcomes: Outcomes) -> Tuning:
        fields = self.claim.fields
        axes = arm.axes[: fields.tuned_axes]
        if not axes:
            return Tuning([], arm.start)

        def wanted(coordinates: Coordinates, seed: int) -> Planned:
            point = arm.point(coordinates)
            return plan(self.claim, arm, self.protocol, TUNING, seed, fields.budget, point)

        return tune(axes, arm.start, wanted, fields.tuning_seeds, outcomes, fields.worse_by, fields.pays)

    def _point(self, arm: ArmSpec, coordinates: Coordinates | None) -> Point | None:
        if arm.axes:
            return None if coordinates is None else arm.point(coordinates)
        return (*_start_warm_up(self.claim), *arm.fixed)


def warm_up_steps(claim: Claim[T], tuning: Tuning) -> int:
    """The steps of warm-up that tuning chose; those where it starts, if it chose none."""
    return int((tuning.point or {}).get(WARM_UP, claim.fields.warmup_steps))


def _start_warm_up(claim: Claim[T]) -> Point:
    axis = claim.fields.warm_up
    return axis.overrides(axis.start)
