"""Which runs a claim asks for, in which order; they happen in memory."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce import protocols
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.plans import Planned
from reproduce.training import decay_begins

Write = Callable[..., Path]
Walk = Callable[..., Any]


@pytest.fixture
def claim(write_claim: Write) -> Claim:
    return load("twice", "nano", folder=write_claim())


def paper_claim(write_claim: Write, *wanted: str) -> Claim:
    return load("twice", "nano", folder=write_claim(protocols=list(wanted)))


def of_purpose(batches: list[list[Planned]], *purposes: str) -> list[Planned]:
    return [run for batch in batches for run in batch if run.purpose in purposes]


def test_the_papers_protocol_runs_both_budgets_at_the_papers_point_and_schedule(write_claim: Write, walk: Walk) -> None:
    (batch,) = walk(paper_claim(write_claim, "paper")).batches
    assert {(run.arm, run.steps, run.seed) for run in batch} == {
        (arm, steps, seed) for arm in ("a", "b") for steps in (80, 160) for seed in (1, 2, 3)
    }
    assert {run.point for run in batch} == {("optim.lr=5e-3",), ("optim.lr=5e-4",)}
    assert all("schedule=cosine" in run.overrides for run in batch)


def test_every_run_has_a_full_schedule_of_its_own_and_the_same_warm_up(claim: Claim, walk: Walk) -> None:
    for run in of_purpose(walk(claim).batches, "full budget", "branch"):
        assert f"max_steps={run.steps}" in run.overrides
        assert "schedule.warmup_steps=8" in run.overrides  # steps, whatever the length
        assert {"schedule=wsd", "schedule.decay_fraction=0.2", "eval_every=20"} <= set(run.overrides)


def test_all_arms_are_tuned_by_the_same_rule_with_seeds_that_the_comparison_never_sees(
    claim: Claim, walk: Walk
) -> None:
    found = walk(claim)
    tuning, rest = (
        [run for batch in found.batches for run in batch if (run.purpose == "tuning") is wanted]
        for wanted in (True, False)
    )
    assert Counter(run.arm for run in tuning) == {"a": 14, "b": 14}  # start and six neighbours on three axes, two seeds
    assert {run.seed for run in tuning} == {7, 8} and not {run.seed for run in rest} & {7, 8}
    assert {run.steps for run in tuning} == {160}  # at the full length
    assert all(run.purpose == "tuning" for batch in found.batches[:-2] for run in batch)


def test_the_best_points_are_compared_over_all_lengths_and_seeds(claim: Claim, walk: Walk) -> None:
    compared = of_purpose(walk(claim, rates={"a": 4e-3, "b": 2e-4}).batches, "full budget", "branch")
    assert {(run.arm, run.steps, run.seed) for run in compared} == {
        (arm, steps, seed) for arm in ("a", "b") for steps in (40, 80, 120, 160) for seed in (1, 2, 3)
    }
    assert {(run.arm, *run.point) for run in compared} == {
        (arm, f"optim.lr={lr}", "optim.weight_decay=0.1", "schedule.warmup_steps=8")
        for arm, lr in (("a", "0.004"), ("b", "0.0002"))
    }


def test_branches_are_planned_with_their_trunk_and_asked_for_after_it(claim: Claim, walk: Walk) -> None:
    *_, trunks, branches = walk(claim).batches
    assert {run.purpose for run in trunks} == {"full budget", "usual settings", "cosine check"}
    assert {run.purpose for run in branches} == {"branch"}
    for run in branches:
        assert run.trunk is not None and run.trunk.config_hash in {each.config_hash for each in trunks}
        assert (run.trunk.arm, run.trunk.seed, run.trunk.point) == (run.arm, run.seed, run.point)
        # 20 % of the steps lower the rate: until then, the run is its trunk.
        assert run.branches_at == {40: 32, 80: 64, 120: 96}[run.steps]
        assert run.own_steps == run.steps - run.branches_at
    kept = {each for run in trunks for each in run.overrides if each.startswith("save_at=")}
    assert kept == {"save_at=[32,64,96]"}
    trunk = next(run for run in trunks if run.purpose == "full budget")
    assert decay_begins(trunk.steps) >= 96


def test_branches_cost_at_most_45_percent_of_separate_runs(claim: Claim, walk: Walk) -> None:
    compared = of_purpose(walk(claim).batches, "full budget", "branch")
    assert sum(run.own_steps for run in compared if run.purpose == "branch") == 2 * 3 * (8 + 16 + 24)
    fields = replace(claim.fields, fractions=[0.25, 0.5, 0.625, 0.75, 0.875, 1.0], budget=1600, evaluations=8)
    long = walk(replace(claim, fields=fields), lambda run: 3.0).batches
    compared = of_purpose(long, "full budget", "branch")
    separate = sum(run.steps for run in compared if run.arm == "a" and run.seed == 1)
    ours = sum(run.own_steps for run in compared if run.arm == "a" and run.seed == 1)
    assert separate == 1600 * (0.25 + 0.5 + 0.625 + 0.75 + 0.875 + 1)
    assert ours == 1600 * (1 + 0.2 * 3.0) and ours <= 0.45 * separate


def test_a_length_whose_rate_falls_before_warm_up_ends_is_no_branch(claim: Claim, walk: Walk) -> None:
    found = walk(claim, warm_up=64.0)  # the run over 40 steps begins to lower its rate at step 32
    lengths = {run.steps for run in of_purpose(found.batches, "full budget", "branch")}
    assert lengths == {80, 120, 160}


def test_the_usual_settings_and_the_cosine_check_are_run_once(claim: Claim, walk: Walk) -> None:
    batches = walk(claim).batches
    usual, cosine = of_purpose(batches, "usual settings"), of_purpose(batches, "cosine check")
    assert [(run.arm, run.seed, run.steps) for run in usual] == [("a", seed, 160) for seed in (1, 2, 3)]
    assert {run.point for run in usual} == {("schedule.warmup_steps=8", "optim.lr=1e-3")}
    assert [(run.arm, run.seed, run.steps) for run in cosine] == [("a", 1, 160), ("b", 1, 160)]
    assert all("schedule=cosine" in run.overrides and "schedule=wsd" not in run.overrides for run in cosine)


def test_usual_settings_that_tuning_chooses_are_no_run_of_their_own(write_claim: Write, walk: Walk) -> None:
    claim = load("twice", "nano", folder=write_claim())
    usual = ("optim.lr=2e-3", "optim.weight_decay=0.1")
    claim = replace(claim, arms=(replace(claim.baseline, usual=usual), claim.arm("b")))
    found = walk(claim)
    assert not of_purpose(found.batches, "usual settings")
    comparison = found.comparison()
    assert [run.plan.purpose for run in comparison.besides].count("usual settings") == 3  # known all the same


def test_a_diverged_point_loses_the_tuning(claim: Claim, walk: Walk) -> None:
    def loss(run: Planned) -> float | None:
        return None if run.seed == 8 and "optim.lr=0.001" in run.point else 3.0 + len(run.point[0]) / 100

    found = walk(claim, loss).comparison()
    assert found.tunings["a"].brackets["rate"].losses[1e-3] == math.inf
    assert found.points["a"][0] == "optim.lr=0.002"


def test_an_arm_that_diverged_everywhere_is_still_compared(claim: Claim, walk: Walk) -> None:
    batches = walk(claim, lambda run: None if run.arm == "b" else 1.0).batches
    assert {run.arm for run in of_purpose(batches, "full budget")} == {"a", "b"}


@pytest.mark.parametrize("loss", [math.nan, -math.inf, math.inf, None])
def test_a_loss_that_is_not_finite_is_never_the_best(claim: Claim, walk: Walk, loss: float | None) -> None:
    found = walk(claim, lambda run: loss if "optim.lr=0.001" in run.point else 3.0).comparison()
    assert found.points["a"][0] == "optim.lr=0.002"


def test_the_same_outcomes_give_the_same_plan(claim: Claim, walk: Walk) -> None:
    assert walk(claim).batches == walk(claim).batches


def test_no_run_is_planned_twice(write_claim: Write, walk: Walk) -> None:
    batches = walk(paper_claim(write_claim, "paper", "tuned")).batches
    hashes = [run.config_hash for batch in batches for run in batch]
    assert len(hashes) == len(set(hashes)) == 12 + 28 + 24 + 3 + 2


def test_a_run_that_both_protocols_want_is_planned_once(write_claim: Write, walk: Walk) -> None:
    own = ["schedule=wsd", "schedule.decay_fraction=0.2", "schedule.final_lr_fraction=0.0", "schedule.warmup_steps=8"]
    folder = write_claim(protocols=["paper", "tuned"], paper_schedule=own, overrides=["optim.weight_decay=0.1"])
    claim = load("twice", "nano", folder=folder)
    arms = tuple(replace(arm, paper=(f"optim.lr={arm.start['rate']}",)) for arm in claim.arms)
    batches = walk(replace(claim, arms=arms)).batches
    purposes = Counter(run.purpose for batch in batches for run in batch)
    assert purposes["half budget"] + purposes["branch"] == 2 * 3 * 3  # T/2 is asked for by both
    assert purposes["full budget"] == 2 * 3


def test_what_does_not_change_the_result_does_not_change_the_identity(write_claim: Write) -> None:
    folder = write_claim()

    def hashes(*overrides: str) -> list[str]:
        claim = load("twice", "nano", overrides, folder=folder)
        return [run.config_hash for run in protocols.next_runs(protocols.of(claim), {})]

    assert hashes() == hashes("micro_batch=2", "logging=jsonl", "save_every=3")
    assert not set(hashes()) & set(hashes("grad_clip=2"))


def test_checkpoints_for_branches_do_not_make_a_trunk_another_run(claim: Claim, walk: Walk) -> None:
    from reproduce.plans import plan

    trunk = of_purpose(walk(claim).batches, "full budget")[0]
    arm = claim.arm(trunk.arm)
    alone = plan(claim, arm, trunk.protocol, "alone", trunk.seed, trunk.steps, trunk.point)
    assert trunk.config_hash == alone.config_hash and trunk.overrides != alone.overrides


def test_a_branch_is_the_run_that_it_replaces(claim: Claim, walk: Walk) -> None:
    from reproduce.plans import plan

    branch = of_purpose(walk(claim).batches, "branch")[0]
    arm = claim.arm(branch.arm)
    alone = plan(claim, arm, branch.protocol, "alone", branch.seed, branch.steps, branch.point)
    assert (branch.config_hash, branch.overrides) == (alone.config_hash, alone.overrides)


@pytest.mark.parametrize("base", ["speed_up", "sweep"])
def test_the_forecast_of_runs_is_right_where_tuning_starts_at_its_optimum(
    base: str, write_claim: Write, walk: Walk
) -> None:
    over = {"sweep": {"label": "rate", "axis": "rate", "values": [0.3, 1.0, 3.0]}} if base == "sweep" else {}
    claim = load("twice", "nano", folder=write_claim(base=base, **over))
    forecast = Counter((run.purpose, run.arm, run.steps, run.seed) for run in protocols.expected(protocols.of(claim)))
    rates = {"a": 2.1e-3, "b": 2.1e-4}  # off the grid, as ever, so that the vertex is a run of its own
    real = Counter(
        (run.purpose, run.arm, run.steps, run.seed) for batch in walk(claim, rates=rates).batches for run in batch
    )
    assert forecast == real


def test_a_sweep_runs_its_values_at_the_tuned_point_with_the_seeds_of_the_comparison(
    write_claim: Write, walk: Walk
) -> None:
    claim = load("twice", "nano", folder=write_claim(base="sweep"))
    found = walk(claim, rates={"a": 4e-3, "b": 2e-4})
    swept = of_purpose(found.batches, "sweep")
    # the value 1 is the run that is compared anyway
    assert {(run.arm, run.point[0], run.seed) for run in swept} == {
        (arm, f"optim.lr={lr}", seed)
        for arm, rates in (("a", ("0.002", "0.008")), ("b", ("0.0001", "0.0004")))
        for lr in rates
        for seed in (1, 2, 3)
    }
    beside = [run.plan for run in found.comparison().besides if run.plan.value is not None]
    assert Counter((run.arm, run.value) for run in beside) == {(a, v): 3 for a in "ab" for v in (0.5, 1.0, 2.0)}


def test_a_sweep_of_overrides_sets_them_at_every_value(write_claim: Write, walk: Walk) -> None:
    sets = {"a": ["grad_clip={}"], "b": ["grad_clip={}"]}
    over = {"label": "clipping", "values": [1, 10], "sets": sets}
    claim = load("twice", "nano", folder=write_claim(base="sweep", sweep=over))
    swept = [run.plan for run in walk(claim).comparison().besides if run.plan.value is not None]
    assert {(run.arm, run.value, run.point[-1]) for run in swept} == {
        (arm, value, f"grad_clip={value}") for arm in "ab" for value in (1, 10)
    }


def test_an_arm_that_the_claim_leaves_untuned_is_compared_at_its_fixed_point(write_claim: Write, walk: Walk) -> None:
    arms = {
        "a": {"label": "A", "role": "baseline", "overrides": ["optim=adamw"], "axes": _rate(2e-3)},
        "b": {"label": "B", "role": "candidate", "overrides": ["optim=adamw"], "fixed": ["optim.lr=1e-3"]},
    }
    claim = load("twice", "nano", folder=write_claim(arms=arms, unequal="that is the claim", paper_schedule=None))
    found = walk(claim, rates={"a": 2e-3, "b": 2e-3})
    assert {run.arm for run in of_purpose(found.batches, "tuning")} == {"a"}
    assert found.comparison().points["b"] == ("schedule.warmup_steps=8", "optim.lr=1e-3")


def _rate(start: float) -> dict[str, Any]:
    return {"rate": {"sets": ["optim.lr={}"], "start": start}}
