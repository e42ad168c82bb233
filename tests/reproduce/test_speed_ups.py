"""What tuning gave, what it leaves uncertain, and the figure that shows the verdict; runs happen in memory."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.results import Published
from reproduce import speed_ups
from reproduce.arms import Axis
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.plans import Planned
from reproduce.speed_ups import Scatter, excess, scatter, tuning_sentence
from reproduce.tuner import Bracket, Tuning

Walk = Callable[..., Any]
RATE, DECAY = Axis("rate", ("optim.lr={}",), 1e-3), Axis("decay", ("optim.weight_decay={}",), 0.1)


def at(steps: float) -> float:
    """The loss of a tuned run."""
    return 3 + 8 * float(steps) ** -0.35


@pytest.fixture
def claim(write_claim: Callable[..., Path]) -> Claim:
    return load("twice", "nano", folder=write_claim())


def usual_at(loss: float | None) -> Callable[[Planned], float | None]:
    """Losses of a curve; those of the baseline's usual settings are given, but for tuning's runs."""
    return lambda run: loss if run.purpose == "usual settings" else at(run.steps)


@pytest.mark.parametrize(
    ("usual", "gave"),
    [
        (at(80), "2.00× for A: "),
        (at(120), "1.33× for A: "),
        (at(160), "1.00× for A: "),
        (9.0, "> 4.00× for A: "),  # the shortest run, of T/4, is better
        (at(40), "> 4.00× for A: "),
    ],
)
def test_what_tuning_alone_gave_is_said_in_a_sentence(usual: float, gave: str, claim: Claim, walk: Walk) -> None:
    losses = f"loss {usual:.4f} with the usual settings (optim.lr=1e-3), {at(160):.4f} tuned."
    assert tuning_sentence(walk(claim, usual_at(usual)).comparison()) == f"Tuning alone: {gave}{losses}"


def test_tuning_that_gave_nothing_is_said_to_have(claim: Claim, walk: Walk) -> None:
    losses = f"loss 4.3000 with the usual settings (optim.lr=1e-3), {at(160):.4f} tuned."
    assert tuning_sentence(walk(claim, usual_at(4.3)).comparison()) == f"Tuning alone: nothing; A has {losses}"


def test_usual_settings_that_diverge_are_said_to(claim: Claim, walk: Walk) -> None:
    sentence = "Tuning alone: A diverges with its usual settings (optim.lr=1e-3)."
    assert tuning_sentence(walk(claim, usual_at(None)).comparison()) == sentence


def test_nothing_is_said_of_tuning_without_usual_settings(claim: Claim, walk: Walk) -> None:
    arms = (replace(claim.baseline, usual=()), claim.arm("b"))
    assert tuning_sentence(walk(replace(claim, arms=arms)).comparison()) == ""


def test_the_unit_is_what_the_baseline_gains_from_half_to_all_and_the_sd_is_pooled(claim: Claim, walk: Walk) -> None:
    def loss(run: Planned) -> float:
        return at(run.steps) + (0.01 * (run.seed - 2) if run.arm == "a" else 0.03 * (run.seed - 2))

    found = scatter(walk(claim, loss).comparison())
    assert found.unit == pytest.approx(at(80) - at(160))
    assert found.sd == pytest.approx(math.sqrt((0.01**2 + 0.03**2) / 2))  # seeds at -1, 0 and 1 have an sd of 1


def test_an_arm_that_is_only_shown_adds_no_scatter(claim: Claim, walk: Walk) -> None:
    def loss(run: Planned) -> float:
        return at(run.steps) + (0.01 if run.arm == "a" else 0.5) * run.seed

    row = replace(claim.fields.comparisons[0], claims={}, half_budget=None)
    found = scatter(walk(replace(claim, fields=replace(claim.fields, comparisons=[row])), loss).comparison())
    assert found.sd == pytest.approx(0.01)
    assert scatter(walk(claim, loss).comparison()).sd == pytest.approx(math.sqrt((0.01**2 + 0.5**2) / 2))


def test_a_diverged_run_leaves_the_scatter_of_the_others(claim: Claim, walk: Walk) -> None:
    def loss(run: Planned) -> float | None:
        return None if (run.arm, run.seed) == ("a", 2) else at(run.steps) + 0.01 * run.seed

    found = scatter(walk(claim, loss).comparison())
    assert found.unit == pytest.approx(at(80) - at(160))
    # of a: .01 and .03, one degree of freedom; of b: .01, .02 and .03, two
    assert found.sd == pytest.approx(math.sqrt((0.0002 * 1 + 0.0001 * 2) / 3))


def bracket(axis: Axis, left: float, middle: float, right: float) -> Bracket:
    values = [axis.value(axis.start, n) for n in (-1, 0, 1)]
    return Bracket(axis, dict(zip(values, (left, middle, right), strict=True)), values[1], (left, middle, right))


def test_what_a_tuned_arm_may_lack_is_the_distance_to_the_vertex_and_its_uncertainty() -> None:
    # kappa .1 and the optimum a quarter step to the right: .1 * 1.25^2, .1 * .25^2, .1 * .75^2 above it
    off = bracket(RATE, 0.15625, 0.00625, 0.05625)
    assert excess(Tuning([], brackets={"rate": off}), Scatter(1, 0.0), 2) == pytest.approx(0.1 * 0.25**2)
    taken = Tuning([], brackets={"rate": off}, took_vertex=True)
    assert excess(taken, Scatter(1, 0.0), 2) == pytest.approx(0.0)
    variance = 0.01**2 / 2 * (1 + 12 * 0.25**2) / (8 * 0.1**2)  # of the vertex, in steps squared: see vertex.py
    assert excess(taken, Scatter(1, 0.01), 2) == pytest.approx(0.1 * variance)


def test_what_all_axes_lack_adds_up_and_an_open_one_bounds_nothing() -> None:
    one = bracket(RATE, 0.15625, 0.00625, 0.05625)
    both = Tuning([], brackets={"rate": one, "decay": replace(one, axis=DECAY)})
    assert excess(both, Scatter(1, None), 2) == pytest.approx(2 * 0.1 * 0.25**2)
    open_ = Bracket(DECAY, {0.1: 0.0, 0.2: 1.0}, 0.1, None)
    assert excess(Tuning([], brackets={"rate": one, "decay": open_}), Scatter(1, 0.0), 2) is None


def test_an_axis_without_effect_lacks_nothing() -> None:
    flat = bracket(DECAY, 1.0, 1.0, 1.0)
    assert excess(Tuning([], brackets={"decay": flat}), Scatter(1, 0.1), 2) == 0.0


def test_uncertain_tuning_widens_the_interval_of_the_speed_up(claim: Claim, walk: Walk) -> None:
    found = walk(claim, noise=0.0).comparison()
    exact = speed_ups.speed_up(found, "b", "a")
    off = bracket(RATE, 0.15625, 0.00625, 0.05625)
    for arm, side in (("b", "high"), ("a", "low")):  # a better candidate is faster, a better baseline harder to reach
        changed = replace(found, tunings={**found.tunings, arm: Tuning([], brackets={"rate": off})})
        wider = speed_ups.speed_up(changed, "b", "a")
        assert exact is not None and wider is not None
        moved = abs(math.log(getattr(wider.interval, side) / getattr(exact.interval, side)))
        other = "low" if side == "high" else "high"
        assert moved > 0.005
        assert getattr(wider.interval, other) == pytest.approx(getattr(exact.interval, other), rel=1e-3)


def test_too_few_lengths_give_no_curve(claim: Claim, walk: Walk) -> None:
    found = walk(claim).comparison()
    few = replace(found, compared=[run for run in found.compared if run.plan.steps >= 120])
    assert speed_ups.speed_up(few, "b", "a") is None
    parts = [row for row in claim.kind.conclude(few).measures if row.verdict]
    assert [(row.name, row.verdict, row.estimate) for row in parts] == [
        (name, "undecided", None) for name in ("speed_up_steps", "speed_up_flops")
    ]
    assert all(row.note == "too few lengths beyond warm-up for a curve" for row in parts)


def test_the_figure_shows_ours_and_what_others_published_by_size(claim: Claim, walk: Walk) -> None:
    about = {"source": "arXiv:1", "tag": "printed", "setting": "s", "arm": "b"}
    evidence = [
        Published("large", quantity="speed-up in steps", value=1.1, parameters=1e9, **about),
        Published("small", quantity="speed-up in steps", value=1.4, parameters=1e8, **about),
        Published("other", quantity="loss difference", value=-0.1, parameters=1e8, **about),
        Published("of no size", quantity="speed-up in steps", value=9.0, **about),
    ]
    claim = replace(claim, fields=replace(claim.fields, evidence=evidence))
    figure = claim.kind.conclude(walk(claim).comparison()).figures[0]
    assert figure.name == "speed-ups" and figure.hline == 2.0
    ours, theirs = figure.series
    assert ours.y[0] == pytest.approx(2.0, rel=0.05) and not ours.dashed
    assert (theirs.x, theirs.y, theirs.arm) == ([1e8, 1e9], [1.4, 1.1], "b")


@pytest.mark.parametrize(
    ("truth", "drawn"), [(6.0, (pytest.approx(4.0), None, None)), (0.1, (None, None, pytest.approx(0.25)))]
)
def test_a_censored_speed_up_is_drawn_as_a_bound_without_an_estimate(
    truth: float, drawn: tuple[Any, Any, Any], claim: Claim, walk: Walk
) -> None:
    (series,) = claim.kind.conclude(walk(claim, speed_up=truth, noise=0.0).comparison()).figures[0].series
    assert series.low is not None and series.high is not None
    assert (series.low[0], series.y[0], series.high[0]) == drawn
