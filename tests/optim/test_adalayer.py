"""Adalayer against its paper's box, and the special cases in which it is Adam."""

from typing import Any

import numpy as np
import pytest
import torch
from drift import after, drift, normal, zeros
from oracles import Array, ema

from optim import Adalayer, AdamW


class Oracle:
    """Zhao et al., arXiv:2407.07972: Adam with one second moment per layer, here a weight tensor or, per_row, its rows.

    1. m <- EMA_b1(m, g)
    2. v <- EMA_b2(v, mean of g^2 over the block)
    3. m_hat = m / (1 - b1^t), v_hat = v / (1 - b2^t)
    4. w <- (1 - lr weight_decay) w
    5. w <- w - lr m_hat / (sqrt(v_hat) + eps)
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        per_row: bool = False,
    ) -> None:
        self.w, self.lr, self.betas, self.eps, self.weight_decay = w.copy(), lr, betas, eps, weight_decay
        blocks = list(w) if per_row else [w]
        self.m, self.v, self.t = np.zeros_like(w), np.zeros(len(blocks)), 0

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = self.betas
        self.m = ema(self.m, g, b1)  # l. 1
        blocks = g.reshape(len(self.v), -1)
        self.v = np.array([ema(v, np.mean(block**2), b2) for v, block in zip(self.v, blocks, strict=True)])  # l. 2
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)  # l. 3
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 4
        for i, root in enumerate(np.sqrt(v_hat)):
            where = np.s_[i] if len(self.v) > 1 else np.s_[:]
            self.w[where] -= self.lr * m_hat[where] / (root + self.eps)  # l. 5


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("per_row", [False, True])
def test_it_follows_the_papers_box(per_row: bool, weight_decay: float) -> None:
    settings = {"lr": 0.03, "betas": (0.9, 0.8), "eps": 1e-3, "weight_decay": weight_decay, "per_row": per_row}
    assert drift(Adalayer, Oracle, settings) < 1e-9


@pytest.mark.parametrize("per_row", [False, True])
def test_two_steps_by_hand(per_row: bool) -> None:
    """Mean squares: of the rows 1 and 24, of all 12.5. The second gradient is 0."""
    param = zeros(2, 2)
    adalayer = Adalayer([param], lr=0.1, betas=(0.5, 0.5), eps=0.5, weight_decay=0.0, per_row=per_row)
    g = np.array([[1.0, -1.0], [32.0**0.5, -4.0]])
    square = np.array([[1.0], [24.0]]) if per_row else 12.5
    first = -0.1 * g / (np.sqrt(square) + 0.5)  # m_hat = g, v_hat = square
    np.testing.assert_allclose(after(adalayer, param, [g]), first)
    second = first - 0.1 * (g / 3) / (np.sqrt(square / 3) + 0.5)  # a quarter of both, over 3 / 4
    np.testing.assert_allclose(after(adalayer, param, [np.zeros((2, 2))]), second)


@pytest.mark.parametrize(
    ("shape", "per_row"), [((), False), ((1,), False), ((1, 1), False), ((7,), True), ((7, 1), True), ((), True)]
)
def test_of_scalars_and_columns_it_is_adam(shape: tuple[int, ...], per_row: bool) -> None:
    a, b = zeros(*shape), zeros(*shape)
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.8), "eps": 1e-3, "weight_decay": 0.1}
    adalayer, adam = Adalayer([a], per_row=per_row, **settings), AdamW([b], **settings)
    gradients = normal(30, *shape)
    torch.testing.assert_close(after(adalayer, a, gradients), after(adam, b, gradients), rtol=1e-12, atol=0)


def test_without_momentum_the_first_update_is_the_gradient_with_an_rms_of_1() -> None:
    for per_row in (False, True):
        param, g = zeros(6, 4), normal(6, 4) * torch.logspace(0, 3, 6).double()[:, None]
        moved = -after(Adalayer([param], 1.0, eps=1e-30, weight_decay=0.0, per_row=per_row), param, [g])
        blocks = zip(moved, g, strict=True) if per_row else [(moved, g)]
        for update, block in blocks:
            torch.testing.assert_close(update, block / block.square().mean().sqrt())


def test_a_scale_of_the_loss_changes_nothing_and_one_of_a_row_only_where_rows_have_a_number() -> None:
    gradients = normal(20, 6, 4)
    factors = torch.tensor([1.0, 1e3, 1.0, 1.0, 1.0, 1.0]).double()[:, None]

    def end(gradients: torch.Tensor, per_row: bool) -> torch.Tensor:
        param = zeros(6, 4)
        return after(Adalayer([param], 0.1, eps=1e-30, weight_decay=0.0, per_row=per_row), param, gradients)

    for per_row in (False, True):
        torch.testing.assert_close(end(1e3 * gradients, per_row), end(gradients, per_row))
    torch.testing.assert_close(end(factors * gradients, True), end(gradients, True))
    assert (end(factors * gradients, False) - end(gradients, False))[0].norm() > 0.9 * end(gradients, False)[0].norm()


@pytest.mark.parametrize(("per_row", "shape"), [(False, (1,)), (True, (30,))])
def test_state_is_a_momentum_and_a_number_for_each_block(per_row: bool, shape: tuple[int, ...]) -> None:
    param = torch.zeros(30, 20, requires_grad=True)
    optimizer = Adalayer([param], per_row=per_row)
    optimizer.init_state()
    shapes = {name: tensor.shape for name, tensor in optimizer.state[param].items() if name != "step"}
    assert shapes == {"exp_avg": (30, 20), "exp_avg_sq_row" if per_row else "exp_avg_sq": shape}


@pytest.mark.parametrize("per_row", [False, True])
def test_tensors_without_gradient_stay_finite_and_still(per_row: bool) -> None:
    param = torch.ones(4, 3, requires_grad=True)
    optimizer = Adalayer([param], weight_decay=0.0, per_row=per_row)
    assert torch.equal(after(optimizer, param, [torch.zeros(4, 3)] * 3), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Adalayer: {message}"):
        Adalayer([torch.zeros(2, requires_grad=True)], **settings)
