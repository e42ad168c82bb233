"""H-Fac: the paper's box in float64, on one number, and without momentum."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import Array, ema, rms

from optim import Adafactor, HFac
from optim.factored import BLOCK

SHAPES = [(7, 5), (5, 7), (6, 6), (BLOCK + 3, 4), (11,), (1,), (2, 3, 4), (1, 9), (9, 1), (1, 1)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.3, "betas": (0.8, 0.7)},
    {"clip_threshold": 0.5, "eps": 1e-3, "betas": (0.5, 0.95)},
]


class Oracle:
    """Nguyen et al., arXiv:2406.09958, H-Fac, for a matrix (m, n).

    1. b1 = beta1 (1 - beta1^(t - 1)) / (1 - beta1^t);  b2 = beta2 (1 - beta2^(t - 1)) / (1 - beta2^t)
    2. u <- b1 u + (1 - b1) g 1_n / n;  v <- b1 v + (1 - b1) g^T 1_m / m
    3. r <- b2 r + (1 - b2) (g^2 + eps) 1_n;  s <- b2 s + (1 - b2) (g^2 + eps)^T 1_m
    4. V = r s^T / (1_m^T r)
    5. phi = b1 (u 1_n^T - g 1_n 1_n^T / n) / sqrt(r 1_n^T / n)
    6. psi = b1 (1_m v^T - 1_m 1_m^T g / m) / sqrt(1_m s^T / m)
    7. D = 0.5 (phi + psi) + clip(g / sqrt(V)),  clip(x) = x / max(1, RMS(x) / d)
    8. w <- w - lr (D + weight_decay w)
    No matrix: each number is a matrix (1, 1), but RMS is that of all.
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.w, self.lr, self.betas, self.eps = w.copy(), lr, betas, eps
        self.d, self.weight_decay, self.t = clip_threshold, weight_decay, 0
        if w.ndim == 2:
            self.u, self.v, self.r, self.s = (np.zeros((size, 1)) for size in (*w.shape, *w.shape))
        else:
            self.u, self.r = np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = (b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in self.betas)  # l. 1
        square = g * g + self.eps
        if g.ndim == 2:
            m, n = g.shape
            ones_m, ones_n = np.ones((m, 1)), np.ones((n, 1))
            self.u, self.v = ema(self.u, g @ ones_n / n, b1), ema(self.v, g.T @ ones_m / m, b1)  # l. 2
            self.r, self.s = ema(self.r, square @ ones_n, b2), ema(self.s, square.T @ ones_m, b2)  # l. 3
            V = self.r @ self.s.T / (ones_m.T @ self.r)  # l. 4
            phi = b1 * (self.u @ ones_n.T - g @ ones_n @ ones_n.T / n) / np.sqrt(self.r @ ones_n.T / n)  # l. 5
            psi = b1 * (ones_m @ self.v.T - ones_m @ ones_m.T @ g / m) / np.sqrt(ones_m @ self.s.T / m)  # l. 6
        else:
            self.u, self.r = ema(self.u, g, b1), ema(self.r, square, b2)
            V = self.r
            phi = psi = b1 * (self.u - g) / np.sqrt(self.r)
        x = g / np.sqrt(V)
        D = 0.5 * (phi + psi) + x / max(1.0, rms(x) / self.d)  # l. 7
        self.w = self.w - self.lr * (D + self.weight_decay * self.w)  # l. 8


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_box(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer, theirs = HFac(params, lr=0.03, **settings), [Oracle(w, lr=0.03, **settings) for w in start]
    for t in range(60):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t % 7)
        for param, oracle in zip(params, theirs, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (0.3 + rng.standard_normal(param.shape))
            g[0] *= t % 2  # a token that occurs in every other batch
            param.grad, oracle.lr = torch.tensor(g), 0.03 / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
    for param, oracle, w in zip(params, theirs, start, strict=True):
        assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - w)


def test_two_steps_by_hand() -> None:
    """Betas of 1/2 become 0, then 1/3."""
    param = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = HFac([param], lr=1.0, betas=(0.5, 0.5), eps=1e-300, clip_threshold=10.0)
    # u = (1, 3), v = 2; r = (1, 9), s = 5 (means), V = (1, 9): signs.
    # g = (4, 0): u = (3, 1), v = 2; r = (11, 3), s = 7, V = (11, 3); phi = 1/3 (-1 / sqrt(11), 1 / sqrt(3)), psi = 0
    moves = [[1.0, 1.0], [(4 - 1 / 6) / 11**0.5, 1 / 6 / 3**0.5]]
    for gradient, expected in zip(([1.0, 3.0], [4.0, 0.0]), moves, strict=True):
        before = param.detach().clone()
        param.grad = torch.tensor(gradient, dtype=torch.float64)[:, None]
        optimizer.step()
        torch.testing.assert_close((before - param.detach())[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 1), (1,), (), (5,)])
def test_on_single_numbers_it_is_adam_that_looks_ahead(shape: tuple[int, ...]) -> None:
    """(b1 m + (1 - b1) g) / sqrt(v) with averages corrected for bias, unless clipped; of a vector each number."""
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = HFac([param], lr=0.1, betas=(0.9, 0.99), clip_threshold=1e9)
    rng = np.random.default_rng(0)
    w, m, v = (np.zeros(shape) for _ in range(3))
    for t in range(1, 31):
        g = np.asarray(rng.standard_normal(shape))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        b1 = 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t)
        w = w - 0.1 * (b1 * m / (1 - 0.9**t) + (1 - b1) * g) / np.sqrt(v / (1 - 0.99**t))
        param.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (3, 90), (11,)])
def test_without_momentum_it_is_adafactor(shape: tuple[int, ...]) -> None:
    """As beta2 goes to 1, its average of t steps goes to their mean, Adafactor's with beta2_decay = -1."""
    ours, theirs = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    hfac = HFac([ours], lr=0.01, betas=(0.0, 1 - 1e-7), weight_decay=0.1)
    adafactor = Adafactor([theirs], lr=0.01, beta2_decay=-1.0, relative_step=False, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ours.grad = theirs.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        hfac.step()
        adafactor.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_only_a_change_of_means_is_momentum() -> None:
    """A constant gradient's means are their own averages: the step is Adafactor's, whatever beta1."""
    ways = []
    for beta1 in (0.0, 0.9):
        param = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        optimizer = HFac([param], lr=0.1, betas=(beta1, 0.99))
        for _ in range(5):
            param.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            optimizer.step()
        ways.append(param.detach())
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)


def test_a_row_that_never_had_gradient_stays_finite_and_still() -> None:
    param = torch.ones(4, 3, requires_grad=True)
    optimizer = HFac([param], betas=(0.0, 0.999))  # with momentum, the columns' moves it
    for t in range(3):
        param.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(t))
        param.grad[1] = 0
        optimizer.step()
    assert torch.equal(param.detach()[1], torch.ones(3))
    assert param.isfinite().all()


def test_state_is_two_rows_and_two_columns() -> None:
    params = [torch.zeros(30, 20, requires_grad=True), torch.zeros(7, requires_grad=True)]
    optimizer = HFac(params)
    optimizer.init_state()
    numbers = [sum(t.numel() for name, t in optimizer.state[p].items() if name != "step") for p in params]
    assert numbers == [2 * (30 + 20), 2 * 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"HFac: {message}"):
        HFac([torch.zeros(2, requires_grad=True)], **settings)
