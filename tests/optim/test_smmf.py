"""SMMF: the paper's box in float64, what its factors keep exactly, and where a sign goes."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import Array, ema
from torch import Tensor

from optim import SMMF
from optim.smmf import packed, signs_of, square_shape

# Of 35, 36 and 24 values, which make (7, 5), (6, 6) and (6, 4); primes; a square.
SHAPES = [(7, 5), (5, 7), (6, 6), (3, 12), (11,), (1, 13), (1,), (2, 3, 4), (1, 9), (9, 1)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.3, "growth_rate": 0.9, "beta2_decay": -0.5},
    {"beta1": 0.7, "growth_rate": 1.0, "eps": 1e-2},
]


class Oracle:
    """Park & Lee, arXiv:2412.08894, Algorithms 1-5, for a tensor of N values.

    1. a >= b: the divisors of N with a b = N that are nearest to each other;  G = g in rows, (a, b)
    2. M = S (r_M @ c_M^T), S +-1;  V = r_V @ c_V^T
    3. b1 = beta1 growth_rate^(t - 1);  b2 = 1 - t^beta2_decay
    4. M <- b1 M + (1 - b1) G;  V <- b2 V + (1 - b2) G^2
    5. S = +1 where M > 0, else -1;  r_M = |M| @ 1, c_M = 1^T @ |M| / sum(|M|);  r_V, c_V of V likewise;  0 / 0 = 0
    6. w <- (1 - lr weight_decay) w;  w <- w - lr M / (sqrt(V) + eps), with M and V of l. 4
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        beta1: float = 0.9,
        growth_rate: float = 0.999,
        beta2_decay: float = -0.8,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.w, self.lr, self.beta1, self.growth_rate = w.copy(), lr, beta1, growth_rate
        self.beta2_decay, self.eps, self.weight_decay = beta2_decay, eps, weight_decay
        pairs = [(w.size // b, b) for b in range(1, w.size + 1) if w.size % b == 0]
        self.a, self.b = min((pair for pair in pairs if pair[0] >= pair[1]), key=lambda pair: pair[0] - pair[1])  # l. 1
        self.M, self.V = ((np.zeros((self.a, 1)), np.zeros((1, self.b))) for _ in range(2))
        self.S, self.t = -np.ones((self.a, self.b)), 0

    def step(self, g: Array) -> None:
        self.t += 1
        G = g.reshape(self.a, self.b)
        M, V = self.S * (self.M[0] @ self.M[1]), self.V[0] @ self.V[1]  # l. 2
        b1, b2 = self.beta1 * self.growth_rate ** (self.t - 1), 1 - float(self.t) ** self.beta2_decay  # l. 3
        M, V = ema(M, G, b1), ema(V, G * G, b2)  # l. 4
        self.S = np.where(M > 0, 1.0, -1.0)  # l. 5
        self.M, self.V = self.factors(abs(M)), self.factors(V)
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 6
        self.w = self.w - self.lr * (M / (np.sqrt(V) + self.eps)).reshape(self.w.shape)

    def factors(self, x: Array) -> tuple[Array, Array]:
        total = x.sum() or 1.0
        return x @ np.ones((self.b, 1)), np.ones((1, self.a)) @ x / total


def remembered(state: dict[str, Tensor]) -> tuple[Array, Array]:
    """M and V as the state has them."""
    s = {name: tensor.numpy() for name, tensor in state.items()}
    m, v = (np.outer(s[f"{name}_row"], s[f"{name}_col"]) for name in ("exp_avg", "exp_avg_sq"))
    bits = np.unpackbits(s["exp_avg_sign"], count=m.size, bitorder="big").reshape(m.shape)
    return np.where(bits, m, -m), v


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_box(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer, theirs = SMMF(params, lr=0.03, **settings), [Oracle(w, lr=0.03, **settings) for w in start]
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
    """Of two numbers, (2, 1), so that nothing is lost: b1 is 1/2, then 1/4, b2 is 0, then 1/2."""
    param = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = SMMF([param], lr=1.0, beta1=0.5, growth_rate=0.5, beta2_decay=-1.0, eps=1e-300)
    # m = (1, -2), v = (4, 16); m = (1, -2) / 4 + 3/4 (-2, 0) = (-5/4, -1/2), v = (4, 8)
    for gradient, moves in (([2.0, -4.0], [0.5, -0.5]), ([-2.0, 0.0], [-0.625, -0.5 / 8**0.5])):
        before = param.detach().clone()
        param.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(before - param.detach(), torch.tensor(moves, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(7, 5), (6, 4), (2, 3, 4), (13, 11)])
def test_a_non_negative_matrix_of_rank_1_is_kept_exactly_with_any_signs(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = SMMF([param], beta1=0.9)
    a, b = square_shape(param.numel())
    magnitude = np.outer(rng.random(a), rng.random(b))
    magnitude[1] = 0
    gradient = magnitude * np.sign(rng.standard_normal((a, b)))
    param.grad = torch.tensor(gradient).view(shape)
    optimizer.step()
    m, v = remembered(optimizer.state[param])
    np.testing.assert_allclose(m, 0.1 * gradient, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(v, gradient**2, rtol=1e-13, atol=1e-16)


def test_any_other_matrix_keeps_its_sums_by_row_and_by_column() -> None:
    param = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True)
    optimizer = SMMF([param])
    param.grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer.step()
    m, v = remembered(optimizer.state[param])
    for axis in (0, 1):
        np.testing.assert_allclose(abs(m).sum(axis), 0.1 * param.grad.abs().sum(axis))
        np.testing.assert_allclose(v.sum(axis), param.grad.square().sum(axis))
    assert np.array_equal(np.sign(m), np.sign(param.grad.numpy()))


@pytest.mark.parametrize("shape", [(13,), (1, 13), (31, 1), (1,)])
def test_of_a_prime_number_of_values_nothing_is_lost(shape: tuple[int, ...]) -> None:
    """The authors' code makes them (N, 1), whose factors are the moments: Adam's, with changing betas."""
    rng = np.random.default_rng(0)
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = SMMF([param], lr=0.1, eps=1e-3)
    w, m, v = (np.zeros(shape) for _ in range(3))
    for t in range(1, 31):
        g = rng.standard_normal(shape)
        b1, b2 = 0.9 * 0.999 ** (t - 1), 1 - t**-0.8
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= 0.1 * m / (np.sqrt(v) + 1e-3)
        param.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-10, atol=1e-12)
    assert optimizer.state[param]["exp_avg_row"].shape == (param.numel(),)


@pytest.mark.parametrize(
    ("n", "shape"),
    [
        (1, (1, 1)),
        (13, (13, 1)),
        (36, (6, 6)),
        (35, (7, 5)),
        (768, (32, 24)),
        (50257 * 768, (6932, 5568)),
        (50304 * 768, (6288, 6144)),
    ],
)
def test_values_make_the_matrix_nearest_to_a_square(n: int, shape: tuple[int, int]) -> None:
    assert square_shape(n) == shape


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (4, 2), (3, 3), (7, 5), (2, 7, 5)])
def test_signs_of_matrices_and_of_each_of_a_stack_are_packed_8_to_a_byte(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., 0, 0] = 0
    bits = packed(x)
    assert np.array_equal(bits.numpy(), np.packbits(x.flatten(-2).numpy() > 0, axis=-1))
    assert torch.equal(signs_of(bits, shape), torch.where(x > 0, 1.0, -1.0))


def test_the_state_of_gpt2s_embedding_is_a_60th_of_adams() -> None:
    param = torch.zeros(50257, 768, device="meta", requires_grad=True)
    optimizer = SMMF([param])
    optimizer.init_state()
    found = sum(tensor.nbytes for tensor in optimizer.state[param].values() if tensor.ndim)
    assert found == 2 * 4 * (6932 + 5568) + 50257 * 768 // 8 < 8 * param.numel() / 60


def test_without_any_gradient_nothing_moves_and_all_stays_finite() -> None:
    param = torch.ones(6, 4, requires_grad=True)
    optimizer = SMMF([param])
    for t in range(4):
        param.grad = torch.zeros(6, 4)
        if t == 3:
            param.grad[2] = 1
        optimizer.step()
    assert torch.equal(param.detach()[0], torch.ones(4)) and param.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in optimizer.state[param].values())
    assert (param.detach()[2] < 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"beta1": 1.0}, r"beta1=1.0 must be in \[0, 1\)"),
        ({"growth_rate": 0.0}, r"growth_rate=0.0 must be in \(0, 1\]"),
        ({"growth_rate": 1.1}, r"growth_rate=1.1 must be in \(0, 1\]"),
        ({"beta2_decay": 0.0}, "beta2_decay=0.0 must be in .* 0"),
        ({"eps": 0.0}, "eps=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SMMF: {message}"):
        SMMF([torch.zeros(2, requires_grad=True)], **settings)
