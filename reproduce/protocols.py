"""Which runs a protocol wants next, given those that are done, and what it compares in the end; it runs nothing.

A protocol is asked again and again until it wants no more. The same outcomes give the same answer, so nothing about a
plan is ever stored. Runs with the same configuration are one run, whatever protocol or purpose wants them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

from files.reading import number
from reproduce.claim import Claim, F, Point
from reproduce.plans import Planned
from reproduce.records import Ratios, Recorded

Outcomes = Mapping[str, float | None]  # configuration hash -> final val/loss; None: it diverged
Points = Mapping[str, Sequence[Point]]  # arm -> hyperparameters


class Plan(NamedTuple):
    """All that a protocol says, as far as the outcomes allow.

    tuning: the runs that choose hyperparameters. points: those that each arm is compared with, None while they are
    being chosen. comparison: the runs that are compared, none while points is None.
    """

    tuning: list[Planned]
    points: Points | None
    comparison: list[Planned]


@dataclass(frozen=True)
class Protocol(ABC, Generic[F]):
    """A way to test a claim by training."""

    claim: Claim[F]
    name: ClassVar[str]

    @property
    @abstractmethod
    def description(self) -> str:
        """For the report."""

    @property
    def no_verdict(self) -> str:
        """Why its numbers get no verdict; empty if they do."""
        return ""

    @abstractmethod
    def plan(self, outcomes: Outcomes) -> Plan:
        """What it wants and compares, given what is known."""

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """The runs wanted now that are not among the outcomes; empty when the protocol is through."""
        plan = self.plan(outcomes)
        return waiting(plan.tuning, outcomes) or waiting(plan.comparison, outcomes)

    def comparison(self, runs: Sequence[Recorded], ratios: Ratios) -> "Comparison[F]":
        """What it compares, of runs that are all there; ratios: see Comparison."""
        plan = self.plan({run.plan.config_hash: run.record.loss for run in runs})
        records = {run.plan.config_hash: run.record for run in runs}
        tuned, compared = (
            [Recorded(run, records[run.config_hash]) for run in some if run.config_hash in records]
            for some in (plan.tuning, plan.comparison)
        )
        return Comparison(self.claim, self, tuned, plan.points or {}, compared, ratios)


@dataclass(frozen=True)
class Comparison(Generic[F]):
    """What a protocol concludes when its runs have ended.

    tuned: the runs that chose the hyperparameters. points: what they chose, by arm. compared: the runs that are
    compared. ratios: step times beside a baseline's; a pair that is missing has no numbers in seconds.
    """

    claim: Claim[F]
    protocol: Protocol[F]
    tuned: Sequence[Recorded]
    points: Points
    compared: Sequence[Recorded]
    ratios: Ratios


def of(claim: Claim[Any]) -> list[Protocol[Any]]:
    """The protocols of a claim, the one that its verdict follows last; none for a claim that trains nothing."""
    return claim.kind.protocols(claim)


def next_runs(protocols: Sequence[Protocol[Any]], outcomes: Outcomes) -> list[Planned]:
    """What all protocols want next, runs of the same configuration once."""
    wanted = [run for protocol in protocols for run in protocol.next_runs(outcomes)]
    return list({run.config_hash: run for run in reversed(wanted)}.values())[::-1]


def expected(protocols: Sequence[Protocol[Any]]) -> list[Planned]:
    """All runs there will be, as if each choice fell on the first point: right in number and length.

    A comparison may share less than it says here with what is run before.
    """
    outcomes: dict[str, float | None] = {}
    runs = []
    while batch := next_runs(protocols, outcomes):
        runs += batch
        outcomes |= {run.config_hash: float(len(outcomes)) for run in batch}
    return runs


def waiting(runs: Sequence[Planned], outcomes: Outcomes) -> list[Planned]:
    """The runs that are not among the outcomes."""
    return [run for run in runs if run.config_hash not in outcomes]


def best(batch: Sequence[Planned], outcomes: Outcomes, keep: int) -> dict[str, list[Point]]:
    """The best points of each arm, best first; a diverged run is the worst, the earlier point wins a tie."""
    ranked: dict[str, list[tuple[float, int, Point]]] = {}
    for n, run in enumerate(batch):
        loss = number(outcomes[run.config_hash])
        ranked.setdefault(run.arm, []).append((math.inf if loss is None else loss, n, run.point))
    return {arm: [point for _, _, point in sorted(rows)[:keep]] for arm, rows in ranked.items()}
