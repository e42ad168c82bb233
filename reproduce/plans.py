"""One training run of a claim before it is started: its name, its overrides, and what makes it the run it is."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from reproduce.claim import ArmSpec, Claim, Point
from reproduce.composed import settings_of
from reproduce.training import T, warmup_steps


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


def plan(claim: Claim[T], arm: ArmSpec, protocol: str, purpose: str, seed: int, steps: int, point: Point) -> Planned:
    """The run of an arm at a point, with a full schedule of its own over its steps."""
    every = max(1, math.ceil(steps / claim.fields.evaluations))
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
