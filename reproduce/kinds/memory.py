"""A claim about bytes of optimizer state: how much of the baseline's an arm saves, at models of full size."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import override

from inference.intervals import Interval
from inference.verdicts import verdict
from report.results import Measure
from reproduce.claim import Claim, Fields
from reproduce.evidence import Evidence
from reproduce.fields import limited
from reproduce.judging import check_arms_exist
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError, Mistakes

if TYPE_CHECKING:
    from reproduce.state import States

ROUNDING = 0.05  # percentage points: papers print one decimal


@dataclass
class Saving:
    """What the paper says of an arm: [low, high] percent of the baseline's bytes saved; of one size, or of all."""

    arm: str
    percent_saved: list[float]
    size: str | None = None


@dataclass
class Settings:
    """sizes: options of model."""

    sizes: list[str]
    claims: list[Saving] = field(default_factory=list)


@dataclass
class MemoryFields(Fields):
    """The fields of a claim file."""

    settings: Settings = limited()


class Memory(Kind[MemoryFields]):
    """Every saving must hold, at every size that it is about."""

    Fields = MemoryFields
    description = "the state that the optimizers declare for models of full size; nothing is trained"

    @override
    def check(self, claim: Claim[MemoryFields]) -> None:
        settings, mistakes = claim.fields.settings, Mistakes()
        with mistakes.collected():
            if not settings.sizes:
                raise ClaimError("settings: sizes is empty; name options of model")
        for row in settings.claims:
            with mistakes.collected():
                check_arms_exist(claim, "settings: claims", row.arm)
            with mistakes.collected("settings: claims: "):
                _check_saving(row, settings.sizes)
        mistakes.raise_all()

    @override
    def measure(self, claim: Claim[MemoryFields]) -> Evidence:
        from reproduce import state  # torch comes with it

        found = state.states(claim, claim.fields.settings.sizes)
        return Evidence(_rows(claim, found), [found.figure()], [found.table()], [state.NOTE])

    @override
    def state_measures(self, claim: Claim[MemoryFields]) -> list[Measure]:
        from reproduce import state

        return _rows(claim, state.states(claim, claim.fields.settings.sizes))


def _check_saving(row: Saving, sizes: list[str]) -> None:
    if row.size is not None and row.size not in sizes:
        raise ClaimError(f"size={row.size!r} must be a size: {', '.join(sizes)}")
    if len(row.percent_saved) != 2 or not 0 < row.percent_saved[0] <= row.percent_saved[1] <= 100:
        raise ClaimError(f"percent_saved={row.percent_saved} of {row.arm} must be [low, high], in (0, 100]")


def _rows(claim: Claim[MemoryFields], found: "States") -> list[Measure]:
    settings = claim.fields.settings
    return [
        _saved(claim, row, size, found.percent_saved(claim.arm(row.arm), size))
        for row in settings.claims
        for size in ([row.size] if row.size else settings.sizes)
    ]


def _saved(claim: Claim[MemoryFields], row: Saving, size: str, saved: float) -> Measure:
    """Exact, but compared to the digit that the paper prints."""
    arm, (low, high) = claim.arm(row.arm), row.percent_saved
    least = low - ROUNDING
    printed = f"{low} %" if low == high else f"{low} to {high} %"
    return Measure(
        name=f"state_saved_{arm.name}_{size}",
        label=f"optimizer state saved against {claim.baseline.label}, {arm.label}, {size}",
        unit="%",
        estimate=saved,
        low=saved,
        high=saved,
        claimed=low,
        least=least,
        no_effect=0.0,
        verdict=verdict(Interval(saved, saved, saved), claimed=low, least=least, no_effect=0.0),
        note=f"claimed: {printed}" + ("; more is saved" if saved > high + ROUNDING else ""),
    )
