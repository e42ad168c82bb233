"""What a dry run makes of planted seconds."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs import RunConfig, compose
from reproduce import calibration
from reproduce.calibration import block_steps, calibrate, work
from reproduce.timing import TimedRun

Seconds = Callable[[str, int], float]  # of a step: of which optimizer, the how manieth


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seconds], list[tuple[str, int]]]:
    """Plants what steps take, on a clock of their own; what it returns fills with (optimizer, steps) of blocks."""

    def plant(seconds: Seconds) -> list[tuple[str, int]]:
        now, blocks = 0.0, list[tuple[str, int]]()

        def go_on(self: TimedRun, n: int) -> float:
            nonlocal now
            name = self._run.config.optim.get("_target_", "optim.SOAP").rpartition(".")[2]
            took = sum(seconds(name, self._run.step + i) for i in range(n))
            self._run.step += n
            now += took
            blocks.append((name, n))
            return took

        monkeypatch.setattr(TimedRun, "go_on", go_on)
        monkeypatch.setattr(time, "perf_counter", lambda: now)
        return blocks

    return plant


def test_kinds_of_work_take_turns_and_runs_of_the_same_kind_share_one(tiny: list[str], steps: Callable) -> None:
    blocks = steps(lambda name, step: 0.5 if name == "AdamW" else 0.25)
    runs = [[*tiny, "optim.lr=1e-3", "seed=1"], [*tiny, "optim.lr=1e-2", "max_steps=5"], [*tiny, "optim=lion"]]
    assert calibrate(runs, limit_seconds=80) == {tuple(runs[0]): 0.5, tuple(runs[1]): 0.5, tuple(runs[2]): 0.25}
    there, back = [("AdamW", 10), ("Lion", 10)], [("Lion", 10), ("AdamW", 10)]
    assert blocks == [("AdamW", 1), ("Lion", 1)] * 2 + (there + back) * 3


def test_one_slow_block_does_not_change_a_forecast(tiny: list[str], steps: Callable) -> None:
    """As when Lion, measured once, came out at twice AdamW's step."""
    steps(lambda name, step: 3.0 if name == "Lion" and 12 <= step < 22 else 0.1)
    runs = [[*tiny], [*tiny, "optim=lion"]]
    assert list(calibrate(runs, limit_seconds=100).values()) == pytest.approx([0.1, 0.1])


def test_blocks_become_shorter_and_then_fewer_as_steps_become_longer(tiny: list[str], steps: Callable) -> None:
    for seconds, expected in ((1.0, [6] * 6), (5.0, [1] * 6), (20.0, [1])):  # after a step that may compile
        blocks = steps(lambda name, step, seconds=seconds: seconds)
        (found,) = calibrate([tiny], limit_seconds=38).values()
        assert found == pytest.approx(seconds)
        assert [n for _, n in blocks] == [1, 1, *expected]


@pytest.mark.parametrize("limit_seconds", [100, 10])  # for blocks of whole intervals, and of two steps
def test_a_forecast_has_its_share_of_rare_work(limit_seconds: float, tiny: list[str], steps: Callable) -> None:
    """A refresh every tenth step, which most short blocks are without, and their median with them."""
    steps(lambda name, step: 1.1 if step % 10 == 0 else 0.1)
    run = [*tiny, "optim=soap", "optim.roles.matrix.precondition_frequency=10"]
    assert calibrate([run], limit_seconds=limit_seconds)[tuple(run)] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("interval", "affordable", "steps"),
    [(1, 100, 10), (1, 4, 4), (1, 0, 1), (4, 100, 8), (10, 10, 10), (10, 9, 9), (50, 60, 50), (50, 40, 10)],
)
def test_blocks_hold_whole_intervals_where_one_can_afford_them(interval: int, affordable: int, steps: int) -> None:
    assert block_steps(interval, affordable) == steps


def test_of_a_large_batch_a_part_is_timed_and_the_optimizer_counted_once(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on(self: TimedRun, steps: int) -> float:
        self.optimizer_seconds += 0.4 * steps
        return 0.5 * steps

    monkeypatch.setattr(TimedRun, "go_on", go_on)
    monkeypatch.setattr(calibration, "TOKENS", 6 * 16)  # six sequences, of which one micro-batch of four fits
    assert list(calibrate([[*tiny, "global_batch=40"]]).values()) == [pytest.approx(0.4 + 10 * 0.1)]


def test_runs_too_large_for_the_device_together_are_no_crash(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def go_on(self: TimedRun, steps: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TimedRun, "go_on", go_on)
    with pytest.raises(ValueError, match="do not fit into the device's memory together; name the GPU instead"):
        calibrate([tiny])


def test_a_tiny_run_is_calibrated(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = [*tiny, "optim=sophiag", "optim.curvature.every=2"]
    (seconds,) = calibrate([run], limit_seconds=0.2).values()
    assert 0 < seconds < 10 and capsys.readouterr().out == ""


def test_a_corpus_that_is_not_prepared_is_made_up_for_a_vocabulary_of_its_size(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[RunConfig] = []

    def go_on(self: TimedRun, steps: int) -> float:
        trained.append(self._run.config)
        return 0.5 * steps

    monkeypatch.setattr(TimedRun, "go_on", go_on)
    corpus = ["data=pysource", f"data.root={tmp_path}", "data.tokenizer.vocab_size=1000", "data.source.megabytes=30"]
    calibrate([[*tiny, *corpus]])
    config = trained[0]
    assert (config.data.source["_target_"], config.model["vocab_size"]) == ("data.Synthetic", 1000)
    assert not list(tmp_path.iterdir())


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
