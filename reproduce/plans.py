"""One training run of a claim before it is started: its name, its overrides, and what makes it the run it is."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reproduce.arms import ArmSpec, Point
from reproduce.claim import Claim
from reproduce.composed import settings_of
from reproduce.training import DECAY, T, branches, decay_begins, evaluated_every

WSD = ("schedule=wsd", f"schedule.decay_fraction={DECAY}", "schedule.final_lr_fraction=0.0")
COSINE = ("schedule=cosine", "schedule.final_lr_fraction=0.0")


@dataclass(frozen=True)
class Planned:
    """A run that a protocol wants.

    trunk: the run that it may branch from, at step `branches_at`, and then is bit for bit what it would be by itself.
    value: its place on the axis of a sweep.
    """

    name: str  # its folder in the atlas
    arm: str
    protocol: str
    purpose: str
    seed: int
    steps: int
    point: Point  # the hyperparameters under test
    overrides: Point  # all of train.py's, run_dir aside
    config_hash: str
    trunk: "Planned | None" = None
    branches_at: int = 0
    value: float | None = None

    @property
    def own_steps(self) -> int:
        """The steps that are run for it alone."""
        return self.steps - self.branches_at


def plan(
    claim: Claim[T],
    arm: ArmSpec,
    protocol: str,
    purpose: str,
    seed: int,
    steps: int,
    point: Point,
    *,
    schedule: Point = WSD,
    save_at: Sequence[int] = (),
) -> Planned:
    """The run of an arm at a point, with a full schedule of its own over its steps.

    save_at: steps after which a checkpoint is kept, from which others branch.
    """
    every = evaluated_every(claim.fields)
    own = {"seed": seed, "max_steps": steps, "eval_every": every, "save_every": steps}
    base = (*schedule, *claim.common, *arm.overrides, *point)
    digest = config_hash(base, own)
    overrides = (*base, *(f"{key}={value}" for key, value in own.items()))
    overrides += (f"save_at={list(save_at)}".replace(" ", ""),) if save_at else ()
    name = f"{arm.name}-{steps}-s{seed}-{digest}"
    return Planned(name, arm.name, protocol, purpose, seed, steps, point, overrides, digest)


def trunk_and_branches(
    claim: Claim[T], arm: ArmSpec, protocol: str, seed: int, point: Point, warmup_steps: int
) -> list[Planned]:
    """The run over T and, from its stable part, those over every shorter length that the claim compares."""
    lengths, budget = branches(claim, warmup_steps), claim.fields.budget
    leaves = [decay_begins(steps) for steps in lengths]
    trunk = plan(claim, arm, protocol, "full budget", seed, budget, point, save_at=leaves)
    return [trunk, *(_branch(claim, arm, trunk, steps) for steps in lengths)]


def _branch(claim: Claim[T], arm: ArmSpec, trunk: Planned, steps: int) -> Planned:
    alone = plan(claim, arm, trunk.protocol, "branch", trunk.seed, steps, trunk.point)
    return replace(alone, trunk=trunk, branches_at=decay_begins(steps))


def config_hash(base: Point, own: Mapping[str, int]) -> str:
    """What two runs have in common exactly when they are the same run; own: keys that every run sets, after base."""
    settings = settings_of(base)
    settings |= {key: value for key, value in own.items() if key in settings}  # composing each run would take long
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def unique(runs: Sequence[Planned]) -> list[Planned]:
    """The runs, each configuration once."""
    return list({run.config_hash: run for run in reversed(runs)}.values())[::-1]
