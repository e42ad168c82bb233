"""A claim about what an optimizer costs beside another: seconds per step here, bytes of state at full size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from inference.intervals import Interval
from report.results import Measure
from reproduce.claim import Claim, Fields
from reproduce.evidence import Evidence
from reproduce.fields import limited
from reproduce.judging import Expectation, Expected, check_expectations, judged
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError, Mistakes
from reproduce.records import Ratios
from reproduce.rounds import LEAST_ROUNDS

if TYPE_CHECKING:
    from reproduce.state import States

QUANTITIES = {"step_time": "seconds per step", "state_bytes": "bytes of optimizer state"}


@dataclass
class Settings:
    """rounds: the fewest blocks of every arm, interleaved. steps: of a block. sizes: options of model for the state."""

    rounds: int = limited(least=LEAST_ROUNDS)
    steps: int = limited(least=1)
    sizes: list[str] = limited()


@dataclass
class OverheadFields(Fields):
    """The fields of a claim file. expect: ratios of QUANTITIES, one arm's over another's."""

    settings: Settings = limited()
    expect: list[Expectation] = limited()


class Overhead(Kind[OverheadFields]):
    """Judged are the rows of `expect`; all must hold."""

    Fields = OverheadFields
    description = "seconds per step, all arms interleaved on this machine; the state that the optimizers declare"

    @override
    def check(self, claim: Claim[OverheadFields]) -> None:
        mistakes = Mistakes()
        with mistakes.collected():
            check_expectations(claim, claim.fields.expect, QUANTITIES)
        for n, row in enumerate(claim.fields.expect):
            with mistakes.collected():
                if row.against is None:
                    raise ClaimError(f"expect[{n}] lacks 'against', the arm that {row.arm} is compared with")
        mistakes.raise_all()

    @override
    def measure(self, claim: Claim[OverheadFields]) -> Evidence:
        from reproduce import state, timing  # torch and train.py come with them

        settings = claim.fields.settings
        ratios = timing.ratios(claim, rounds=settings.rounds, steps=settings.steps)
        states = state.states(claim, settings.sizes)
        rows = [_ratio(claim, row, ratios, states) for row in claim.fields.expect]
        return Evidence(rows, [states.figure()], [states.table()], [state.NOTE])

    @override
    def state_measures(self, claim: Claim[OverheadFields]) -> list[Measure]:
        from reproduce import state

        found = state.states(claim, claim.fields.settings.sizes)
        return [_ratio(claim, row, {}, found) for row in claim.fields.expect if row.quantity != "step_time"]


def _ratio(claim: Claim[OverheadFields], row: Expectation, ratios: Ratios, states: "States") -> Measure:
    """One row of `expect`. The state's is exact: the same for every size, or the largest."""
    candidate, baseline = claim.arm(row.arm), claim.arm(row.against or "")
    if row.quantity == "step_time":
        interval = ratios[candidate.name, baseline.name]
    else:
        sizes = claim.fields.settings.sizes
        ratio = max(
            states.of(candidate, size).per_parameter / states.of(baseline, size).per_parameter for size in sizes
        )
        interval = Interval(ratio, ratio, ratio)
    label = f"{QUANTITIES[row.quantity]}, {candidate.label} beside {baseline.label}"
    return judged(row.quantity, label, "x", interval, Expected(row.claimed, row.no_effect, row.least, log_scale=True))
