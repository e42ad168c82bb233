"""Adafactor: the paper's boxes in float64, and what its factors and its compiled path are for."""

from typing import Any

import numpy as np
import oracles
import pytest
import torch

from optim import Adafactor
from optim.factored import BLOCK, column_means, stored
from optim.sharding import ALL_ROWS

SHAPES = [(7, 5), (2 * BLOCK + 3, 6), (5, 3 * BLOCK), (11,), (1,), (1, 4), (2, 3, 4)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "lr": 0.5},  # above 1 / sqrt(t) from step 4 on
    {"relative_step": False, "beta1": 0.9, "weight_decay": 0.1},
    {"beta1": 0.8, "clip_threshold": 0.5, "beta2_decay": -0.5, "eps": (1e-3, 0.5)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_boxes(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer = Adafactor(params, **settings)
    theirs = [oracles.Adafactor(w, **settings) for w in start]
    lr = optimizer.param_groups[0]["lr"]
    for t in range(60):
        optimizer.param_groups[0]["lr"] = lr / (1 + t % 7)
        for param, oracle in zip(params, theirs, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (1 + rng.standard_normal(param.shape))
            g[0] *= t % 2  # a token that occurs in every other batch
            param.grad, oracle.lr = torch.tensor(g), lr / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
    for param, oracle, w in zip(params, theirs, start, strict=True):
        assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - w)


def test_a_row_that_never_had_gradient_stays_finite_and_still() -> None:
    param = torch.ones(4, 3, requires_grad=True)
    optimizer = Adafactor([param])
    for _ in range(3):
        param.grad = torch.randn(4, 3)
        param.grad[1] = 0
        optimizer.step()
    assert torch.equal(param.detach()[1], torch.ones(3))
    assert param.isfinite().all()


@pytest.mark.parametrize("relative_step", [True, False])
def test_decay_is_by_lr_whatever_the_step_size(relative_step: bool) -> None:
    param = torch.full((4, 3), 10.0, requires_grad=True)
    optimizer = Adafactor([param], lr=0.5, weight_decay=0.1, relative_step=relative_step)
    for t in range(1, 9):
        param.grad = torch.zeros(4, 3)
        optimizer.step()
        torch.testing.assert_close(param.detach(), torch.full((4, 3), 10 * 0.95**t))


def test_a_schedule_may_end_at_lr_0() -> None:
    param = torch.ones(4, 3, requires_grad=True)
    optimizer = Adafactor([param], weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = torch.randn(4, 3)
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones(4, 3))


@pytest.mark.parametrize(("beta1", "numbers"), [(None, 30 + 20), (0.9, 30 + 20 + 600)])
def test_state_is_a_row_and_a_column(beta1: float | None, numbers: int) -> None:
    param = torch.zeros(30, 20, requires_grad=True)
    optimizer = Adafactor([param], beta1=beta1)
    optimizer.init_state()
    assert sum(t.numel() for name, t in optimizer.state[param].items() if name != "step") == numbers


def test_float32_stays_near_float64() -> None:
    """60 steps of rounding errors, each of about 1e-7 of a step."""
    torch.manual_seed(0)
    wide = torch.randn(40, 30, dtype=torch.float64, requires_grad=True)
    narrow = wide.detach().float().requires_grad_()
    start = wide.detach().clone()
    optimizers = Adafactor([wide]), Adafactor([narrow])
    for _ in range(60):
        wide.grad = torch.randn_like(wide)
        narrow.grad = wide.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    assert (narrow - wide).norm() < 1e-5 * (wide - start).norm()


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_column_means_are_means(rows: int) -> None:
    matrix = torch.randn(rows, 7, dtype=torch.float64)
    torch.testing.assert_close(column_means(matrix, ALL_ROWS), matrix.mean(0))


def test_stored_numbers_are_a_copy_also_in_a_traced_graph() -> None:
    small = torch.randn(3)
    torch.library.opcheck(stored, (small,))
    assert torch.equal(stored(small), small) and stored(small).data_ptr() != small.data_ptr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"beta1": 1.0}, r"beta1=1.0 must be in \[0, 1\)"),
        ({"beta2_decay": 0.0}, "beta2_decay=0.0 must be .*0"),
        ({"eps": (0.0, 1e-3)}, r"eps\[0\]=0.0 must be > 0"),
        ({"eps": (1e-30, -1.0)}, r"eps\[1\]=-1.0 must be > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Adafactor: {message}"):
        Adafactor([torch.zeros(2, requires_grad=True)], **settings)
