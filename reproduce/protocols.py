"""Which runs a protocol wants next, given those that are done, and what it compares in the end; it runs nothing.

A protocol is asked again and again until it wants no more. The same outcomes give the same answer, so nothing about a
plan is ever stored. Runs with the same configuration are one run, whatever claim, protocol or purpose wants them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from reproduce.arms import Point
from reproduce.claim import Claim, F
from reproduce.plans import Planned, unique
from reproduce.records import Ratios, Recorded
from reproduce.tuner import Outcomes, Tuning

Points = Mapping[str, Point]  # arm -> hyperparameters


@dataclass(frozen=True)
class Plan:
    """All that a protocol says, as far as the outcomes allow.

    tunings: how far each arm's has come. points: what the arms are compared with, None while that is being found out.
    comparison: the runs that are compared, none while points is None. besides: runs beside them, for checks.
    """

    points: Points | None
    comparison: list[Planned]
    besides: list[Planned] = field(default_factory=list)
    tunings: Mapping[str, Tuning] = field(default_factory=dict)

    @property
    def tuning(self) -> list[Planned]:
        """The runs that choose hyperparameters."""
        return [run for tuning in self.tunings.values() for run in tuning.runs]


@dataclass(frozen=True)
class Protocol(ABC, Generic[F]):
    """A way to test a claim by training."""

    claim: Claim[F]
    name: str  # of its runs and results, for people

    @property
    @abstractmethod
    def description(self) -> str:
        """For the report."""

    @abstractmethod
    def plan(self, outcomes: Outcomes) -> Plan:
        """What it wants and compares, given what is known."""

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """The runs wanted now that are not among the outcomes; empty when the protocol is through.

        A run that branches from another waits for it.
        """
        plan = self.plan(outcomes)
        wanted = waiting(plan.tuning, outcomes) or waiting([*plan.comparison, *plan.besides], outcomes)
        return [run for run in wanted if run.trunk is None or run.trunk.config_hash in outcomes]

    def comparison(self, runs: Sequence[Recorded], ratios: Ratios) -> "Comparison[F]":
        """What it compares, of runs that are all there; ratios: see Comparison."""
        plan = self.plan({run.plan.config_hash: run.record.loss for run in runs})
        records = {run.plan.config_hash: run.record for run in runs}
        tuned, compared, besides = (
            [Recorded(run, records[run.config_hash]) for run in some if run.config_hash in records]
            for some in (plan.tuning, plan.comparison, plan.besides)
        )
        return Comparison(self.claim, self, plan.tunings, tuned, plan.points or {}, compared, besides, ratios)


@dataclass(frozen=True)
class Comparison(Generic[F]):
    """What a protocol concludes when its runs have ended.

    tuned: the runs that chose the hyperparameters, as tunings say. points: what they chose, by arm. compared: the runs
    that are compared. besides: runs beside them. ratios: step times beside a baseline's; a pair that is missing has no
    numbers in seconds.
    """

    claim: Claim[F]
    protocol: Protocol[F]
    tunings: Mapping[str, Tuning]
    tuned: Sequence[Recorded]
    points: Points
    compared: Sequence[Recorded]
    besides: Sequence[Recorded]
    ratios: Ratios

    def tuned_at_point(self, arm: str) -> list[Recorded]:
        """The runs of an arm's tuning at the point that it chose."""
        hashes = {run.config_hash for run in self.tunings[arm].at_point} if arm in self.tunings else set()
        return [run for run in self.tuned if run.plan.config_hash in hashes]


def of(claim: Claim[Any]) -> list[Protocol[Any]]:
    """The protocols of a claim, the one that its verdict follows last; none for a claim that trains nothing."""
    return claim.kind.protocols(claim)


def next_runs(protocols: Sequence[Protocol[Any]], outcomes: Outcomes) -> list[Planned]:
    """What all protocols want next, runs of the same configuration once."""
    return unique([run for protocol in protocols for run in protocol.next_runs(outcomes)])


def expected(protocols: Sequence[Protocol[Any]], known: Outcomes | None = None) -> list[Planned]:
    """All runs there will be, beside the known, if tuning starts at its optimum: of each axis it and both neighbours.

    An optimum elsewhere takes as many more as it is doublings away.
    """
    outcomes = dict(known or {})
    worst = max((loss for loss in outcomes.values() if loss is not None), default=0.0)
    runs: list[Planned] = []
    while batch := next_runs(protocols, outcomes):
        losses = {run.config_hash: worst + len(outcomes) + n for n, run in enumerate(batch, 1)}
        runs += batch
        outcomes |= losses
    return runs


def waiting(runs: Sequence[Planned], outcomes: Outcomes) -> list[Planned]:
    """The runs that are not among the outcomes."""
    return [run for run in runs if run.config_hash not in outcomes]
