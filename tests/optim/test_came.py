"""CAME: the paper's box in float64, and what its confidence becomes in a limit."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import Array, ema, rms

from optim import CAME, Adafactor
from optim.factored import BLOCK

SHAPES = [(7, 5), (5, 7), (6, 6), (BLOCK + 3, 4), (11,), (1,), (2, 3, 4), (1, 9), (9, 1)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.3, "betas": (0.8, 0.7, 0.6)},
    {"clip_threshold": 0.5, "eps": (1e-3, 0.5), "betas": (0.5, 0.9, 0.95)},
]


class Oracle:
    """Luo et al., arXiv:2307.02047, Algorithm 2; the decay is the authors' code's. n rows, m columns.

    1. r <- b2 r + (1 - b2) (g^2 + eps1) 1_m;  c <- b2 c + (1 - b2) 1_n^T (g^2 + eps1)
    2. V = r c / (1_n^T r)                             no matrix: V <- b2 V + (1 - b2) (g^2 + eps1)
    3. u = g / sqrt(V)
    4. u_hat = u / max(1, RMS(u) / d)
    5. M <- b1 M + (1 - b1) u_hat
    6. U = (u_hat - M)^2
    7. R <- b3 R + (1 - b3) (U + eps2) 1_m;  C <- b3 C + (1 - b3) 1_n^T (U + eps2)
    8. S = R C / (1_n^T R)                             no matrix: S = 1
    9. w <- (1 - lr weight_decay) w;  w <- w - lr M / sqrt(S)
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.w, self.lr, self.betas, self.eps = w.copy(), lr, betas, eps
        self.d, self.weight_decay = clip_threshold, weight_decay
        n, m = w.shape if w.ndim == 2 else (0, 0)
        self.r, self.c, self.R, self.C = np.zeros((n, 1)), np.zeros((1, m)), np.zeros((n, 1)), np.zeros((1, m))
        self.V, self.M = np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array) -> None:
        b1, b2, b3 = self.betas
        square = g * g + self.eps[0]
        if g.ndim == 2:
            ones_m, ones_n = np.ones((g.shape[1], 1)), np.ones((g.shape[0], 1))
            self.r = ema(self.r, square @ ones_m, b2)  # l. 1
            self.c = ema(self.c, ones_n.T @ square, b2)
            self.V = self.r @ self.c / (ones_n.T @ self.r)  # l. 2
        else:
            self.V = ema(self.V, square, b2)
        u = g / np.sqrt(self.V)  # l. 3
        u_hat = u / max(1.0, rms(u) / self.d)  # l. 4
        self.M = ema(self.M, u_hat, b1)  # l. 5
        S = np.ones_like(g)
        if g.ndim == 2:
            U = (u_hat - self.M) ** 2 + self.eps[1]  # l. 6
            self.R = ema(self.R, U @ ones_m, b3)  # l. 7
            self.C = ema(self.C, ones_n.T @ U, b3)
            S = self.R @ self.C / (ones_n.T @ self.R)  # l. 8
        self.w = (1 - self.lr * self.weight_decay) * self.w - self.lr * self.M / np.sqrt(S)  # l. 9


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_box(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer, theirs = CAME(params, lr=0.03, **settings), [Oracle(w, lr=0.03, **settings) for w in start]
    for t in range(60):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t % 7)
        for param, oracle in zip(params, theirs, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (1 + rng.standard_normal(param.shape))
            g[0] *= t % 2  # a token that occurs in every other batch
            param.grad, oracle.lr = torch.tensor(g), 0.03 / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
    for param, oracle, w in zip(params, theirs, start, strict=True):
        assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - w)


def test_two_steps_by_hand() -> None:
    """Of one number, without eps: a row and a column of it. The second clip halves."""
    param = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = CAME([param], lr=1.0, betas=(0.5, 0.75, 0.5), eps=(1e-300, 1e-300), clip_threshold=2.0)
    # r = 1/4 * 4 = 1, u = 2, m = 1, U = 1, S = 1/2
    # r = 3/4 + 1/4 * 36 = 9.75, u = 6 / sqrt(9.75) = 1.9215, m = 1/2 + .9608 = 1.4608, U = .2123, S = .3562
    for gradient, move in ((2.0, 2**0.5), (6.0, 1.4608 / 0.3562**0.5)):
        before = param.detach().clone()
        param.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(before - param.detach(), torch.full_like(before, move), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(7, 5), (3, 90)])
def test_without_instability_to_speak_of_it_is_adafactor_with_momentum(shape: tuple[int, int]) -> None:
    """Where eps2 is far above (u - m)^2, S = eps2 with beta3 = 0: the update is m / sqrt(eps2)."""
    ours, theirs = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    came = CAME([ours], lr=0.01 * 1e10, eps=(1e-30, 1e20), weight_decay=0.1 / 1e10)
    adafactor = Adafactor([theirs], lr=0.01, beta1=0.9, relative_step=False, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 31):
        ours.grad = theirs.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        came.param_groups[0]["betas"] = (0.9, 1 - t**-0.8, 0.0)
        came.step()
        adafactor.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_rows_that_agree_with_their_momentum_move_farther() -> None:
    """Gradients of one size: of the same sign in the first row, of random signs in the second."""
    param = torch.zeros(2, 8, requires_grad=True)
    optimizer = CAME([param], lr=1.0, betas=(0.9, 0.9, 0.9))
    signs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).sign()
    for row in signs:
        param.grad = torch.stack([torch.ones(8), row])
        before = param.detach().clone()
        optimizer.step()
    confident, doubtful = (param.detach() - before).abs().mean(1) / optimizer.state[param]["exp_avg"].abs().mean(1)
    assert confident > 3 * doubtful


def test_a_row_that_never_had_gradient_stays_finite_and_still() -> None:
    param = torch.ones(4, 3, requires_grad=True)
    optimizer = CAME([param])
    for t in range(3):
        param.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(t))
        param.grad[1] = 0
        optimizer.step()
    assert torch.equal(param.detach()[1], torch.ones(3))
    assert param.isfinite().all()


def test_state_is_momentum_and_two_rows_and_columns() -> None:
    params = [torch.zeros(30, 20, requires_grad=True), torch.zeros(7, requires_grad=True)]
    optimizer = CAME(params)
    optimizer.init_state()
    numbers = [sum(t.numel() for name, t in optimizer.state[p].items() if name != "step") for p in params]
    assert numbers == [30 * 20 + 2 * (30 + 20), 2 * 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (0.9, 0.999)}, r"betas=\(0.9, 0.999\) must be 3 numbers"),
        ({"betas": (0.9, 0.999, 1.0)}, r"betas\[2\]=1.0 must be in \[0, 1\)"),
        ({"eps": (0.0, 1e-16)}, r"eps\[0\]=0.0 must be > 0"),
        ({"eps": (1e-30, 0.0)}, r"eps\[1\]=0.0 must be > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"CAME: {message}"):
        CAME([torch.zeros(2, requires_grad=True)], **settings)
