"""What a claim that trains states, whatever its kind: how long, with which seeds, and what its report shows."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from omegaconf import MISSING

from reproduce.claim import Claim, F, Fields
from reproduce.fields import ClaimError, limited

T = TypeVar("T", bound="TrainingFields")
DIAGNOSTIC = "optim/"  # how the names of the optimizers' diagnostics begin in metrics.jsonl


@dataclass
class TrainingFields(Fields):
    """Fields of the kinds that train."""

    budget: int = limited(least=1)  # T, in steps
    seeds: list[int] = MISSING  # of the comparison
    tuning_seed: int = limited(least=0)
    evaluations: int = limited(least=1)  # of a run
    warmup_steps: int | None = limited(None, least=0)
    warmup_fraction: float | None = limited(None, above=0, most=1)
    differs: list[str] = field(default_factory=list)  # keys in which the arms may disagree
    drop_checkpoints: bool = False  # of finished runs, which need none
    shows: list[str] = field(
        default_factory=list
    )  # diagnostics, such as optim/update_ratio/matrix, a mean over each run


def check_training(claim: Claim[T]) -> None:
    """Raises: ClaimError: if the fields do not fit each other."""
    fields = claim.fields
    if (fields.warmup_steps is None) == (fields.warmup_fraction is None):
        raise ClaimError("give one of warmup_steps and warmup_fraction")
    if not fields.seeds or min(fields.seeds) < 0 or len(set(fields.seeds)) < len(fields.seeds):
        raise ClaimError(f"seeds={fields.seeds} must be different counts")
    if fields.tuning_seed in fields.seeds:
        raise ClaimError(
            f"tuning_seed={fields.tuning_seed} is among the seeds of the comparison, {fields.seeds}; "
            "what tuning has seen must not be compared"
        )
    if odd := [name for name in fields.shows if not name.startswith(DIAGNOSTIC)]:
        raise ClaimError(f"shows: {odd[0]!r} is no diagnostic of an optimizer; its name begins with {DIAGNOSTIC}")


def with_seeds(claim: Claim[F], n_seeds: int) -> Claim[F]:
    """The claim compared with so many seeds; the file's come first.

    Raises: ClaimError: if it trains nothing, or n_seeds is < 1.
    """
    fields = claim.fields
    if not isinstance(fields, TrainingFields):
        raise ClaimError(f"claim {claim.id} is of kind {claim.kind.name} and trains nothing: leave seeds= out")
    if n_seeds < 1:
        raise ClaimError(f"seeds={n_seeds} must be >= 1")
    more = (seed for seed in range(max(fields.seeds) + 1, 10**9) if seed != fields.tuning_seed)
    seeds = [*fields.seeds, *(next(more) for _ in range(n_seeds))][:n_seeds]
    return replace(claim, fields=replace(fields, seeds=seeds))


def steps_of(claim: Claim[T], fraction: float) -> int:
    """Returns the steps of a fraction of the budget T."""
    return max(1, round(claim.fields.budget * fraction))


def warmup_steps(claim: Claim[T], steps: int) -> int:
    """Returns the warm-up steps of a run over so many steps."""
    fields = claim.fields
    if fields.warmup_steps is not None:
        return fields.warmup_steps
    assert fields.warmup_fraction is not None  # check_training has seen to it
    return max(1, round(fields.warmup_fraction * steps))
