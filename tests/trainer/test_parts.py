import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import clock as clock_module
from trainer.clock import Clock
from trainer.divergence import Divergence
from trainer.environment import pick_precision
from trainer.parallel import Single
from trainer.plot import plot_loss


def test_the_clock_does_not_count_what_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [100.0], []
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock(5.0, lambda: waits.append(now[0]))
    now[0] = 103.0
    with clock.paused():
        now[0] = 200.0
        assert clock.seconds == 8.0
        with clock.paused():
            now[0] = 210.0
    now[0] = 211.5
    assert clock.seconds == 9.5
    assert waits[0] == 103.0


def observed(divergence: Divergence, pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each step of these losses and gradient norms may be taken."""
    each = ((torch.tensor(loss), torch.tensor(norm)) for loss, norm in pairs)
    return [bool(divergence.observe(step, loss, norm)) for step, (loss, norm) in enumerate(each)]


def watch(**changes: Any) -> Divergence:
    return Divergence(torch.device("cpu"), **{"max_nonfinite": 2, "spike_factor": 3.0, **changes})


def test_steps_that_are_not_finite_are_skipped_and_two_in_a_row_end_the_run() -> None:
    divergence = watch()
    pairs = [(1.0, 1.0), (math.nan, 1.0), (1.0, 1.0), (1.0, math.inf), (1.0, math.nan), (math.inf, 1.0), (1.0, 1.0)]
    assert observed(divergence, pairs) == [True, False, True, False, False, False, True]
    assert (divergence.step, divergence.skipped_steps) == (4, 4)
    assert "was not finite, 2 steps in a row" in divergence.diagnosis


def test_a_spike_ends_the_run_and_a_nan_before_it_does_not_spoil_the_mean() -> None:
    divergence = watch()
    assert observed(divergence, [(2.0, 1.0), (math.nan, 1.0), (2.0, 1.0), (5.9, 1.0)]) == [True, False, True, True]
    assert divergence.step is None
    mean = 2 + 0.05 * 3.9
    assert observed(divergence, [(2.99 * mean, 1.0)]) == [True]
    assert divergence.step is None
    observed(divergence, [(1.0, 1.0), (9.0, 1.0)])
    assert divergence.step == 1
    assert "jumped to 9, more than 3 times" in divergence.diagnosis


def test_what_is_found_out_at_the_end_is_said_unless_the_run_had_diverged_before() -> None:
    divergence = watch(max_nonfinite=None)
    divergence.declare(7, "val/loss was not finite")
    assert (divergence.step, divergence.diagnosis) == (7, "val/loss was not finite")
    divergence = watch()
    observed(divergence, [(1.0, 1.0), (9.0, 1.0)])
    divergence.declare(7, "val/loss was not finite")
    assert divergence.step == 1
    assert "jumped to 9" in divergence.diagnosis


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_loss_that_is_not_finite_is_skipped_and_no_spike(value: float) -> None:
    divergence = watch()
    assert observed(divergence, [(2.0, 1.0), (value, 1.0), (2.0, 1.0)]) == [True, False, True]
    assert (divergence.step, divergence.skipped_steps) == (None, 1)


def test_limits_can_be_left_out() -> None:
    divergence = watch(max_nonfinite=None, spike_factor=None)
    observed(divergence, [(1.0, 1.0), *[(math.nan, 1.0)] * 50, (1e9, 1.0)])
    assert (divergence.step, divergence.skipped_steps) == (None, 50)


def test_a_watch_continues_where_its_state_was_saved() -> None:
    pairs = [(2.0, 1.0), (2.5, 1.0), (math.nan, 1.0), (math.nan, 1.0), (2.0, 1.0)]
    uninterrupted, first = watch(), watch()
    observed(uninterrupted, pairs)
    observed(first, pairs[:3])
    second = watch(saved=json.loads(json.dumps(first.state())))
    observed(second, pairs[3:])
    assert second.state() == uninterrupted.state()
    assert second.step is not None


class MicroBatch:
    def __init__(self, data: torch.Tensor) -> None:
        self.data, self.indices = data, range(len(data))


def mean_square(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    return model(batch.data).square().mean()


def single(model: nn.Module) -> Single:
    strategy = Single(device=torch.device("cpu"), precision="fp32", compiled=False)
    strategy.prepare(model)
    return strategy


def test_gradients_do_not_depend_on_how_sequences_are_grouped() -> None:
    model, data = nn.Linear(5, 1).double(), torch.randn(12, 5, dtype=torch.float64)
    strategy, gradients = single(model), []
    for sizes in ([12], [6, 6], [1, 4, 7]):
        model.zero_grad()
        loss = strategy.forward_backward([MicroBatch(part) for part in data.split(sizes)], mean_square, 12)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert float(loss) == pytest.approx(mean_square(model, MicroBatch(data)).item(), rel=1e-6)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-14)


def test_clipping_scales_to_the_limit_and_reports_the_norm_before() -> None:
    model = nn.Linear(3, 1)
    strategy = single(model)
    for limit, after in ((None, 10.0), (20.0, 10.0), (2.0, 2.0)):
        model.weight.grad, model.bias.grad = torch.tensor([[6.0, 0.0, 8.0]]), None
        assert float(strategy.clip_grad_norm_(limit)) == pytest.approx(10.0)
        assert float(model.weight.grad.norm()) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("limit", [9.99999, 10.0, 10.000001, 10.00001, 20.0, math.inf])
@pytest.mark.parametrize("grad", [[6.0, 0.0, 8.0], [6.0, math.nan, 8.0], [6.0, math.inf, 8.0]])
def test_clipping_leaves_every_bit_as_torch_does(grad: list[float], limit: float) -> None:
    model, theirs = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    model.weight.grad, theirs.weight.grad = torch.tensor([grad]), torch.tensor([grad])
    single(model).clip_grad_norm_(limit)
    nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    torch.testing.assert_close(model.weight.grad, theirs.weight.grad, rtol=0, atol=0, equal_nan=True)


def test_evaluation_weighs_rows_and_returns_to_training() -> None:
    model, data = nn.Linear(5, 1), torch.randn(7, 5)
    strategy = single(model)
    found = strategy.evaluate([MicroBatch(part) for part in data.split(3)], mean_square)
    assert found == pytest.approx(mean_square(model, MicroBatch(data)).item(), rel=1e-6)
    assert model.training
    assert model.weight.grad is None


@pytest.mark.parametrize("choice", ["fp32", "bf16"])
def test_a_chosen_precision_stands(choice: str) -> None:
    assert pick_precision(choice, torch.device("cpu")) == choice


def test_the_loss_curve_is_a_picture(tmp_path: Path) -> None:
    rows = [{"step": n, "tokens": 1000 * n, "train/loss": 5 - n} for n in range(4)] + [
        {"tokens": 4000, "val/loss": 1.0}
    ]
    plot_loss(rows, tmp_path / "loss.png", "a run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot_loss([], tmp_path / "empty.png", "nothing yet")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, content: bytes, mode: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    plot_loss([], tmp_path / "loss.png", "a run")
    before = (tmp_path / "loss.png").read_bytes()
    monkeypatch.setattr("files.writing._write", half)
    with pytest.raises(OSError, match="No space left"):
        plot_loss([], tmp_path / "loss.png", "a run")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"loss.png": before}
