from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from report.results import Arm, Measure, ProtocolResult, Published, Results, Source
from reproduce import claims, reproduction
from reproduce.signs import WHY, table
from reproduce.speed_ups import IN_STEPS


def published(study: str, value: float, parameters: float = 1e8, arm: str = "b", quantity: str = IN_STEPS) -> Published:
    return Published(f"{study}, {parameters:g}", "s", "printed", "x", quantity, value, arm, parameters, unit="x")


def results(low: float | None, high: float | None, *others: Published, notes: list[str] | None = None) -> Results:
    middle = None if low is None or high is None else (low * high) ** 0.5
    row = Measure("speed_up_steps", "speed-up in steps, B against A", "x", middle, low, high)
    other = Measure("speed_up_steps", "speed-up in steps, B against C", "x", 9.0, 9.0, 9.0)
    source = Source("P", "", "s", "s")
    arms = [Arm(name, name.upper(), role, {}) for name, role in (("a", "baseline"), ("b", "candidate"), ("c", "other"))]
    return Results(
        "claim",
        "t",
        "nano",
        "2026-01-01",
        "c",
        source,
        [],
        "r",
        "undecided",
        "s",
        [
            ProtocolResult("paper", "", "undecided", "", measures=[other]),
            ProtocolResult("tuned", "", "", "", None, [row]),
        ],
        published=list(others),
        arms=arms,
        notes=notes or [],
    )


def last_cell(each: Results) -> str:
    return table([each]).rows[0][-1]


def test_a_row_has_the_number_here_beside_each_studys_from_small_to_large_models() -> None:
    found = table([results(1.3, 1.5, published("W", 1.2, 5e8), published("W", 1.4, 1e8), published("T", 1.6))])
    assert found.columns == ["optimizer", "over", "here", "this part of its claim", "W", "T", "beside others"]
    (row,) = found.rows
    assert (row[0], row[1], row[3], row[4], row[5]) == ("B", "A", "none (nano)", "1.40×, 1.20×", "1.60×")
    assert row[2].startswith("1.4") and "1.3" in row[2] and row[6] == "faster, as others find"


@pytest.mark.parametrize(("whole", "shown"), [("undecided", "reproduced"), ("out of regime", "out of regime")])
def test_the_verdict_is_that_of_the_part_unless_all_is_out_of_regime(whole: str, shown: str) -> None:
    found = results(1.3, 1.5, published("W", 1.2))
    (part,) = found.protocols[-1].measures
    part.verdict, found.verdict = "reproduced", whole
    assert table([found]).rows[0][3] == f"{shown} (nano)"


def test_an_arm_without_others_speed_ups_in_steps_has_no_row() -> None:
    unlike = published("W", 1.2, quantity="seconds per step"), published("W", 1.2, arm="c")
    assert table([results(1.3, 1.5), results(1.3, 1.5, *unlike)]).rows == []


def test_a_study_with_the_other_sign_is_named_with_the_claims_reason() -> None:
    others = published("W", 1.4), published("T", 0.4)
    assert last_cell(results(0.3, 0.6, *others, notes=["n", f"{WHY}the batch."])) == (
        "slower; otherwise: W (faster). the batch."
    )
    assert last_cell(results(0.3, 0.6, *others)).endswith("W (faster). The claim states no reason.")


def test_every_sign_that_the_interval_holds_agrees_and_one_that_holds_all_says_nothing() -> None:
    assert last_cell(results(0.97, 1.2, published("W", 1.0))) == "no difference or faster, as others find"
    assert last_cell(results(0.7, 1.4, published("W", 0.4))) == "undecided here"
    assert last_cell(results(None, None, published("W", 0.4))) == "undecided here"


def test_an_open_end_of_a_censored_number_counts_as_such() -> None:
    assert last_cell(results(None, 0.5, published("W", 1.3))).startswith("slower; otherwise: W (faster)")
    assert last_cell(results(4.0, None, published("W", 1.3))) == "faster, as others find"


@pytest.mark.slow  # 40 simulated runs, composed and judged
def test_a_claim_that_was_run_has_its_row(
    write_claim: Callable[..., Path],
    simulate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence = [asdict(published("W", 1.9, arm=arm)) for arm in ("a", "b")]
    claim = claims.load("twice", "nano", folder=write_claim(evidence=evidence))
    monkeypatch.setattr(reproduction, "write_report", lambda *_: None)  # its pages take a second
    found = reproduction.reproduce(claim, tmp_path / "out", "c", run=simulate(2.0), time_arms=lambda _: {})
    (row,) = table([found]).rows
    assert row[:2] == ["B", "A"] and row[2].startswith(("1.9", "2")) and row[-1] == "faster, as others find"
