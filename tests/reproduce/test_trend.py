"""Planted speed-ups that change along an axis, and what is refused."""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from inference.intervals import Interval
from report.results import Measure
from reproduce import findings, forecast, protocols
from reproduce.claims import load
from reproduce.composed import composed
from reproduce.evidence import Evidence
from reproduce.kinds.trend import ratio
from reproduce.mistakes import ClaimError
from reproduce.plans import Planned

Write = Callable[..., Path]
PLACES = [{"value": 4, "overrides": ["global_batch=4", "micro_batch=4"], "rate_factor": 0.5}, {"value": 16}]
PLACES += [{"value": 64, "overrides": ["global_batch=64", "micro_batch=8"], "budget": 320, "tuned_axes": 1}]
EXPECT = [{"candidate": "b", "baseline": "a", "ratio": {"claimed": 1.5, "least": 1.35}}]


def trend(write_claim: Write, **changes: Any) -> Any:
    """The claim, at places of three batches."""
    fields = {"axis": "batch", "places": PLACES, "expect": EXPECT, **changes}
    leave = dict.fromkeys(("comparisons", "protocols", "paper_schedule", "timing_steps"))
    return load("twice", "nano", folder=write_claim(kind="trend", **leave, **fields))


def loss_of(speed_ups: dict[int, float]) -> Callable[[Planned], float]:
    """The loss of a run whose arm b is so many times as fast, by batch."""

    def loss(run: Planned) -> float:
        batch = max(
            (int(each.partition("=")[2]) for each in run.overrides if each.startswith("global_batch")), default=16
        )
        steps = run.steps * (speed_ups[batch] if run.arm == "b" else 1.0)
        own = random.Random(f"{run.arm} {run.steps} {run.seed} {batch}").gauss(0, 0.004)
        rate = float(next(each for each in run.overrides[::-1] if each.startswith("optim.lr")).partition("=")[2])
        best = 2e-3 if run.arm == "a" else 2e-4
        return 3 + 8 * steps**-0.35 + own + random.Random(run.seed).gauss(0, 0.02) + 0.05 * math.log2(rate / best) ** 2

    return loss


def measured(claim: Any, walk: Callable[..., Any], speed_ups: dict[int, float]) -> tuple[list[Evidence], Evidence]:
    """What each place finds, and what they say together."""
    walked = walk(claim, loss_of(speed_ups))
    found = [each.comparison(walked.runs, {}) for each in protocols.of(claim)]
    evidences = [claim.kind.conclude(each) for each in found]
    together = claim.kind.across(found, evidences)
    assert together is not None
    return evidences, together


@pytest.mark.parametrize(
    ("speed_ups", "verdict"),
    [
        ({4: 1.2, 16: 1.5, 64: 1.8}, "reproduced"),
        ({4: 1.3, 16: 1.3, 64: 1.3}, "no effect or worse"),
        ({4: 1.8, 16: 1.5, 64: 1.2}, "no effect or worse"),
    ],
)
def test_a_planted_change_is_found_and_judged(
    speed_ups: dict[int, float], verdict: str, write_claim: Write, walk: Callable[..., Any]
) -> None:
    evidences, together = measured(trend(write_claim), walk, speed_ups)
    for evidence, truth in zip(evidences, speed_ups.values(), strict=True):
        (row,) = evidence.measures
        assert row.verdict is None and row.low < truth < row.high
    (row,) = together.measures
    assert row.low < speed_ups[64] / speed_ups[4] < row.high
    assert row.verdict in (verdict, "weaker than claimed") if verdict != "reproduced" else row.verdict == verdict
    assert [series.x for series in together.figures[0].series] == [[4, 16, 64]]


def test_every_place_has_its_own_length_tuning_and_runs(write_claim: Write, walk: Callable[..., Any]) -> None:
    claim = trend(write_claim)
    places = {each.name: each.claim for each in protocols.of(claim)}
    assert list(places) == ["batch 4", "batch 16", "batch 64"]
    assert [each.fields.budget for each in places.values()] == [160, 160, 320]
    assert [each.arm("a").axes[0].start for each in places.values()] == [1e-3, 2e-3, 2e-3]
    assert places["batch 64"].arm("a").axes[-1].most == 256  # steps of warm-up: before the rate begins to fall
    runs = walk(claim, loss_of({4: 1.0, 16: 1.0, 64: 1.0})).runs
    assert len({run.plan.config_hash for run in runs}) == len(runs)
    by_place = {name: [run for run in runs if run.plan.protocol == name] for name in places}
    assert all(by_place.values()) and all(len(each) < len(by_place["batch 16"]) for each in [by_place["batch 64"]])


