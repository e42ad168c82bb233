"""Whether a run is long enough for the averages that an optimizer keeps: parts of the regime checks R5 and R6."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from report.results import Check
from reproduce.arms import ArmSpec, ItselfFields
from reproduce.claim import Claim
from reproduce.composed import composed
from reproduce.protocols import Comparison
from reproduce.records import of_length
from reproduce.training import TrainingFields


def memories(claim: Claim[TrainingFields]) -> Check | None:
    """R5 without runs: a warm-up of two memories of the slowest moment."""
    steps = {
        f"{arm.label} ({key.rpartition('.')[0].rpartition('.')[2] or key})": 2 / (1 - beta)
        for arm in _arms(claim)
        for key in arm.memories
        if (beta := _number_at(claim, arm, key)) is not None and beta < 1
    }
    if not steps:
        return None
    name = max(steps, key=steps.__getitem__)
    ours = claim.fields.warmup_steps
    value = f"starts at {ours} steps; {name} needs {steps[name]:.0f}"
    return Check("R5", "warm-up", "at least 2 / (1 - beta) steps of every moment", value, ours >= steps[name] * 0.999)


def itself(found: Comparison[Any]) -> Check | None:
    """R6, of runs: averages settled at the tuned point, diagnostics within their bounds."""
    problems, held = list[str](), list[str]()
    for arm in _arms(found.claim):
        for each in arm.itself:
            if each.diagnostic:
                words, ok = _diagnostic(found, arm, each)
            else:
                words, ok = _average(found.claim, arm, each, found.points.get(arm.name, ()))
            (held if ok else problems).append(words)
    return _itself_check(problems, held)


def settled(claim: Claim[TrainingFields]) -> Check | None:
    """R6 without runs: averages settled where tuning starts."""
    problems, held = list[str](), list[str]()
    for arm in _arms(claim):
        for each in (each for each in arm.itself if not each.diagnostic):
            words, ok = _average(claim, arm, each, arm.point(arm.start))
            (held if ok else problems).append(words)
    return _itself_check(problems, held)


def _arms(claim: Claim[TrainingFields]) -> list[ArmSpec]:
    """Those that a part of the claim is about."""
    names = claim.kind.arms_of_parts(claim)
    return [arm for arm in claim.arms if arm.name in names]


def _itself_check(problems: Sequence[str], held: Sequence[str]) -> Check | None:
    if not problems and not held:
        return None
    wanted = "averages settled, diagnostics within the bounds that their authors give"
    return Check("R6", "every optimizer is itself at T", wanted, "; ".join(problems or held), not problems)


def _average(claim: Claim[TrainingFields], arm: ArmSpec, each: ItselfFields, point: Sequence[str]) -> tuple[str, bool]:
    beta = _number_at(claim, arm, each.beta, point)
    every = float(each.every) if each.every.replace(".", "").isdigit() else _number_at(claim, arm, each.every, point)
    if beta is None or every is None:
        return f"{arm.label}: {each.beta} or {each.every} is not set", False
    updates = claim.fields.budget / every
    share = 1 - beta**updates
    return f"{arm.label}: {each.label} settled to {share:.3f} ({each.settled:g} wanted)", share >= each.settled


def _diagnostic(found: Comparison[Any], arm: ArmSpec, each: ItselfFields) -> tuple[str, bool]:
    runs = of_length(found.compared, arm.name, found.claim.fields.budget)
    values = [run.record.diagnostics[each.diagnostic] for run in runs if each.diagnostic in run.record.diagnostics]
    if not values:
        return f"{arm.label}: {each.label} is not known", False
    mean = sum(values) / len(values)
    low = -math.inf if each.low is None else each.low
    high = math.inf if each.high is None else each.high
    return f"{arm.label}: {each.label} {mean:.3f} ({low:g} to {high:g} wanted)", low <= mean <= high


def _number_at(claim: Claim[Any], arm: ArmSpec, key: str, point: Sequence[str] = ()) -> float | None:
    """A number in an arm's configuration; a part of the key that is a number chooses from a list."""
    found: Any = composed((*claim.common, *arm.overrides, *(point or arm.point(arm.start))))
    for part in key.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else _below(found, part)
        except (KeyError, IndexError, AttributeError, ValueError):
            return None
    return float(found) if isinstance(found, int | float) else None


def _below(found: Any, part: str) -> Any:
    return found[part] if isinstance(found, Mapping) else getattr(found, part)
