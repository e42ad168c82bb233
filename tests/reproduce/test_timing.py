"""Timing by order and arithmetic; nothing here depends on how fast a machine is."""

import math
import random
from contextlib import ExitStack

import pytest

import train
from inference.intervals import Interval
from reproduce import timing
from reproduce.rounds import median_interval
from reproduce.timing import StepTime, TimingError, overhead, step_times


def test_overhead_pairs_the_rounds() -> None:
    slow_rounds = (1.0, 10.0, 1.0, 10.0, 1.0, 10.0)
    times = {
        "baseline": StepTime(median_interval(slow_rounds), slow_rounds),
        "candidate": StepTime(Interval(0.0, 0.0, 0.0), tuple(1.5 * each for each in slow_rounds)),
    }
    assert overhead(times, "candidate", "baseline") == Interval(1.5, 1.5, 1.5)


def test_two_arms_of_train_py_are_timed(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"adamw": ["optim=adamw"], "sophiag": ["optim=sophiag", "optim.curvature.every=2"]}
    times = step_times(arms, tiny, rounds=6, steps=2)
    for each in times.values():
        assert 6 <= len(each.rounds) <= 18
        assert 0 < each.interval.low <= each.interval.estimate <= each.interval.high < math.inf
    assert 0 < overhead(times, "sophiag", "adamw").estimate < math.inf
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("overrides", "interval"),
    [
        (["optim=sophiag", "optim.curvature.every=6"], 6),
        (["optim=soap", "optim.roles.matrix.precondition_frequency=4"], 4),
    ],
)
def test_a_block_without_its_share_of_refreshes_is_refused(
    tiny: list[str], overrides: list[str], interval: int
) -> None:
    with pytest.raises(TimingError, match=rf"steps=9 must be a multiple of {interval}.*of arm odd"):
        step_times({"odd": overrides}, tiny, rounds=6, steps=9)


@pytest.mark.parametrize("rounds", [0, 5])
def test_rounds_too_few_for_an_interval_are_refused(rounds: int) -> None:
    with pytest.raises(TimingError, match=f"rounds={rounds} must be at least 6: the median of fewer has no 95 % inter"):
        step_times({}, [], rounds=rounds, steps=1)


@pytest.mark.parametrize(("noise", "rounds"), [(0.01, 6), (0.5, 18)])
def test_rounds_go_on_until_the_ratios_are_known_or_there_are_enough(
    noise: float, rounds: int, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    monkeypatch.setattr(timing.TimedRun, "go_on", lambda self, steps: steps * (1 + noise * draw.random()))
    times = step_times({"a": [], "b": []}, tiny, rounds=6, steps=2)
    assert [len(each.rounds) for each in times.values()] == [rounds] * 2
    assert (overhead(times, "a", "b").high / overhead(times, "a", "b").estimate <= 1.03) is (rounds == 6)


def test_the_optimizers_part_of_the_steps_is_timed(tiny: list[str]) -> None:
    with ExitStack() as stack:
        run = timing.TimedRun("any", tiny, 4, stack)
        assert run.go_on(2) > run.optimizer_seconds == 0
        run.time_optimizer()
        assert run.go_on(2) > run.optimizer_seconds > 0


def test_an_arm_that_diverges_is_named(tiny: list[str]) -> None:
    hot = ["optim=sgd", "optim.lr=1e30", "schedule.warmup_steps=0", "grad_clip=null"]
    with pytest.raises(TimingError, match="arm hot diverged"):
        step_times({"hot": hot}, tiny, rounds=6, steps=10)


def test_a_signal_during_a_block_interrupts(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "loop", lambda run, stop: "stopped")
    with pytest.raises(KeyboardInterrupt):
        step_times({"any": []}, tiny, rounds=6, steps=1)
