"""Each regime check with runs that pass it and runs that do not; they happen in memory.

T is 160 steps: the baseline ends at 3 + 8 * 160^-.35 and gains .374 nats from T/2 on, the unit of the checks.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.verdicts import NO_EFFECT, OUT_OF_REGIME, REPRODUCED, UNDECIDED, VERDICTS, WEAKER
from report.results import Check
from reproduce import records, regime
from reproduce.arms import ItselfFields
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.plans import Planned
from reproduce.protocols import Comparison
from reproduce.records import Recorded
from reproduce.regime import Surroundings, outranked

Walk = Callable[..., Any]
SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "global_batch=16"]
AROUND = Surroundings(best_known={}, bigram=(9.0, 100), power=0.9)
UNIT = 8 * (80**-0.35 - 160**-0.35)


@pytest.fixture
def claim(write_claim: Callable[..., Path]) -> Claim:
    return load("twice", "nano", SMALL, folder=write_claim(tuned_axes=3))


def checks(found: Comparison, verdict: str = REPRODUCED, **around: Any) -> dict[str, Check]:
    """By name."""
    evidence = found.claim.kind.conclude(found)
    listed = regime.of_runs(found, evidence, verdict, replace(AROUND, **around))
    assert len({check.id for check in listed}) == len(listed)
    return {check.id: check for check in listed}


def with_arm(claim: Claim, name: str, **changes: Any) -> Claim:
    arms = tuple(replace(arm, **changes) if arm.name == name else arm for arm in claim.arms)
    return replace(claim, arms=arms)


def test_a_comparison_that_passes_everything_names_its_checks_in_order(claim: Claim, walk: Walk) -> None:
    claim = replace(claim, fields=replace(claim.fields, paper_batch_tokens=1.0))
    found = checks(walk(claim).comparison())
    assert list(found) == ["R1", "R2", "R3", "R4", "R5", "R5b", "R7", "R8", "R10", "R11"]
    assert all(check.passed for check in found.values())
    assert all(check.label and check.threshold and check.value for check in found.values())


def test_r1_a_number_beyond_the_range_fails_only_where_its_bound_decides_nothing(claim: Claim, walk: Walk) -> None:
    beyond = checks(walk(claim, speed_up=6.0).comparison())["R1"]  # the candidate's shortest run is T/4
    assert (beyond.passed, beyond.value) == (True, "2 of 2 beyond, given as a bound")  # "> 4x" is over 2
    assert checks(walk(claim).comparison())["R1"].value == "all inside"
    # that it is more than 4 says nothing of a claim of 64, whose middle is 8
    pair = claim.fields.comparisons[0]
    much = replace(pair.claims["steps"], claimed=64.0, least=56.0)
    far = replace(claim, fields=replace(claim.fields, comparisons=[replace(pair, claims={"steps": much})]))
    open_ = checks(walk(far, speed_up=6.0).comparison())["R1"]
    assert open_.passed is False and "speed-up in steps, B against A" in open_.note


@pytest.mark.parametrize(("noise", "passed"), [(0.02, True), (0.2, False)])
def test_r2_seeds_must_scatter_by_a_tenth_of_a_unit_at_most(
    noise: float, passed: bool, claim: Claim, walk: Walk
) -> None:
    check = checks(walk(claim, noise=noise).comparison())["R2"]
    assert check.passed is passed
    units, nats, unit = _numbers(check.value)
    assert units == pytest.approx(nats / unit, abs=0.01)


def test_r2_is_not_known_from_one_seed(claim: Claim, walk: Walk) -> None:
    one = replace(claim, fields=replace(claim.fields, seeds=[1]))
    assert checks(walk(one).comparison())["R2"].passed is None


def test_r2_fails_where_the_baseline_learns_nothing_from_half_to_all(claim: Claim, walk: Walk) -> None:
    check = checks(walk(claim, lambda run: 3.0 + run.steps / 1e3 + run.seed / 1e6).comparison())["R2"]
    assert check.passed is False and "there is no unit" in check.value


def test_r3_an_optimum_at_an_end_fails(claim: Claim, walk: Walk) -> None:
    check = checks(walk(claim, warm_up=10_000.0).comparison())["R3"]  # beyond what fits into a run
    assert check.passed is False and "B: warm-up at an end" in check.value
    assert checks(walk(claim).comparison())["R3"].passed


def test_r3_rates_that_are_not_clearly_worse_fail(claim: Claim, walk: Walk) -> None:
    assert checks(walk(claim, bowl=0.01, noise=0.02).comparison())[
        "R3"
    ].passed  # a seed's luck is that of all its points

    def loss(run: Planned) -> float:
        rate = next(float(each.partition("=")[2]) for each in reversed(run.overrides) if each.startswith("optim.lr="))
        octaves = math.log2(rate / (2e-3 if run.arm == "a" else 2e-4))
        luck = random.Random(f"{run.overrides}").gauss(0, 0.05)  # of every run
        return 3 + 8 * run.steps**-0.35 + 0.01 * octaves**2 + luck

    check = checks(walk(claim, loss).comparison())["R3"]
    assert check.passed is False and "rates on both sides are not clearly worse" in check.value


def test_r3_a_point_that_is_off_the_optimum_fails(claim: Claim, walk: Walk) -> None:
    def loss(run: Planned, off: float) -> float:
        rate = next(float(each.partition("=")[2]) for each in reversed(run.overrides) if each.startswith("optim.lr="))
        octaves = math.log2(rate / (2e-3 if run.arm == "a" else 2e-4))
        spoilt = 0.1 if abs(octaves - round(octaves)) > 0.01 else 0.0  # between the grid's points it is worse
        return 3 + 8 * run.steps**-0.35 + 0.3 * (octaves - off) ** 2 + spoilt + run.seed / 1e4

    assert checks(walk(claim, lambda run: loss(run, 0.1)).comparison())["R3"].passed  # .3 * .01 nats
    check = checks(walk(claim, lambda run: loss(run, 0.4)).comparison())["R3"]  # .3 * .16 = .13 units
    assert check.passed is False and check.value == "A is 0.13 units above its optimum"


def test_r3_and_r5_do_not_hear_arms_that_no_part_is_about(claim: Claim, walk: Walk) -> None:
    found = walk(claim, warm_up=10_000.0).comparison()
    assert checks(found)["R3"].passed is False and checks(found)["R5"].passed is False
    row = replace(claim.fields.comparisons[0], candidate="a", baseline="a")  # as if b were only shown
    fields = replace(claim.fields, comparisons=[row])
    of_b = {name: tuning for name, tuning in found.tunings.items() if name == "b"}
    alone = replace(found, claim=replace(claim, fields=fields), tunings=of_b)
    assert not {"R3", "R5"} & checks(alone).keys()  # what is left has no tuning


@pytest.mark.parametrize(("better", "passed"), [(0.0008, True), (0.002, False), (-0.05, True)])
def test_r4_a_better_run_of_the_baseline_fails(better: float, passed: bool, claim: Claim, walk: Walk) -> None:
    found = walk(claim).comparison()
    ours = records.losses(found.compared, "a", 160)  # seeds scatter by .0005 nats
    by_hand = {"optim.lr=7e-3": {1: ours[1] - better, 99: 0.0}}  # a seed that we have not run says nothing
    check = checks(found, best_known=by_hand)["R4"]
    assert check.passed is passed
    assert ("optim.lr=7e-3" in check.value) is (better > 0)


def test_r4_a_better_run_with_a_tuning_seed_fails_too(claim: Claim, walk: Walk) -> None:
    found = walk(claim).comparison()
    ours = next(run.record.loss for run in found.tuned_at_point("a") if run.plan.seed == 7)
    assert checks(found, best_known={"by hand": {7: ours - 0.05}})["R4"].passed is False


def test_r5_warm_up_is_judged_by_what_doubling_it_gains(claim: Claim, walk: Walk) -> None:
    inside = checks(walk(claim, warm_up=16.0).comparison())["R5"]
    assert inside.passed and "beyond 16 steps" in inside.value
    at_end = checks(walk(claim, warm_up=10_000.0).comparison())["R5"]
    assert at_end.passed is False and "B is best with 128 steps, the most that were run" in at_end.value  # .8 T


@pytest.mark.parametrize(("warm_up", "passed"), [(40, True), (39, False)])
def test_r5_untuned_warm_up_must_be_two_memories_of_every_moment(
    warm_up: int, passed: bool, claim: Claim, walk: Walk
) -> None:
    fields = replace(claim.fields, tuned_axes=1, warmup_steps=warm_up)
    claim = with_arm(replace(claim, fields=fields), "a", memories=("optim.betas.1",))  # AdamW's beta2 is .95 here
    check = checks(walk(claim, warm_up=8.0).comparison())["R5"]
    assert (check.passed, "A (betas) needs 40" in check.value) == (passed, True)


@pytest.mark.parametrize(("undecayed", "passed"), [(0.2, True), (-0.05, False)])
def test_r5b_a_short_run_that_ends_above_the_long_one_undecayed_fails(
    undecayed: float, passed: bool, claim: Claim, walk: Walk
) -> None:
    def moved(run: Recorded) -> dict[str, Any]:
        curve = dict(run.record.curve)
        if run.plan.arm == "b":
            curve["val/loss"] = [loss - 0.2 + undecayed for loss in curve["val/loss"]]
        return curve

    check = checks(walk(claim, noise=0.0).comparison(curve=moved))["R5b"]
    assert check.passed is passed
    if not passed:
        assert check.value == "B at 0.25 T: +0.050 nats; B at 0.5 T: +0.050 nats; B at 0.75 T: +0.050 nats"


@pytest.mark.parametrize(("speed_up", "passed"), [(0.6, True), (1.0, False), (1.6, False)])
def test_r5b_does_not_count_the_short_runs_of_a_slower_candidate_which_no_number_rests_on(
    speed_up: float, passed: bool, claim: Claim, walk: Walk
) -> None:
    def moved(run: Recorded) -> dict[str, Any]:
        curve = dict(run.record.curve)
        if run.plan.arm == "b":
            curve["val/loss"] = [loss - 0.25 for loss in curve["val/loss"]]
        return curve

    check = checks(walk(claim, speed_up=speed_up).comparison(curve=moved))["R5b"]
    assert check.passed is passed
    assert ("B at 0.25 T" in check.value) is not passed


def test_r5b_always_counts_the_baselines_short_runs_in_which_the_unit_is_measured(claim: Claim, walk: Walk) -> None:
    def moved(run: Recorded) -> dict[str, Any]:
        curve = dict(run.record.curve)
        if run.plan.arm == "a":
            curve["val/loss"] = [loss - 0.25 for loss in curve["val/loss"]]
        return curve

    for speed_up, is_read in ((0.6, True), (1.6, False)):  # below T/2 only where its curve is read
        check = checks(walk(claim, speed_up=speed_up).comparison(curve=moved))["R5b"]
        assert check.passed is False and "A at 0.5 T" in check.value
        assert ("A at 0.25 T" in check.value) is is_read


def test_r5b_is_not_known_without_evaluations(claim: Claim, walk: Walk) -> None:
    def none(run: Recorded) -> dict[str, Any]:
        return {key: [] for key in run.record.curve}

    assert checks(walk(claim).comparison(curve=none))["R5b"].passed is None


@pytest.mark.parametrize(("rate", "passed"), [(0.1, True), (0.5, True), (0.039, False), (0.51, False), (None, False)])
def test_r6_a_diagnostic_outside_its_bounds_fails(rate: float | None, passed: bool, claim: Claim, walk: Walk) -> None:
    bounds = ItselfFields(label="win rate", diagnostic="optim/win_rate", low=0.1, high=0.5)
    found = walk(with_arm(claim, "b", itself=(bounds,))).comparison(
        diagnostics={} if rate is None else {"optim/win_rate": rate}
    )
    assert checks(found)["R6"].passed is passed


@pytest.mark.parametrize(
    ("every", "budget", "passed"),
    [("10", 2400, True), ("10", 2280, False), ("1", 240, True), ("optim.betas.0", 216, True)],  # every .9 steps
)
def test_r6_an_average_that_has_not_settled_fails(
    every: str, budget: int, passed: bool, claim: Claim, walk: Walk
) -> None:
    # 1 - .99^n >= .9 from n = 230 on: ln .1 / ln .99 = 229.1
    settled = ItselfFields(label="curvature", beta="optim.betas.1", every=every)
    fields = replace(claim.fields, budget=budget, evaluations=24)
    arm = {"itself": (settled,), "overrides": ("optim=lion", "optim.betas=[0.9,0.99]")}
    found = walk(with_arm(replace(claim, fields=fields), "b", **arm), lambda run: 3.0 + 1 / run.steps).comparison()
    assert checks(found)["R6"].passed is passed
    assert [check.passed for check in regime.before(found.claim) if check.id == "R6"] == [passed]


def test_r6_a_key_that_no_arm_has_fails(claim: Claim, walk: Walk) -> None:
    settled = ItselfFields(label="curvature", beta="optim.gamma")
    assert checks(walk(with_arm(claim, "b", itself=(settled,))).comparison())["R6"].passed is False


@pytest.mark.parametrize(("table", "passed"), [(4.72, True), (4.60, False)])
def test_r7_the_baseline_must_be_well_under_a_bigram_table(
    table: float, passed: bool, claim: Claim, walk: Walk
) -> None:
    found = walk(claim, noise=0.0).comparison()  # ends at 4.354
    check = checks(found, bigram=(table, 12_000))["R7"]
    assert check.passed is passed and "12,000 tokens" in check.value
    assert checks(found, bigram=None)["R7"].passed is None


def test_r8_counts_tokens_per_parameter_of_the_blocks(claim: Claim, walk: Walk) -> None:
    # one layer of width 16: 12 * 256 in matrices, 13 * 16 in vectors, and the last norm's 2 * 16; 16 * 16 tokens a step
    check = checks(walk(claim).comparison())["R8"]
    ratio = 160 * 256 / (12 * 256 + 13 * 16 + 2 * 16)
    assert check.passed and _numbers(check.value)[0] == pytest.approx(ratio, abs=0.05)
    wider = replace(claim, common=(*claim.common, "model.n_embd=18"))  # 12 * 324 + 15 * 18: 9.85 tokens each
    assert _before(wider)["R8"].passed is False


@pytest.mark.parametrize(("tokens", "passed"), [(None, True), (40_960, True), (10_240, True), (10_239, False)])
def test_r8_allows_four_epochs(tokens: int | None, passed: bool, claim: Claim, walk: Walk) -> None:
    for check in (_before(claim, tokens)["R8"], checks(walk(claim).comparison(), training_tokens=tokens)["R8"]):
        assert check.passed is passed
        assert ("epochs" in check.value) is (tokens is not None)


@pytest.mark.parametrize(("warm_up", "passed"), [(32.0, True), (64.0, False)])
def test_r9_counts_before_the_end_of_warm_up_fail(
    warm_up: float, passed: bool, write_claim: Callable[..., Path], walk: Walk
) -> None:
    row = {"quantity": "clipped_share", "arm": "b", "claimed": 0.02, "no_effect": 0.1}
    claim = load("twice", "nano", SMALL, folder=write_claim(base="sweep", sweep=None, expect=[row]))
    found = walk(claim, warm_up=warm_up).comparison(clipped_share=0.0)
    assert checks(found)["R9"].passed is passed  # they count from step 40 on
    loss = {"quantity": "best_loss", "arm": "b", "against": "a", "claimed": 0.0, "no_effect": 0.1}
    other = load("twice", "nano", SMALL, folder=write_claim(base="sweep", sweep=None, expect=[loss]))
    assert "R9" not in checks(walk(other).comparison())  # nothing is counted


@pytest.mark.parametrize(
    ("paper", "second", "passed"),
    [
        (None, None, None),  # the claim's file does not say
        (2560.0, None, True),  # ten times ours
        (2561.0, None, None),
        (2561.0, (REPRODUCED, 4.0), True),
        (2561.0, (WEAKER, 4.0), False),
        (2561.0, (OUT_OF_REGIME, 4.0), None),
    ],
)
def test_r10_a_much_larger_batch_of_the_paper_asks_for_a_second_one(
    paper: float | None, second: tuple[str, float] | None, passed: bool | None, claim: Claim, walk: Walk
) -> None:
    claim = replace(claim, fields=replace(claim.fields, paper_batch_tokens=paper))
    assert checks(walk(claim).comparison(), second_batch=second)["R10"].passed is passed
    assert _before(claim)["R10"].passed is (True if paper == 2560 else None)


@pytest.mark.parametrize(("paper", "said"), [(2561.0, "10.004 times"), (25_610.0, "100 times"), (None, "does not say")])
def test_r10_says_how_large_the_papers_batch_is(paper: float | None, said: str, claim: Claim) -> None:
    value = _before(replace(claim, fields=replace(claim.fields, paper_batch_tokens=paper)))["R10"].value
    assert said in value


@pytest.mark.parametrize(
    ("power", "value"), [(0.8, "0.80"), (0.29, "0.29"), (0.7999, "0.7999"), (0.797, "0.797"), (1.0, "1.00")]
)
def test_r11_a_true_claim_that_would_seldom_be_reproduced_fails(
    power: float, value: str, claim: Claim, walk: Walk
) -> None:
    found = walk(claim).comparison()
    check = checks(found, power=power)["R11"]
    assert (check.passed, check.value) == (power >= 0.8, value)
    assert "R11" not in checks(found, power=None)


def check(name: str, passed: bool | None = False) -> Check:
    return Check(name, "label", "wanted", "value", passed)


@pytest.mark.parametrize("name", ["R1", "R2", "R3", "R4", "R5", "R5b", "R6", "R7", "R8", "R9", "R10", "R11"])
@pytest.mark.parametrize("verdict", sorted(set(VERDICTS) - {OUT_OF_REGIME}))
def test_a_failed_check_outranks_the_verdict_but_no_effect_outlives_noise_and_range(name: str, verdict: str) -> None:
    outlives = verdict == NO_EFFECT and name in ("R1", "R2", "R11")
    assert outranked(verdict, [check("R8", True), check(name)]) == (verdict if outlives else OUT_OF_REGIME)


def test_checks_that_pass_or_are_not_known_leave_the_verdict() -> None:
    assert outranked(UNDECIDED, [check("R3", True), check("R7", None)]) == UNDECIDED
    assert outranked(NO_EFFECT, [check("R2"), check("R3")]) == OUT_OF_REGIME
    assert regime.failed([check("R2"), check("R3", None), check("R8")]) == "R2 (label), R8 (label)"


def test_what_is_known_before_any_run_is_the_memories_averages_length_and_batch(claim: Claim) -> None:
    assert list(_before(claim)) == ["R8", "R10"]
    arm = {"memories": ("optim.betas.1",), "itself": (ItselfFields(label="m", beta="optim.betas.1"),)}
    full = with_arm(replace(claim, fields=replace(claim.fields, paper_batch_tokens=1e6)), "b", **arm)
    found = _before(full)
    assert list(found) == ["R5", "R6", "R8", "R10"]
    # Lion's beta2 is .98: 100 steps of warm-up, and 160 steps settle it to 1 - .98^160 = .961
    assert found["R5"].passed is False and "B (betas) needs 100" in found["R5"].value
    assert found["R6"].passed and "settled to 0.961" in found["R6"].value


def _before(claim: Claim, tokens: int | None = None) -> dict[str, Check]:
    return {check.id: check for check in regime.before(claim, tokens)}


def _numbers(text: str) -> Sequence[float]:
    return [float(each) for each in re.findall(r"\d+\.\d+", text)]
