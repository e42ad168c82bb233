"""Adapprox: the paper's boxes in float64, how near its factors come, and what they cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drift import step
from oracles import Array, ema, rms
from torch import Tensor

from model import GPT
from optim import Adapprox
from optim.adapprox import largest_rank
from optim.memory import state_bytes
from optim.subspace import gaussian

SHAPES = [(7, 5), (5, 7), (6, 6), (16, 12), (11,), (1,), (2, 3, 4), (1, 9), (9, 1)]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"beta1": None, "weight_decay": 0.3, "max_rank_fraction": 0.5, "rank_interval": 3, "beta2": 0.9},
    {"beta1": 0.8, "max_rank_fraction": 1.0, "rank_threshold": 0.2, "iterations": 2, "rank_interval": 1, "beta2": 0.9},
    {"clip_threshold": 0.5, "eps": 1e-2, "max_rank_fraction": 0.7, "rank_threshold": 0.1, "seed": 5},
]


class Oracle:
    """Zhao et al., arXiv:2403.14958, Algorithms 1-3, for a matrix (m, n).

    S-RSI(A, k): 1. U = N(0, 1) (n, k + p)          2. l times: Q = qr(A @ U), U = A^T @ Q
                 3. Q[:, :k], U[:, :k]
    AS-RSI(A):   k = 1, 2, ... until |A - Q U^T| / |A| <= xi or k = k_max     (the paper's steps of k are larger)
    1. V = b2 max(Q @ U^T, 0) + (1 - b2) g^2        (the maximum is ours)
    2. Q, U = AS-RSI(V), new k, if t mod s = 1 (s = 1: always), else S-RSI(V, k)
    3. D = g / (sqrt(V) + eps)
    4. D <- D / max(1, RMS(D) / d)
    5. M <- b1 M + (1 - b1) D, D = M                if there is a b1
    6. w <- w - lr (D + weight_decay w)
    No matrix: V <- b2 V + (1 - b2) g^2. draw(n, k, t): the first k columns of l. 1; p more are drawn here, to show that
    they change nothing.
    """

    def __init__(
        self,
        w: Array,
        draw: Callable[[int, int, int], Array],
        lr: float,
        beta1: float | None = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        max_rank_fraction: float = 0.25,
        rank_threshold: float = 1e-2,
        rank_interval: int = 10,
        iterations: int = 5,
    ) -> None:
        self.w, self.draw, self.lr, self.beta1, self.beta2, self.eps = w.copy(), draw, lr, beta1, beta2, eps
        self.d, self.weight_decay, self.xi = clip_threshold, weight_decay, rank_threshold
        self.s, self.l, self.t, self.rng = rank_interval, iterations, 0, np.random.default_rng(9)
        if w.ndim == 2:
            self.k, self.k_max = 1, max(1, int(min(w.shape) * max_rank_fraction))
            self.Q, self.U = np.zeros((w.shape[0], 1)), np.zeros((w.shape[1], 1))
        self.V, self.M = np.zeros_like(w), np.zeros_like(w)

    def step(self, g: Array) -> None:
        self.t += 1
        if g.ndim == 2:
            self.V = ema(np.maximum(self.Q @ self.U.T, 0), g * g, self.beta2)  # l. 1
            if (self.t - 1) % self.s == 0:  # l. 2
                self.k = 1
                while not self.fits() and self.k < self.k_max:
                    self.k += 1
            self.fits()
        else:
            self.V = ema(self.V, g * g, self.beta2)
        D = g / (np.sqrt(self.V) + self.eps)  # l. 3
        D = D / max(1.0, rms(D) / self.d)  # l. 4
        if self.beta1 is not None:
            self.M = ema(self.M, D, self.beta1)  # l. 5
            D = self.M
        self.w = self.w - self.lr * (D + self.weight_decay * self.w)  # l. 6

    def fits(self) -> bool:
        """Factors of rank k of V, and whether they are near enough."""
        n = self.V.shape[1]
        p = max(0, min(5, min(self.V.shape) - self.k))  # a QR cannot have more columns than rows
        self.U = np.hstack([self.draw(n, self.k_max, self.t)[:, : self.k], self.rng.standard_normal((n, p))])
        for _ in range(self.l):
            self.Q = np.linalg.qr(self.V @ self.U)[0]
            self.U = self.V.T @ self.Q
        self.Q, self.U = self.Q[:, : self.k], self.U[:, : self.k]
        return bool(np.linalg.norm(self.V - self.Q @ self.U.T) <= self.xi * np.linalg.norm(self.V))


def drawn(seed: int) -> Callable[[int, int, int], Array]:
    return lambda n, k, t: gaussian(n, k, seed, t).double().numpy()


def factors(optimizer: Adapprox, param: Tensor) -> tuple[Array, Array, int]:
    """Q, U and their rank, as the state has them."""
    state = optimizer.state[param]
    return (
        state["exp_avg_sq_basis"].numpy(),
        state["exp_avg_sq_coordinates"].numpy(),
        int(state["rank"]),
    )


def matrix(shape: tuple[int, int], **settings: Any) -> tuple[Adapprox, Tensor]:
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    return Adapprox([param], **settings), param


def of_spectrum(shape: tuple[int, int], decay: float, seed: int = 0) -> Array:
    """A positive matrix whose singular values fall like decay^i."""
    rng = np.random.default_rng(seed)
    return np.asarray(sum(decay**i * np.outer(rng.random(shape[0]), rng.random(shape[1])) for i in range(min(shape))))


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_boxes(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer = Adapprox(params, lr=0.03, **settings)
    own = {name: value for name, value in settings.items() if name != "seed"}
    theirs = [Oracle(w, drawn(settings.get("seed", 0)), lr=0.03, **own) for w in start]
    ranks = set()
    for t in range(60):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t % 7)
        for param, oracle in zip(params, theirs, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (1 + 0.5 * rng.standard_normal(param.shape))
            g[0] *= t % 2  # a token that occurs in every other batch
            param.grad, oracle.lr = torch.tensor(g), 0.03 / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
        ranks.add(factors(optimizer, params[3])[2])
    for param, oracle, w in zip(params, theirs, start, strict=True):
        assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-6 * np.linalg.norm(oracle.w - w)
    assert settings != SETTINGS[2] or len(ranks) > 1  # ranks between 1 and the largest were taken


def test_two_steps_by_hand() -> None:
    """g^2 of rank 1, which the factors keep; b2 = 3/4. The first step is clipped."""
    optimizer, param = matrix((2, 2), lr=1.0, beta1=0.5, beta2=0.75, eps=1e-300, weight_decay=0.5)
    step(optimizer, param, np.array([[1.0, -2.0], [2.0, 4.0]]))  # V = g^2 / 4, D = 2 sign(g), clipped to 1, M = D / 2
    first = np.array([[-0.5, 0.5], [-0.5, -0.5]])
    np.testing.assert_allclose(param.detach().numpy(), first)
    # V = 3/16 (1, 4; 4, 16) + 1/4 (1, 0; 0, 0) = (7, 12; 12, 48) / 16, D = 4 / sqrt(7) (1, 0; 0, 0), RMS 0.756
    step(optimizer, param, np.array([[1.0, 0.0], [0.0, 0.0]]))
    second = first / 2 + first / 2 - np.array([[2 / 7**0.5, 0], [0, 0]])
    np.testing.assert_allclose(param.detach().numpy(), second, atol=1e-12)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize(("decay", "threshold"), [(0.1, 0.1), (0.5, 0.01), (0.5, 0.001), (0.9, 0.05), (0.99, 1e-6)])
def test_the_rank_is_the_smallest_that_comes_near_enough(
    shape: tuple[int, int], decay: float, threshold: float
) -> None:
    optimizer, param = matrix(shape, rank_threshold=threshold, max_rank_fraction=0.75)
    square = of_spectrum(shape, decay)
    step(optimizer, param, np.sqrt(square))
    v, (q, u, rank) = 0.001 * square, factors(optimizer, param)
    errors = [np.linalg.norm(v - q[:, :k] @ u[:, :k].T) / np.linalg.norm(v) for k in range(rank + 1)]
    assert errors[rank] <= threshold or rank == 12
    assert rank == 1 or errors[rank - 1] > threshold
    assert not q[:, rank:].any() and not u[:, rank:].any()
    np.testing.assert_allclose(q[:, :rank].T @ q[:, :rank], np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_second_moment_of_rank_3_is_kept_exactly_by_any_sketch(shape: tuple[int, int], seed: int) -> None:
    optimizer, param = matrix(shape, rank_threshold=1e-6, max_rank_fraction=0.5, seed=seed, beta2=0.9)
    rng = np.random.default_rng(0)
    left, right, v = rng.random((shape[0], 3)), rng.random((shape[1], 3)), np.zeros(shape)
    for t in range(12):
        square = left * rng.random(3) @ right.T
        v = 0.9 * v + 0.1 * square
        step(optimizer, param, np.sqrt(square) * np.sign(rng.standard_normal(shape)))
        q, u, rank = factors(optimizer, param)
        assert rank == 3, t
        np.testing.assert_allclose(q @ u.T, v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (1, 5), (5, 1), (4,)])
def test_with_all_ranks_and_no_clip_it_is_rmsprop(shape: tuple[int, ...]) -> None:
    """Not corrected for bias, with eps beside the root."""
    param = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = Adapprox(
        [param], lr=0.1, beta1=None, beta2=0.9, max_rank_fraction=1.0, rank_threshold=0.0, clip_threshold=1e9
    )
    theirs = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    rmsprop = torch.optim.RMSprop([theirs], lr=0.1, alpha=0.9, eps=1e-8)
    rng = np.random.default_rng(0)
    for _ in range(30):
        g = rng.standard_normal(shape)
        step(optimizer, param, g)
        theirs.grad = torch.tensor(g)
        rmsprop.step()
    torch.testing.assert_close(param, theirs, rtol=1e-9, atol=1e-9)


def test_between_searches_the_rank_stays() -> None:
    optimizer, param = matrix((24, 16), rank_threshold=0.02, rank_interval=4, beta2=0.5, max_rank_fraction=1.0)
    ranks = []
    for t in range(9):
        step(optimizer, param, np.sqrt(of_spectrum((24, 16), 0.1 if t in (0, 5) else 0.9, seed=t)))
        ranks.append(factors(optimizer, param)[2])
    assert len(set(ranks[:4])) == len(set(ranks[4:8])) == 1
    assert ranks[3] < ranks[4] != ranks[8]


def test_a_first_step_that_was_not_taken_does_not_leave_rank_0() -> None:
    """As on devices whose host does not know; the next search would come 10 steps later."""
    optimizer, param = matrix((24, 16))
    optimizer.found_inf = torch.ones(())
    step(optimizer, param, np.ones((24, 16)))
    assert factors(optimizer, param)[2] == 0
    optimizer.found_inf = None
    step(optimizer, param, np.sqrt(of_spectrum((24, 16), 0.5)))
    assert factors(optimizer, param)[2] > 0


def test_factors_below_zero_are_no_second_moment() -> None:
    optimizer, param = matrix((24, 16), beta2=0.9, max_rank_fraction=0.3)
    rng = np.random.default_rng(0)
    step(optimizer, param, rng.standard_normal((24, 16)) * (rng.random((24, 16)) < 0.2))
    q, u, _ = factors(optimizer, param)
    assert (q @ u.T).min() < 0
    for _ in range(3):
        step(optimizer, param, np.zeros((24, 16)))
    assert param.isfinite().all() and all(t.isfinite().all() for t in optimizer.state[param].values())


def test_without_any_gradient_all_stays_finite_and_still() -> None:
    param = torch.ones(9, 8, requires_grad=True)
    optimizer = Adapprox([param])
    for t in range(12):
        step(optimizer, param, np.ones((9, 8)) * (t == 11))
        assert t == 11 or torch.equal(param.detach(), torch.ones(9, 8))
    assert param.isfinite().all() and factors(optimizer, param)[2] == 1


def test_small_gradients_keep_their_directions_in_float32() -> None:
    """Squares of 1e-22, whose products are below float32's smallest number."""
    square = of_spectrum((24, 16), 0.5)
    found = []
    for scale in (1.0, 1e-11):
        param = torch.zeros(24, 16, requires_grad=True)
        optimizer = Adapprox([param], max_rank_fraction=0.5)
        step(optimizer, param, scale * np.sqrt(square))
        q, u, _ = factors(optimizer, param)
        found.append(q @ u.T / scale**2)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_random_numbers_are_of_the_seed_and_not_of_torchs() -> None:
    ways = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(before)
        optimizer, param = matrix((12, 8), seed=seed)
        for t in range(3):
            step(optimizer, param, np.random.default_rng(t).standard_normal((12, 8)))
        ways.append(param.detach())
    assert torch.equal(ways[0], ways[1]) and not torch.equal(ways[0], ways[2])


def test_the_rank_is_told_and_what_it_leaves_unused() -> None:
    params = [torch.zeros(shape, requires_grad=True) for shape in ((24, 16), (40, 16), (5,))]
    optimizer = Adapprox(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.diagnostics()["rank"] == 1
    assert optimizer.unused_bytes() == 4 * (4 - 1) * ((24 + 16) + (40 + 16))
    params[0].grad = torch.rand(24, 16, generator=torch.Generator().manual_seed(0))
    optimizer.param_groups[0]["rank_interval"] = 1
    optimizer.step()
    assert optimizer.diagnostics()["rank"] == (4 + 1) / 2
    assert optimizer.unused_bytes() == 4 * (4 - 1) * (40 + 16)


@pytest.mark.parametrize(
    ("shape", "fraction", "rank"),
    [((3072, 768), 0.25, 192), ((50257, 768), 1e-9, 1), ((7, 9), 0.25, 1), ((1, 9), 1.0, 1), ((9, 7), 1.0, 7)],
)
def test_the_largest_rank_is_a_fraction_of_the_shorter_side(shape: tuple[int, int], fraction: float, rank: int) -> None:
    assert largest_rank(shape, fraction) == rank


@pytest.mark.parametrize(
    ("beta1", "fraction", "saved"), [(0.9, 0.25, 34.5), (0.9, 1e-9, 49.9), (None, 0.25, 84.5), (None, 1e-9, 99.9)]
)
def test_gpt2s_state_is_as_much_smaller_than_adams_as_the_paper_says(
    beta1: float | None, fraction: float, saved: float
) -> None:
    """At the largest rank and at rank 1; of 117M parameters."""
    with torch.device("meta"):
        model = GPT(vocab_size=50257, n_layer=12, n_head=12, n_embd=768, block_size=1024)
    names = dict(model.named_parameters())
    adapprox = {"_target_": "optim.Adapprox", "beta1": beta1, "max_rank_fraction": fraction}
    found = [state_bytes(config, names, model.roles()) for config in (adapprox, {"_target_": "optim.AdamW"})]
    assert 100 * (1 - found[0] / found[1]) == pytest.approx(saved, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"beta1": 1.0}, r"beta1=1.0 must be in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2=1.0 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
        ({"max_rank_fraction": 0.0}, r"max_rank_fraction=0.0 must be in \(0, 1\]"),
        ({"max_rank_fraction": 1.5}, r"max_rank_fraction=1.5 must be in \(0, 1\]"),
        ({"rank_threshold": -0.1}, r"rank_threshold=-0.1 must be in \[0, 1\)"),
        ({"rank_interval": 0}, "rank_interval=0 must be >= 1"),
        ({"iterations": 0}, "iterations=0 must be >= 1"),
        ({"seed": -1}, "seed=-1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Adapprox: {message}"):
        Adapprox([torch.zeros(2, requires_grad=True)], **settings)
