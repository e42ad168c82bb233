"""What an optimizer costs beside another: planted step times, state by the papers' algorithm boxes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.intervals import Interval
from reproduce.claims import load
from reproduce.mistakes import ClaimError

Write = Callable[..., Path]
ARMS = {
    name: {"label": name, "role": role, "overrides": [f"optim={name}"]}
    for name, role in (("adamw", "baseline"), ("sophiag", "candidate"), ("lion", "other"))
}
EXPECT = [
    {"quantity": "step_time", "arm": "sophiag", "against": "adamw", "claimed": 1.05, "no_effect": 1.5},
    {"quantity": "state_bytes", "arm": "sophiag", "against": "adamw", "claimed": 1.0, "no_effect": 1.5},
    {"quantity": "state_bytes", "arm": "lion", "against": "adamw", "claimed": 0.5, "no_effect": 1.0},
]


def write(write_claim: Write, expect: list[dict[str, Any]], **settings: Any) -> Path:
    chosen = {"rounds": 7, "steps": 10, "sizes": ["nano", "micro"], **settings}
    return write_claim(base="memory", kind="overhead", arms=ARMS, settings=chosen, expect=expect)


def test_step_times_and_states_are_ratios_judged_by_the_rule(
    write_claim: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []

    def ratios(claim: object, **how: int) -> dict[tuple[str, str], Interval]:
        asked.append(how)
        return {("sophiag", "adamw"): Interval(1.06, 1.04, 1.08)}

    monkeypatch.setattr("reproduce.timing.ratios", ratios)
    claim = load("twice", "nano", folder=write(write_claim, EXPECT))
    found = claim.kind.measure(claim)
    assert asked == [{"rounds": 7, "steps": 10}]
    # AdamW and Sophia keep two numbers per parameter, Lion one.
    numbers = [(row.estimate, row.low, row.high, row.verdict) for row in found.measures]
    assert numbers == [
        (1.06, 1.04, 1.08, "reproduced"),
        (1.0, 1.0, 1.0, "reproduced"),
        (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5), "reproduced"),
    ]
    assert found.tables[0].columns == ["optimizer", "nano", "micro"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"against": None}, r"expect\[0\] lacks 'against'"),
        ({"quantity": "step_tim"}, "quantity='step_tim' is unknown; the nearest one is 'step_time'"),
        ({"arm": "sofia"}, "expect: there is no arm 'sofia'; the nearest one is 'sophiag'"),
        ({"no_effect": 1.05}, "must be two different numbers"),
    ],
)
def test_a_wrong_expectation_is_found_before_anything_is_timed(
    row: dict[str, Any], message: str, write_claim: Write
) -> None:
    with pytest.raises(ClaimError, match=message):
        load("twice", "nano", folder=write(write_claim, [EXPECT[0] | row]))


def test_rounds_too_few_for_an_interval_are_refused(write_claim: Write) -> None:
    with pytest.raises(ClaimError, match="settings.rounds=5 must be >= 6"):
        load("twice", "nano", folder=write(write_claim, EXPECT, rounds=5))
