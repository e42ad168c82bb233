"""Which runs a protocol wants next, given those that are done; it plans and runs nothing.

A protocol is asked again and again until it wants no more. The same outcomes give the same answer, so nothing about a
plan is ever stored. Runs with the same configuration are one run, whatever protocol or purpose wants them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Structural

from files.reading import number
from reproduce.claims import ArmSpec, Claim, Point, settings_of

Outcomes = Mapping[str, float | None]  # configuration hash -> final val/loss; None: it diverged
WHOLE, HALF = 1.0, 0.5


@dataclass(frozen=True)
class Planned:
    """A run that a protocol wants."""

    name: str  # its folder below runs/
    arm: str
    protocol: str
    purpose: str
    seed: int
    steps: int
    point: Point  # the hyperparameters under test
    overrides: Point  # all of train.py's, run_dir aside
    config_hash: str


class Protocol(Structural):
    """A way to test a claim by training."""

    @property
    def claim(self) -> Claim:
        """Whose protocol it is."""

    @property
    def name(self) -> str:
        """Its key in PROTOCOLS."""

    @property
    def description(self) -> str:
        """For the report."""

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """The runs wanted now that are not among the outcomes; empty when the protocol is through."""

    def points(self, outcomes: Outcomes) -> Mapping[str, list[Point]] | None:
        """The hyperparameters that each arm is compared with; None while they are being chosen."""

    def tuning(self, outcomes: Outcomes) -> list[Planned]:
        """The runs that choose them, as far as they are known."""

    def comparison(self, outcomes: Outcomes) -> list[Planned]:
        """The runs that are compared; empty while the hyperparameters are being chosen."""


@dataclass(frozen=True)
class Fixed:
    """The paper's own hyperparameters and definition: nothing is tuned."""

    claim: Claim
    name: str = "paper"

    @property
    def description(self) -> str:
        """For the report."""
        words = "the paper's hyperparameters and its own definition of a speed-up"
        return f"{words}; untuned: {self.claim.fields['untuned']}" if "untuned" in self.claim.fields else words

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        return _open(self.comparison(outcomes), outcomes)

    def points(self, outcomes: Outcomes) -> Mapping[str, list[Point]]:
        """See Protocol."""
        return {arm.name: [arm.paper] for arm in self.claim.arms}

    def tuning(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        return []

    def comparison(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        fractions = self.claim.fields["fractions"][self.name]
        return list(_speed_up_runs(self.claim, self.name, self.points(outcomes), fractions))


@dataclass(frozen=True)
class Tuned:
    """Equal tuning for every arm by successive halving of its grid, then a comparison with seeds that it never saw."""

    claim: Claim
    name: str = "tuned"

    @property
    def description(self) -> str:
        """For the report."""
        rounds, n, start = self.claim.fields["halving"], len(self.claim.arms[0].grid), ""
        for row in rounds:
            start += f"{n} points at {row['fraction']:g} T, "
            n = row["keep"]
        return (
            f"the same recorded tuning for every arm ({start}best {n}, seed {self.claim.fields['tuning_seed']}), then "
            "the comparison with fresh seeds"
        )

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        return _open(self.tuning(outcomes), outcomes) or _open(self.comparison(outcomes), outcomes)

    def points(self, outcomes: Outcomes) -> Mapping[str, list[Point]] | None:
        """See Protocol."""
        rounds = self._rounds(outcomes)
        return None if rounds is None else {name: rounds[-1][name] for name in rounds[-1]}

    def tuning(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol; a round is known once the one before it is through."""
        claim, runs = self.claim, []
        survivors: dict[str, list[Point]] = {arm.name: list(arm.grid) for arm in claim.arms}
        for n, row in enumerate(claim.fields["halving"], 1):
            steps = steps_of(claim, row["fraction"])
            batch = [
                plan(claim, arm, self.name, f"tuning, round {n}", claim.fields["tuning_seed"], steps, point)
                for arm in claim.arms
                for point in survivors[arm.name]
            ]
            runs += batch
            if _open(batch, outcomes):
                break
            survivors = best(batch, outcomes, row["keep"])
        return runs

    def comparison(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        points = self.points(outcomes)
        if points is None:
            return []
        return list(_speed_up_runs(self.claim, self.name, points, self.claim.fields["fractions"][self.name]))

    def _rounds(self, outcomes: Outcomes) -> list[dict[str, list[Point]]] | None:
        """The survivors of every round; None before the last is through."""
        runs = self.tuning(outcomes)
        if _open(runs, outcomes):
            return None
        purposes = list(dict.fromkeys(run.purpose for run in runs))
        batches = [[run for run in runs if run.purpose == purpose] for purpose in purposes]
        rows = self.claim.fields["halving"]
        return [best(batch, outcomes, row["keep"]) for batch, row in zip(batches, rows, strict=True)]


@dataclass(frozen=True)
class Sweep:
    """Every point of every arm once, then the points that matter again with fresh seeds.

    The fresh seeds keep the best of many noisy losses from being taken at face value.
    """

    claim: Claim
    name: str = "sweep"

    @property
    def description(self) -> str:
        """For the report."""
        n, chosen = len(self.claim.arms[0].grid), {"best": "the best point", "ends": "the first and the last point"}
        return (
            f"{n} points for every arm at {self.claim.budget} steps, seed {self.claim.fields['tuning_seed']}, then "
            f"{chosen[self.claim.fields['chosen']]} of each again with seeds {self.claim.seeds}"
        )

    def next_runs(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        return _open(self.tuning(outcomes), outcomes) or _open(self.comparison(outcomes), outcomes)

    def points(self, outcomes: Outcomes) -> Mapping[str, list[Point]] | None:
        """See Protocol."""
        runs = self.tuning(outcomes)
        if _open(runs, outcomes):
            return None
        ends = {arm.name: [arm.grid[0], arm.grid[-1]] for arm in self.claim.arms}
        return ends if self.claim.fields["chosen"] == "ends" else best(runs, outcomes, 1)

    def tuning(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        claim, seed = self.claim, self.claim.fields["tuning_seed"]
        return [
            plan(claim, arm, self.name, "sweep", seed, claim.budget, point) for arm in claim.arms for point in arm.grid
        ]

    def comparison(self, outcomes: Outcomes) -> list[Planned]:
        """See Protocol."""
        claim, points = self.claim, self.points(outcomes)
        return [
            plan(claim, arm, self.name, "full budget", seed, claim.budget, point)
            for arm in claim.arms
            for point in dict.fromkeys((points or {}).get(arm.name, []))
            for seed in claim.seeds
        ]


PROTOCOLS: dict[str, Callable[[Claim], Protocol]] = {"paper": Fixed, "tuned": Tuned, "sweep": Sweep}


def of(claim: Claim) -> list[Protocol]:
    """The protocols of a claim, the one that its verdict follows last; none for a claim that trains nothing."""
    names = {"speed_up": claim.fields.get("protocols", []), "sweep": ["sweep"]}
    return [PROTOCOLS[name](claim) for name in names.get(claim.kind, [])]


def next_runs(protocols: Sequence[Protocol], outcomes: Outcomes) -> list[Planned]:
    """What all protocols want next, runs of the same configuration once."""
    wanted = [run for protocol in protocols for run in protocol.next_runs(outcomes)]
    return list({run.config_hash: run for run in reversed(wanted)}.values())[::-1]


def expected(protocols: Sequence[Protocol]) -> list[Planned]:
    """All runs there will be, as if each choice fell on the first point: right in number and length.

    A comparison may share less than it says here with what is run before.
    """
    outcomes: dict[str, float | None] = {}
    runs = []
    while batch := next_runs(protocols, outcomes):
        runs += batch
        outcomes |= {run.config_hash: float(len(outcomes)) for run in batch}
    return runs


def plan(claim: Claim, arm: ArmSpec, protocol: str, purpose: str, seed: int, steps: int, point: Point) -> Planned:
    """The run of an arm at a point, with a full schedule of its own over its steps."""
    every = max(1, math.ceil(steps / claim.fields["evaluations"]))
    own = {"seed": seed, "max_steps": steps, "eval_every": every, "save_every": every}
    own["schedule.warmup_steps"] = warmup_steps(claim, steps)
    base = (*claim.common, *arm.overrides, *point)
    overrides = (*base, *(f"{key}={value}" for key, value in own.items()))
    digest = config_hash(base, own)
    name = f"{arm.name}-{steps}-s{seed}-{digest[:8]}"
    return Planned(name, arm.name, protocol, purpose, seed, steps, point, overrides, digest)


def config_hash(base: Point, own: Mapping[str, int]) -> str:
    """What two runs have in common exactly when they are the same run; own: keys that every run sets, after base."""
    settings = settings_of(base)
    settings |= {key: value for key, value in own.items() if key in settings}  # composing each run would take long
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def warmup_steps(claim: Claim, steps: int) -> int:
    """Of a run over so many steps."""
    fields = claim.fields
    return int(fields["warmup_steps"]) if "warmup_steps" in fields else max(1, round(fields["warmup_fraction"] * steps))


def steps_of(claim: Claim, fraction: float) -> int:
    """That share of the budget T."""
    return max(1, round(claim.budget * fraction))


def best(batch: Sequence[Planned], outcomes: Outcomes, keep: int) -> dict[str, list[Point]]:
    """The best points of each arm, best first; a diverged run is the worst, the earlier point wins a tie."""
    ranked: dict[str, list[tuple[float, int, Point]]] = {}
    for n, run in enumerate(batch):
        loss = number(outcomes[run.config_hash])
        ranked.setdefault(run.arm, []).append((math.inf if loss is None else loss, n, run.point))
    return {arm: [point for _, _, point in sorted(rows)[:keep]] for arm, rows in ranked.items()}


def _speed_up_runs(
    claim: Claim, protocol: str, points: Mapping[str, Sequence[Point]], fractions: Sequence[float]
) -> Iterator[Planned]:
    """Baselines at T, and at T/2 for the half-budget test; candidates at the fractions of T, or their comparison's."""
    for arm in claim.arms:
        wanted: set[float] = set()
        for row in claim.fields["comparisons"]:
            if arm.name == row["baseline"]:
                wanted |= {HALF, WHOLE} if "gap" in row["claimed"] else {WHOLE}
            if arm.name == row["candidate"]:
                wanted |= set((row.get("fractions") or {}).get(protocol, fractions))
        for fraction in sorted(wanted):
            purpose = {WHOLE: "full budget", HALF: "half budget"}.get(fraction, "curve")
            for seed in claim.seeds:
                (point,) = points[arm.name]
                yield plan(claim, arm, protocol, purpose, seed, steps_of(claim, fraction), point)


def _open(runs: Sequence[Planned], outcomes: Outcomes) -> list[Planned]:
    return [run for run in runs if run.config_hash not in outcomes]
