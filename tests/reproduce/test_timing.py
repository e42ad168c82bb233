"""Timing by order and arithmetic; nothing here depends on how fast a machine is."""

import math
from collections.abc import Callable
from itertools import combinations

import pytest

import train
from configs import compose
from reproduce import timing
from reproduce.statistics import Interval
from reproduce.timing import StepTime, TimingError, calibrate, interleaved, median_interval, overhead, step_times, work


def test_rounds_go_around_the_arms_and_every_other_one_backwards_after_a_warm_up() -> None:
    clock, order = 0.0, []

    def block(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            nonlocal clock
            started, clock = clock, clock + seconds
            order.append(name)
            return clock - started

        return run

    found = interleaved({"a": block("a", 1.0), "b": block("b", 2.0), "c": block("c", 4.0)}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}


def test_a_machine_that_slows_down_steadily_does_not_favour_an_arm() -> None:
    speed = iter(range(1, 100))  # every block takes one second longer than the one before
    found = interleaved({"a": lambda: float(next(speed)), "b": lambda: float(next(speed))}, rounds=4)
    assert sum(found["a"]) == sum(found["b"])


@pytest.mark.parametrize("n", [6, 8, 9, 12])
def test_the_interval_of_a_median_has_the_narrowest_order_statistics_that_hold_95_percent(n: int) -> None:
    interval = median_interval([float(i) for i in range(n, 0, -1)])
    assert interval.estimate == (n + 1) / 2

    def coverage(k: int) -> float:
        """Of [k-th smallest, k-th largest]: at least k values, and at most n - k, lie below the median."""
        samples = [len(list(combinations(range(n), below))) for below in range(k, n - k + 1)]
        return float(sum(samples) / 2**n)

    k = round(interval.low)
    assert interval.high == n + 1 - k
    assert coverage(k) >= 0.95 > coverage(k + 1)


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_than_six_rounds_bound_nothing(n: int) -> None:
    assert median_interval([2.0] * n) == Interval(2.0, 0.0, math.inf)


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
        assert len(each.rounds) == 6
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
        step_times({"odd": overrides}, tiny, rounds=1, steps=9)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(TimingError, match="rounds=0 must be at least 1"):
        step_times({}, [], rounds=0, steps=1)


def test_an_arm_that_diverges_is_named(tiny: list[str]) -> None:
    hot = ["optim=sgd", "optim.lr=1e30", "schedule.warmup_steps=0", "grad_clip=null"]
    with pytest.raises(TimingError, match="arm hot diverged"):
        step_times({"hot": hot}, tiny, rounds=1, steps=10)


def test_a_signal_during_a_block_interrupts(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "loop", lambda run, stop: "stopped")
    with pytest.raises(KeyboardInterrupt):
        step_times({"any": []}, tiny, rounds=1, steps=1)


def test_runs_of_the_same_work_share_a_calibration(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def go_on(self: timing.TimedRun, steps: int) -> float:
        measured.append(steps)
        return 0.5 * steps

    monkeypatch.setattr(timing.TimedRun, "go_on", go_on)
    runs = [[*tiny, "optim.lr=1e-3", "seed=1"], [*tiny, "optim.lr=1e-2", "max_steps=5"], [*tiny, "optim=lion"]]
    found = calibrate(runs)
    assert found == {tuple(run): 0.5 for run in runs}
    assert measured == [1, 1, 10] * 2
    measured.clear()
    assert calibrate(runs[:1], limit_seconds=2.0) == {tuple(runs[0]): 0.5}
    assert measured == [1, 1, 4]


def test_a_large_batch_is_calibrated_in_part(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.TimedRun, "go_on", lambda self, steps: 0.5 * steps)
    monkeypatch.setattr(timing, "CALIBRATION_TOKENS", 6 * 16)  # six sequences, of which one micro-batch of four fits
    assert list(calibrate([[*tiny, "global_batch=40"]]).values()) == [0.5 * 10]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("optim.betas=[0.9,0.99]", True),
        ("optim.rho=0.1", True),
        ("seed=9", True),
        ("optim.curvature.every=5", False),
        ("optim.curvature.fraction=0.25", False),
        ("optim=lion", False),
        ("model.n_layer=3", False),
        ("global_batch=16", False),
        ("precision=bf16", False),
    ],
)
def test_the_work_of_a_step_is_told_from_its_numbers(tiny: list[str], change: str, is_same: bool) -> None:
    before = work(compose([*tiny, "optim=sophiag"]))
    assert (work(compose([*tiny, *(["optim=sophiag"] if "optim=" not in change else []), change])) == before) is is_same
