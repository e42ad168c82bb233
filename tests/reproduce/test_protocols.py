import math
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce import protocols
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.kinds.speed_up import Paper, Tuned
from reproduce.kinds.sweep import GridThenSeeds
from reproduce.plans import Planned
from reproduce.protocols import next_runs

Write = Callable[..., Path]


def loss_of(run: Planned) -> float:
    """Lowest at the second point of a grid."""
    lr = float(run.point[0].partition("=")[2])
    return abs(lr / {"a": 2e-3, "b": 2e-4}[run.arm] - 1) + 10 / run.steps + run.seed / 1000


def walked(wanted: list[protocols.Protocol], loss: Callable[[Planned], float | None] = loss_of) -> list[list[Planned]]:
    """All batches, every run of which gets its loss."""
    outcomes: dict[str, float | None] = {}
    batches = []
    while batch := next_runs(wanted, outcomes):
        batches.append(batch)
        outcomes |= {run.config_hash: loss(run) for run in batch}
    return batches


@pytest.fixture
def claim(write_claim: Write) -> Claim:
    return load("twice", "nano", folder=write_claim())


def test_the_papers_protocol_runs_the_baseline_for_both_budgets_and_the_candidate_for_half(claim: Claim) -> None:
    (batch,) = walked([Paper(claim)])
    assert {(run.arm, run.steps, run.seed) for run in batch} == {
        (arm, steps, seed) for arm, steps in (("a", 160), ("a", 80), ("b", 80)) for seed in (1, 2, 3)
    }
    assert {run.point for run in batch} == {("optim.lr=5e-3",), ("optim.lr=5e-4",)}


def test_every_run_has_a_full_schedule_of_its_own(claim: Claim) -> None:
    for run in walked([Paper(claim)])[0]:
        assert f"max_steps={run.steps}" in run.overrides
        assert f"schedule.warmup_steps={run.steps // 10}" in run.overrides
        assert f"eval_every={run.steps // 4}" in run.overrides


def test_both_arms_get_the_same_tuning_and_the_best_points_are_compared_with_fresh_seeds(claim: Claim) -> None:
    first, second, comparison = walked([Tuned(claim)])
    for batch, steps, n in ((first, 40, 3), (second, 80, 2)):
        assert [run.arm for run in batch] == ["a"] * n + ["b"] * n
        assert {(run.steps, run.seed) for run in batch} == {(steps, 7)}
    assert {run.seed for run in comparison} == {1, 2, 3}
    assert {(run.arm, run.point) for run in comparison} == {("a", ("optim.lr=2e-3",)), ("b", ("optim.lr=2e-4",))}
    assert sorted({run.steps for run in comparison if run.arm == "b"}) == [80, 100, 120, 140, 160]
    assert sorted({run.steps for run in comparison if run.arm == "a"}) == [80, 160]


def test_a_comparison_may_have_budgets_of_its_own(write_claim: Write) -> None:
    row = {"candidate": "b", "baseline": "a", "claimed": {"gap": 1.0}, "fractions": {"tuned": [0.5, 1.0]}}
    claim = load("twice", "nano", folder=write_claim(comparisons=[row]))
    assert {run.steps for run in walked([Tuned(claim)])[-1] if run.arm == "b"} == {80, 160}
    assert {run.steps for run in walked([Paper(claim)])[-1] if run.arm == "b"} == {80}  # the protocol's


def test_a_diverged_point_loses_the_tuning_and_a_tie_goes_to_the_earlier(claim: Claim) -> None:
    def loss(run: Planned) -> float | None:
        return None if run.point in (("optim.lr=1e-3",), ("optim.lr=1e-4",)) else 1.0

    assert {run.point for run in walked([Tuned(claim)], loss)[-1]} == {("optim.lr=2e-3",), ("optim.lr=2e-4",)}


def test_an_arm_that_diverged_everywhere_is_still_compared(claim: Claim) -> None:
    batches = walked([Tuned(claim)], lambda run: None if run.arm == "b" else 1.0)
    assert {run.arm for run in batches[-1]} == {"a", "b"}


def test_the_same_outcomes_give_the_same_plan(claim: Claim) -> None:
    assert walked(protocols.of(claim)) == walked(protocols.of(claim))


def test_a_run_that_both_protocols_want_is_planned_once(write_claim: Write) -> None:
    folder = write_claim()
    claim = load("twice", "nano", ["optim.lr=1"], folder=folder)
    arms = tuple(type(arm)(**{**vars(arm), "grid": (arm.paper,)}) for arm in claim.arms)
    claim = Claim(**{**vars(claim), "arms": arms})
    hashes = [run.config_hash for batch in walked(protocols.of(claim), lambda run: 1.0) for run in batch]
    assert len(hashes) == len(set(hashes)) == 2 + 2 + 9 + 12  # two rounds of tuning, the paper's, the rest of the curve


def test_what_does_not_change_the_result_does_not_change_the_identity(write_claim: Write) -> None:
    def hashes(*overrides: str) -> list[str]:
        claim = load("twice", "nano", overrides, folder=write_claim())
        return [run.config_hash for run in Paper(claim).next_runs({})]

    assert hashes() == hashes("micro_batch=2", "logging=jsonl", "save_every=3")
    assert not set(hashes()) & set(hashes("grad_clip=2"))


def test_the_forecast_of_runs_is_right_in_number_and_length(claim: Claim) -> None:
    expected = protocols.expected(protocols.of(claim))
    real = [run for batch in walked(protocols.of(claim)) for run in batch]
    assert sorted((run.arm, run.steps, run.seed) for run in expected) == sorted(
        (run.arm, run.steps, run.seed) for run in real
    )


def test_a_sweep_runs_all_points_once_and_the_best_again_with_fresh_seeds(write_claim: Write) -> None:
    sweep, fresh = walked([GridThenSeeds(load("twice", "nano", folder=write_claim(base="sweep")))])
    assert [(run.arm, run.seed) for run in sweep] == [("a", 7)] * 3 + [("b", 7)] * 3
    assert [(run.arm, run.point, run.seed) for run in fresh] == [
        (arm, (f"optim.lr={lr}",), seed) for arm, lr in (("a", "2e-3"), ("b", "2e-4")) for seed in (1, 2, 3)
    ]


def test_a_sweep_may_compare_its_ends(write_claim: Write) -> None:
    folder = write_claim(base="sweep", chosen="ends")
    fresh = walked([GridThenSeeds(load("twice", "nano", folder=folder))])[-1]
    assert list(dict.fromkeys(run.point[0] for run in fresh)) == [
        f"optim.lr={lr}" for lr in ("1e-3", "4e-3", "1e-4", "4e-4")
    ]


@pytest.mark.parametrize("loss", [math.nan, -math.inf, math.inf, None])
def test_a_loss_that_is_not_finite_is_never_the_best(claim: Claim, loss: float | None) -> None:
    batch = [run for run in protocols.of(claim)[-1].next_runs({}) if run.arm == "a"]
    outcomes = {run.config_hash: 5.0 - n for n, run in enumerate(batch)} | {batch[-1].config_hash: loss}
    assert protocols.best(batch, outcomes, 3)["a"] == [batch[1].point, batch[0].point, batch[2].point]