def test_the_quotient_of_independent_speed_ups_adds_distances_in_squares() -> None:
    same = Interval(2.0, 2 / math.e**0.3, 2 * math.e**0.3)
    found = ratio(same, Interval(1.0, math.e**-0.4, math.e**0.4))
    assert found == pytest.approx((2.0, 2 / math.e**0.5, 2 * math.e**0.5))
    open_end = ratio(same, Interval(1.0, 0.0, math.e**0.4))
    assert open_end.high == math.inf and open_end.low == pytest.approx(found.low)


def test_a_speed_up_beyond_what_was_run_leaves_the_worst_of_both_bounds() -> None:
    beyond = Interval(math.nan, 4.0, math.inf)
    found = ratio(beyond, Interval(1.6, 1.25, 2.0))
    assert math.isnan(found.estimate) and found[1:] == (2.0, math.inf)
    assert ratio(Interval(1.6, 1.25, 2.0), beyond)[1:] == (0.0, 0.5)


def test_the_checks_of_all_places_are_heard_and_the_worst_is_shown(
    write_claim: Write, walk: Callable[..., Any], quick: None
) -> None:
    claim = trend(write_claim)
    runs = walk(claim, loss_of({4: 1.2, 16: 1.5, 64: 1.8})).runs
    compared = [each.comparison(runs, {}) for each in protocols.of(claim)]
    from reproduce.regime import Surroundings

    found = findings.of_training(compared, lambda each, evidence: Surroundings({}))
    assert [each.name for each in found.protocols] == ["batch 4", "batch 16", "batch 64", "together"]
    (tokens,) = [check for check in found.checks if check.id == "R8"]
    assert tokens.passed is False and "batch 4:" in tokens.value and "batch 64:" in tokens.value
    assert found.verdict == "out of regime" and found.figures[0].name == "trend"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": PLACES[:1]}, r"places: the values \[4.0\] must be two or more, rising"),
        ({"places": [PLACES[1], PLACES[0]]}, "must be two or more, rising"),
        ({"places": [PLACES[0], {"value": 16, "budget": 150}]}, "places: 16: fractions: .* is no multiple"),
        ({"expect": [{"candidate": "c", "baseline": "a"}]}, "there is no arm 'c'"),
        ({"expect": [{**EXPECT[0], "ratio": {"claimed": 1.0, "least": 1.0}}]}, "must be two different numbers"),
    ],
)
def test_a_trend_that_cannot_be_is_refused(changes: dict[str, Any], message: str, write_claim: Write) -> None:
    with pytest.raises(ClaimError, match=message):
        trend(write_claim, **deepcopy(changes))


def test_a_change_that_is_only_shown_has_no_verdict(write_claim: Write, walk: Callable[..., Any]) -> None:
    judged = {"claimed": 1.0, "least": 0.75, "no_effect": 0.5}
    claim = trend(
        write_claim, expect=[{"candidate": "b", "baseline": "a"}, {"candidate": "a", "baseline": "b", "ratio": judged}]
    )
    _, together = measured(claim, walk, {4: 1.2, 16: 1.5, 64: 1.8})
    row: Measure = together.measures[0]
    assert row.verdict is None and row.estimate == pytest.approx(1.5, rel=0.15)


def test_the_usual_settings_of_each_place_are_forecast_with_its_batch(write_claim: Write) -> None:
    claim = trend(write_claim)
    lines = {line.protocol: line for line in forecast.forecast(claim, dict).lines if line.purpose == "usual settings"}
    runs = [run for run in protocols.expected(protocols.of(claim)) if run.purpose == "usual settings"]
    assert len({run.point for run in runs}) == 1 < len(lines)  # the same settings at several places
    for protocol, line in lines.items():
        own = [forecast.flops_of(composed(run.overrides))(run.steps) for run in runs if run.protocol == protocol]
        assert line.flops == sum(own)
