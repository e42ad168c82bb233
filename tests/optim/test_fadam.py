"""FAdam against its paper's box, the bounds of its clipping, and the special cases in which it is Adam."""

from typing import Any

import numpy as np
import pytest
import torch
from drift import after, drift, normal, zeros
from oracles import Array, ema, rms

from optim import AdamW, FAdam


class Oracle:
    """Hwang, arXiv:2405.12807, Algorithm 1, with its exponent rho = 1/2.

     5. g = gradient of the log likelihood's negative, the loss
     6. b2_t = b2 (1 - b2^(t - 1)) / (1 - b2^t)
     7. f <- EMA_{b2_t}(f, g^2)
     8. e = min(eps, 0.01 rms(g))                        eps[0] and eps[1]
     9. G = g / (f^rho + e^(2 rho))
    10. G <- G / max(1, rms(G) / c)
    11. m <- EMA_b1(m, G)
    12. D = w / (f^rho + e^(2 rho))
    13. D <- D / max(1, rms(D) / c)
    14. w <- w - lr (m + weight_decay D)
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float],
        eps: tuple[float, float],
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.w, self.lr, self.betas, self.eps = w.copy(), lr, betas, eps
        self.c, self.weight_decay = clip, weight_decay
        self.f, self.m, self.t = np.ones_like(w), np.zeros_like(w), 0

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = self.betas
        b2_t = b2 * (1 - b2 ** (self.t - 1)) / (1 - b2**self.t)  # l. 6
        self.f = ema(self.f, g * g, b2_t)  # l. 7
        e = min(self.eps[0], self.eps[1] * rms(g))  # l. 8
        base = self.f**0.5 + e
        G = g / base  # l. 9
        G = G / max(1.0, rms(G) / self.c)  # l. 10
        self.m = ema(self.m, G, b1)  # l. 11
        D = self.w / base  # l. 12
        D = D / max(1.0, rms(D) / self.c)  # l. 13
        self.w = self.w - self.lr * (self.m + self.weight_decay * D)  # l. 14


SETTINGS: list[dict[str, Any]] = [
    {"eps": (1e-8, 1e-2), "weight_decay": 0.0},
    {"eps": (1e-3, 1e-1), "weight_decay": 0.1},  # either is the smaller one, as gradients change in size
    {"eps": (1e-1, 1e-2), "weight_decay": 0.1, "clip": 0.6},
    {"eps": (10.0, 10.0), "weight_decay": 0.3, "clip": 3.0},  # the gradient is never clipped, the decay at times
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_box(settings: dict[str, Any]) -> None:
    assert drift(FAdam, Oracle, {"lr": 0.03, "betas": (0.9, 0.8), **settings}) < 1e-9


def test_two_steps_by_hand() -> None:
    param = torch.tensor([4.0, -2.0], dtype=torch.float64, requires_grad=True)
    settings: dict[str, Any] = {"betas": (0.5, 0.5), "eps": (1.0, 10.0), "clip": 5.0, "weight_decay": 0.5}
    fadam = FAdam([param], lr=0.1, **settings)
    # f = g^2, e = 1, base = (4, 2), G = (3 / 4, 1 / 2), D = (1, -1), m = G / 2
    first = np.array([4.0, -2.0]) - 0.1 * np.array([0.375 + 0.5, 0.25 - 0.5])
    np.testing.assert_allclose(after(fadam, param, [[3.0, 1.0]]), first)
    # b2_t = .5 * .5 / .75 = 1 / 3, f = (3, 1 / 3 + 2 / 3 * 13), e = 1
    base = np.sqrt([3.0, 9.0]) + 1
    m = np.array([0.1875, 0.125 + 0.5 * 13**0.5 / 4])
    second = first - 0.1 * (m + 0.5 * first / base)
    np.testing.assert_allclose(after(fadam, param, [[0.0, 13**0.5]]), second)


def test_the_adaptive_eps_follows_gradients_that_are_small() -> None:
    """Scaling a loss that is small already changes nothing, as with eps 0; Adam's eps would."""
    gradients, ends = normal(20, 5, 4), []
    for factor in (1e-7, 1e-9):
        param = zeros(5, 4)
        ends.append(after(FAdam([param], lr=0.1, weight_decay=0.0), param, factor * gradients))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_no_step_has_an_rms_above_clip_whatever_the_gradients(beta1: float) -> None:
    sizes: dict[float, list[float]] = {}
    for clip in (1e9, 1.0, 0.1):
        param = zeros(6, 5)
        fadam, before = FAdam([param], lr=1.0, betas=(beta1, 0.99), clip=clip, weight_decay=0.0), param.detach().clone()
        for n in range(30):
            after(fadam, param, [10.0 ** (n % 9 - 4) * normal(6, 5, seed=n)])
            sizes.setdefault(clip, []).append(float((param.detach() - before).square().mean().sqrt()))
            before = param.detach().clone()
    assert max(sizes[1.0]) <= 1 + 1e-12 and max(sizes[0.1]) <= 0.1 + 1e-12
    if beta1 == 0:
        clipped = [size > 1 for size in sizes[1e9]]
        assert 5 < sum(clipped) < 25
        for free, size, was_clipped in zip(sizes[1e9], sizes[1.0], clipped, strict=True):
            assert size == pytest.approx(1 if was_clipped else free)


def test_decay_moves_by_at_most_clip_whatever_the_parameters_and_towards_zero() -> None:
    param = (1e3 * normal(6, 5)).requires_grad_()
    before = param.detach().clone()
    fadam = FAdam([param], lr=0.1, betas=(0.9, 0.999), eps=(1e-8, 1e-2), clip=1.0, weight_decay=0.5)
    step = after(fadam, param, [torch.zeros(6, 5)]) - before
    torch.testing.assert_close(step, -0.1 * 0.5 * before / before.square().mean().sqrt())


def test_unclipped_and_without_averages_of_directions_it_is_adam() -> None:
    a, b = zeros(5, 4), zeros(5, 4)
    fadam = FAdam([a], lr=0.1, betas=(0.0, 0.9), eps=(1e-30, 1e-2), clip=1e9, weight_decay=0.0)
    adam = AdamW([b], lr=0.1, betas=(0.0, 0.9), eps=1e-30, weight_decay=0.0)
    gradients = normal(30, 5, 4)
    torch.testing.assert_close(after(fadam, a, gradients), after(adam, b, gradients), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_tensors_that_never_had_gradient_stay_finite(dtype: torch.dtype) -> None:
    for empty in (slice(1, 2), slice(0, 4)):
        param = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        fadam = FAdam([param], lr=0.1, weight_decay=0.1)
        gradients = normal(3, 4, 3)
        gradients[:, empty] = 0
        assert after(fadam, param, gradients).isfinite().all()
        assert all(tensor.isfinite().all() for tensor in fadam.state[param].values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0 must be in \[0, 1\)"),
        ({"eps": (0.0, 1e-2)}, r"eps\[0\]=0.0 must be > 0"),
        ({"eps": (1e-8, 0.0)}, r"eps\[1\]=0.0 must be > 0"),
        ({"clip": 0.0}, "clip=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FAdam: {message}"):
        FAdam([torch.zeros(2, requires_grad=True)], **settings)
