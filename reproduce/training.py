"""What a claim that trains states, whatever its kind: how long, with which seeds, and what its report shows.

Most of it is that of the scale, configs/scale/<scale>.yaml, so that all claims share their runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from omegaconf import MISSING

from reproduce.arms import Axis, CarriedFields
from reproduce.claim import Claim, F, Fields
from reproduce.fields import limited
from reproduce.mistakes import ClaimError, Mistakes

T = TypeVar("T", bound="TrainingFields")
DIAGNOSTIC = "optim/"  # how the names of the optimizers' diagnostics begin in metrics.jsonl
WARM_UP = "warm-up"  # the axis that every arm has
DECAY = 0.2  # of the steps, at the end of every run: configs/schedule/wsd.yaml
FULL, HALF, QUARTER = 1.0, 0.5, 0.25  # shares of T


@dataclass
class TrainingFields(Fields):
    """Fields of the kinds that train."""

    budget: int = limited(least=1)  # T, in steps
    warmup_steps: int = limited(least=1)  # where tuning starts, the same for all lengths
    fractions: list[float] = MISSING  # of T, the lengths that are compared; the longest is 1
    seeds: list[int] = MISSING  # of the comparison
    tuning_seeds: list[int] = MISSING
    tuned_axes: int = limited(least=1)  # of every arm, in their order
    rates_from: CarriedFields | None = None  # None: arms say where their rates start
    worse_by: float = limited(least=0)  # nats, by which rates on either side of the best are worse
    pays: float = limited(least=0)  # nats, by which another value of the other axes must be better, to move there
    evaluations: int = limited(least=1)  # of a run over T
    paper_batch_tokens: float | None = limited(None, above=0)  # of a step, in the paper
    differs: list[str] = field(default_factory=list)  # keys in which the arms may disagree
    unequal: str = ""  # why an arm is not tuned, where that is the claim
    drop_checkpoints: bool = False  # of finished runs, which need none
    shows: list[str] = field(default_factory=list)  # diagnostics, such as optim/win_rate, means over part of each run

    @property
    def warm_up(self) -> Axis:
        """The last axis of every arm."""
        most = max(1, math.floor((1 - DECAY) * self.budget))
        return Axis(WARM_UP, ("schedule.warmup_steps={}",), self.warmup_steps, is_count=True, most=most)


def check_training(claim: Claim[T]) -> None:
    """Raises: ClaimError: if the fields do not fit each other."""
    mistakes = Mistakes()
    for check in (_check_seeds, _check_shows, _check_lengths, _check_equal_tuning):
        with mistakes.collected():
            check(claim)
    mistakes.raise_all()


def _check_seeds(claim: Claim[T]) -> None:
    """Raises: ClaimError: unless the seeds of tuning and of the comparison are different counts."""
    fields = claim.fields
    for name, seeds in (("seeds", fields.seeds), ("tuning_seeds", fields.tuning_seeds)):
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ClaimError(f"{name}={seeds} must be different counts")
    if seen := set(fields.tuning_seeds) & set(fields.seeds):
        raise ClaimError(
            f"tuning_seeds={fields.tuning_seeds} has {min(seen)}, a seed of the comparison, {fields.seeds}; what "
            "tuning has seen must not be compared"
        )


def _check_shows(claim: Claim[T]) -> None:
    """Raises: ClaimError: if what the report is to show is no diagnostic."""
    if odd := [name for name in claim.fields.shows if not name.startswith(DIAGNOSTIC)]:
        raise ClaimError(f"shows: {odd[0]!r} is no diagnostic of an optimizer; its name begins with {DIAGNOSTIC}")


def _check_lengths(claim: Claim[T]) -> None:
    """Raises: ClaimError: if the lengths are not what the regime checks read the losses of."""
    fields = claim.fields
    fractions = sorted(set(fields.fractions))
    if not fractions or fractions[0] <= 0 or fractions[-1] != FULL or HALF not in fractions or len(fractions) < 4:
        raise ClaimError(
            f"fractions={fields.fractions} must be four or more lengths in (0, 1], 0.5 and 1 among them: the curve and "
            "the checks need them"
        )
    every = evaluated_every(fields)
    for fraction in fractions:
        if (fraction * fields.budget) % every:
            raise ClaimError(
                f"fractions: {fraction:g} of budget={fields.budget} is no multiple of {every} steps, from one "
                f"evaluation to the next (evaluations={fields.evaluations}); check R5b reads the loss there"
            )


def _check_equal_tuning(claim: Claim[T]) -> None:
    """Raises: ClaimError: if one arm is tuned along more axes than another, and the claim does not say why."""
    fields = claim.fields
    found = {arm.name: min(len(arm.axes), fields.tuned_axes) for arm in claim.arms}
    most = max(found.values())
    if less := [name for name, n in found.items() if n < most and not fields.unequal.strip()]:
        raise ClaimError(
            f"arms tuned unequally: {less[0]} has {found[less[0]]} axes to tune, another arm {most}; give every arm as "
            "many, or say why in `unequal`"
        )
    if not most:
        raise ClaimError("no arm has axes to tune")


def evaluated_every(fields: TrainingFields) -> int:
    """Steps from one evaluation to the next, in runs of all lengths."""
    return max(1, math.ceil(fields.budget / fields.evaluations))


def with_seeds(claim: Claim[F], n_seeds: int) -> Claim[F]:
    """The claim compared with so many seeds; the file's come first.

    Raises: ClaimError: if it trains nothing, or n_seeds is < 1.
    """
    fields = claim.fields
    if not isinstance(fields, TrainingFields):
        raise ClaimError(f"claim {claim.id} is of kind {claim.kind.name} and trains nothing: leave seeds= out")
    if n_seeds < 1:
        raise ClaimError(f"seeds={n_seeds} must be >= 1")
    more = (seed for seed in range(max(fields.seeds) + 1, 10**9) if seed not in fields.tuning_seeds)
    seeds = [*fields.seeds, *(next(more) for _ in range(n_seeds))][:n_seeds]
    return replace(claim, fields=replace(fields, seeds=seeds))


def steps_of(claim: Claim[T], fraction: float) -> int:
    """Returns the steps of a fraction of the budget T."""
    return max(1, round(claim.fields.budget * fraction))


def decay_begins(steps: int) -> int:
    """The step at which a run over so many begins to lower its rate, as trainer.WSD has it."""
    return steps - round(DECAY * steps)


def branches(claim: Claim[T], warmup_steps: int) -> Sequence[int]:
    """The lengths below T, in steps, that are branches of a run over T whose warm-up ends before they leave it."""
    lengths = {steps_of(claim, fraction) for fraction in claim.fields.fractions}
    return sorted(steps for steps in lengths if steps < claim.fields.budget and decay_begins(steps) >= warmup_steps)
