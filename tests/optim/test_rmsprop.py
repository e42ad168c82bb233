"""RMSprop against its published equations, and what it equals in special cases."""

from typing import Any

import numpy as np
import pytest
import torch
from drift import SHAPES, after, drift, normal, zeros
from oracles import Array, ema

from optim import AdamW, RMSprop


class Oracle:
    """Tieleman & Hinton, lecture 6.5, 2012; centered and momentum: Graves, arXiv:1308.0850, equations 38-41.

    1. n <- EMA_a(n, g^2)
    2. s <- EMA_a(s, g)                       centered only
    3. u = g / (sqrt(n - s^2) + eps)          s = 0 if not centered; Graves has eps in the root
    4. b <- mu b + u
    5. w <- (1 - lr weight_decay) w
    6. w <- w - lr b
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        alpha: float,
        eps: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        centered: bool = False,
    ) -> None:
        self.w, self.lr, self.a, self.eps, self.mu = w.copy(), lr, alpha, eps, momentum
        self.weight_decay, self.centered = weight_decay, centered
        self.n, self.s, self.b = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array) -> None:
        self.n = ema(self.n, g * g, self.a)  # l. 1
        if self.centered:
            self.s = ema(self.s, g, self.a)  # l. 2
        u = g / (np.sqrt(self.n - self.s**2) + self.eps)  # l. 3
        self.b = self.mu * self.b + u  # l. 4
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 5
        self.w = self.w - self.lr * self.b  # l. 6


SETTINGS: list[dict[str, Any]] = [
    {"alpha": 0.9},
    {"alpha": 0.8, "weight_decay": 0.1},
    {"alpha": 0.9, "momentum": 0.8, "weight_decay": 0.1},
    {"alpha": 0.8, "centered": True},
    {"alpha": 0.9, "centered": True, "momentum": 0.7, "weight_decay": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_published_equations(settings: dict[str, Any]) -> None:
    assert drift(RMSprop, Oracle, {"lr": 0.03, "eps": 1e-3, **settings}) < 1e-9


def test_first_steps_by_hand() -> None:
    param = zeros(2)
    rmsprop = RMSprop([param], lr=0.1, alpha=0.75, eps=1.0, momentum=0.5, weight_decay=0.5)
    first = np.array([-0.1 * 4 / 3, 0.0])  # n = (4, 0), u = (4 / 3, 0)
    np.testing.assert_allclose(after(rmsprop, param, [[4.0, 0.0]]), first)
    second = 0.95 * first - 0.1 * np.array([2 / 3, 1.0])  # n = (3, 1), u = (0, 1), b = (2 / 3, 1)
    np.testing.assert_allclose(after(rmsprop, param, [[0.0, 2.0]]), second)


def test_centered_steps_by_hand() -> None:
    param = zeros(1)
    rmsprop = RMSprop([param], lr=0.1, alpha=0.5, eps=1e-12, centered=True)
    np.testing.assert_allclose(after(rmsprop, param, [[2.0]]), [-0.2])  # n = 2, s = 1
    np.testing.assert_allclose(after(rmsprop, param, [[5.0]]), [-0.2 - 0.5 / 4.5**0.5])  # n = 13.5, s = 3


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_decay_it_is_torchs(momentum: float, centered: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "alpha": 0.95, "eps": 1e-8, "momentum": momentum, "centered": centered}
    for shape in SHAPES:
        params = zeros(*shape), zeros(*shape)
        optimizers = RMSprop(params[:1], **settings), torch.optim.RMSprop(params[1:], **settings)
        ends = [after(o, param, normal(60, *shape)) for o, param in zip(optimizers, params, strict=True)]
        assert (ends[0] - ends[1]).norm() < 1e-12 * ends[1].norm()


def test_adam_without_momentum_is_rmsprop_with_its_bias_corrected() -> None:
    a, b = zeros(4), zeros(4)
    rmsprop, adam = RMSprop([a], alpha=0.9, eps=1e-30), AdamW([b], 0.1, (0.0, 0.9), eps=1e-30, weight_decay=0.0)
    for t, g in enumerate(normal(30, 4), start=1):
        rmsprop.param_groups[0]["lr"] = 0.1 * (1 - 0.9**t) ** 0.5
        torch.testing.assert_close(after(rmsprop, a, [g]), after(adam, b, [g]), rtol=1e-12, atol=0)


def test_without_memory_it_moves_by_the_gradients_sign() -> None:
    param = zeros(3)
    moved = after(RMSprop([param], lr=0.1, alpha=0.0, eps=1e-30), param, [[3.0, -0.01, 0.0]])
    np.testing.assert_allclose(moved, [-0.1, 0.1, 0.0])


def test_gradients_that_hardly_change_have_a_small_variance_in_fp32_too() -> None:
    """The difference of the mean square and the squared mean, 1 +- 1e-7, would have no digit of 1e-10."""
    found = []
    for dtype in (torch.float64, torch.float32):
        param = zeros(50, dtype=dtype)
        rmsprop = RMSprop([param], lr=1e-9, alpha=0.9, centered=True)
        after(rmsprop, param, 1 + 1e-5 * normal(400, 50))
        found.append(rmsprop.state[param]["variance"].double())
    assert 0.3e-10 < found[0].mean() < 3e-10
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [({}, 1), ({"momentum": 0.9}, 2), ({"centered": True}, 2), ({"momentum": 0.9, "centered": True}, 3)],
)
def test_state_is_a_number_for_each_average(settings: dict[str, Any], numbers: int) -> None:
    param = torch.zeros(30, 20, requires_grad=True)
    optimizer = RMSprop([param], **settings)
    optimizer.init_state()
    assert sum(t.numel() for t in optimizer.state[param].values() if t.ndim) == numbers * 600


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"alpha": 1.0}, r"alpha=1.0 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be > 0"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
        ({"alpha": 0.0, "centered": True}, "centered=True needs alpha > 0: one gradient has no variance"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"RMSprop: {message}"):
        RMSprop([torch.zeros(2, requires_grad=True)], **settings)
