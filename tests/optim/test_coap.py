"""COAP: the paper's box in float64 with either base, its loss by autograd, and what its projector promises."""

from itertools import pairwise
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from drift import gradients, step
from oracles import Array, ema, rms
from torch import Tensor
from torch.nn import functional as F

from optim import COAP
from optim.coap import loss_gradient
from optim.noise import gaussians, key_of
from optim.subspace import principal

SHAPES = [(7, 5), (5, 7), (6, 6), (11,), (1,), (2, 3, 4), (1, 9), (9, 1), (24, 8), (8, 32)]
SETTINGS: list[dict[str, Any]] = [
    {"rank": 2, "update_interval": 3, "svd_factor": 4},
    {"rank": 5, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3, "update_interval": 1, "svd_factor": 7},
    {"rank": None, "rank_ratio": 3, "update_interval": 2, "svd_factor": 1, "scale": 0.5, "seed": 3},
    {"base": "adafactor", "rank": 2, "update_interval": 2, "svd_factor": 3, "projector_lr": 0.5},
    {"base": "adafactor", "rank": None, "rank_ratio": 2, "betas": (0.5, 0.9), "beta2_decay": -0.5},
    {"base": "adafactor", "rank": 3, "clip_threshold": 0.5, "weight_decay": 0.1, "scale": 2.0, "update_interval": 1},
]


class Oracle:
    """Xiao et al., arXiv:2412.00071, Adam and Adafactor with COAP.

    W (m, n) with m >= n >= r; t = 1, 2, ...
    1. if (t - 1) mod (T_u lambda) = 0: Q R = qr(G @ P); U S Z^T = svd(Q^T @ G); P <- Z, signs such that the largest
       entry of a column is positive. At t = 1, a random Omega (n, r) stands for P
    2. else if (t - 1) mod T_u = 0: D = dL / dP; P <- P - rate D / max(1, |D|), for
       L = mean((G @ P @ P^T - G)^2) (1 - mean over rows of cos((M @ P^T)_i, G_i)); a cosine with 0 is 0
    3. g = G @ P
    Adam:
    4. M <- EMA_b1(M, g)
    5. V <- EMA_b2(V, g^2)
    6. N = sqrt(1 - b2^t) / (1 - b1^t) M / (sqrt(V) + eps)
    Adafactor:
    4. b = 1 - t^beta2_decay; R <- EMA_b(R, row means of g^2 + 1e-30); C <- EMA_b(C, column means of it)
    5. u = g / sqrt(R C / mean(R)); u <- u / max(1, rms(u) / d)
    6. M <- EMA_b1(M, u); N = M
    7. W <- (1 - lr weight_decay) W - lr scale N @ P^T
    With m < n, the same of the transposed W. Anything else: P = I, scale = 1, and what is no matrix has
    V <- EMA_b(V, g^2 + 1e-30) for Adafactor's R and C.
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        base: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        beta2_decay: float = -0.8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        rank_ratio: float | None = None,
        update_interval: int = 32,
        svd_factor: int = 5,
        projector_lr: float = 0.1,
        scale: float = 1.0,
        omega: Array | None = None,
    ) -> None:
        self.w, self.lr, self.base, self.betas, self.eps = w.copy(), lr, base, betas, eps
        self.beta2_decay, self.d, self.weight_decay = beta2_decay, clip_threshold, weight_decay
        self.r = rank_of(w.shape, rank, rank_ratio)
        self.is_turned = w.ndim == 2 and w.shape[0] < w.shape[1]
        self.T, self.cycle, self.rate = update_interval, update_interval * svd_factor, projector_lr
        self.scale, self.t = scale if self.r else 1.0, 0
        self.P = np.zeros(()) if omega is None else omega
        self.M, self.V, self.R, self.C = (np.zeros(()),) * 4

    def step(self, G: Array) -> None:
        self.t += 1
        G = G.T if self.is_turned else G
        if self.r and (self.t - 1) % self.cycle == 0:  # l. 1
            Q = np.linalg.qr(G @ self.P)[0]
            self.P = np.linalg.svd(Q.T @ G, full_matrices=False)[2].T
            self.P = self.P * np.sign(self.P[abs(self.P).argmax(0), np.arange(self.r)])
        elif self.r and (self.t - 1) % self.T == 0:  # l. 2
            D = self.loss_gradient(G)
            self.P = self.P - self.rate * D / max(1.0, float(np.linalg.norm(D)))
        g = G @ self.P if self.r else G  # l. 3
        N = self.adam(g) if self.base == "adamw" else self.adafactor(g)
        N = N @ self.P.T if self.r else N
        self.w = (1 - self.lr * self.weight_decay) * self.w - self.lr * self.scale * (N.T if self.is_turned else N)

    def loss_gradient(self, G: Array) -> Array:
        """By the product rule, over matrices of G's shape."""
        E, L = G @ self.P @ self.P.T - G, self.M @ self.P.T
        error = 2 * (G.T @ E + E.T @ G) @ self.P / G.size
        sizes = np.linalg.norm(L, axis=1, keepdims=True), np.linalg.norm(G, axis=1, keepdims=True)
        is_none = sizes[0] * sizes[1] == 0
        l, g = (x / np.where(is_none, 1.0, size) for x, size in zip((L, G), sizes, strict=True))  # noqa: E741
        cosines = np.where(is_none, 0.0, (l * g).sum(1, keepdims=True))
        by_L = np.where(is_none, 0.0, (g - cosines * l) / np.where(is_none, 1.0, sizes[0])) / len(G)
        return np.asarray((1 - cosines.mean()) * error - np.mean(E * E) * by_L.T @ self.M)

    def adam(self, g: Array) -> Array:
        b1, b2 = self.betas
        self.M, self.V = ema(self.M, g, b1), ema(self.V, g * g, b2)  # ll. 4-5
        return np.asarray(np.sqrt(1 - b2**self.t) / (1 - b1**self.t) * self.M / (np.sqrt(self.V) + self.eps))  # l. 6

    def adafactor(self, g: Array) -> Array:
        b, square = 1 - float(self.t) ** self.beta2_decay, g * g + 1e-30
        if g.ndim == 2:
            self.R, self.C = ema(self.R, square.mean(1), b), ema(self.C, square.mean(0), b)  # l. 4
            u = g / np.sqrt(np.outer(self.R, self.C) / self.R.mean())  # l. 5
        else:
            self.V = ema(self.V, square, b)
            u = g / np.sqrt(self.V)
        self.M = ema(self.M, u / max(1.0, rms(u) / self.d), self.betas[0])  # l. 6
        return self.M


def rank_of(shape: tuple[int, ...], rank: int | None = 128, rank_ratio: float | None = None) -> int:
    """0 if it is not projected."""
    shorter = min(shape) if len(shape) == 2 else 0
    r = rank if rank_ratio is None else max(1, int(shorter // rank_ratio))
    assert r is not None
    return r if r <= shorter else 0


def omega_of(shape: tuple[int, ...], rank: int, seed: int = 0) -> Array:
    """The draw that the paper leaves open: both sides take ours."""
    long, short = max(shape), min(shape)
    return gaussians((short, rank), key_of(seed, long, short), torch.float64, torch.device("cpu")).numpy()


def started(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[COAP, Tensor]:
    param = torch.tensor(np.random.default_rng(7).standard_normal(shape), dtype=dtype, requires_grad=True)
    return COAP([param], **{"lr": 0.03} | settings), param


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def loss(projector: Tensor, moment: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its cosine."""
    cosine = F.cosine_similarity(moment @ projector.mT, grad, dim=1).mean()
    return F.mse_loss(grad @ projector @ projector.mT, grad) * (1 - cosine), cosine


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_follows_the_papers_box(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    optimizer, param = started(shape, **settings)
    start, own = param.detach().numpy().copy(), {k: v for k, v in settings.items() if k != "seed"}
    rank = rank_of(shape, settings["rank"], settings.get("rank_ratio"))
    omega = omega_of(shape, rank, settings.get("seed", 0)) if rank else None
    oracle = Oracle(start, lr=0.03, omega=omega, **own)
    for t, g in enumerate(gradients(shape, 60, decades=2), start=1):
        optimizer.param_groups[0]["lr"] = oracle.lr = 0.03 / (1 + t % 7)
        step(optimizer, param, g)
        oracle.step(g)
    assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - start)


def test_a_step_by_hand() -> None:
    """Of a diagonal gradient every sketch with a part of the first line is turned to the first line by one product."""
    optimizer, param = started((3, 2), rank=1, lr=0.5, betas=(0.5, 0.75), eps=1.0, weight_decay=0.2, scale=0.1)
    before = param.detach().clone()
    step(optimizer, param, np.array([[0, 0], [0, -4.0], [0, 0]]))
    # P = (0, 1); g = (0, -4, 0): M / (1 - b1) = g, and V = g^2 / 4 = 4, so that N = -4 sqrt(1 / 4) / (2 + 1).
    moved = torch.zeros(3, 2, dtype=torch.float64)
    moved[1, 1] = 0.5 * 0.1 * 2 / 3
    torch.testing.assert_close(param.detach(), 0.9 * before + moved)


@pytest.mark.parametrize("sizes", [(7, 5, 2), (6, 6, 3), (9, 1, 1), (30, 8, 8)])
def test_the_gradient_of_the_loss_is_autograds(sizes: tuple[int, int, int]) -> None:
    """Also of a projector that is not orthonormal, and with rows of zeros in the gradient and in the momentum."""
    m, n, r = sizes
    projector, moment, grad = random(n, r).requires_grad_(), random(m, r, seed=1), random(m, n, seed=2)
    moment[1], grad[2] = 0, 0
    loss(projector, moment, grad)[0].backward()  # type: ignore[no-untyped-call]  # unannotated
    torch.testing.assert_close(loss_gradient(projector.detach(), moment, grad), projector.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-25, 1e15])
def test_rows_of_any_size_have_a_cosine(factor: float) -> None:
    """In float32, where the square of 1e-25 is 0: as of a token that has not occurred for long."""
    projector, moment, grad = random(5, 2).float(), random(7, 2, seed=1).float(), random(7, 5, seed=2).float()
    expected = loss_gradient(projector, moment, grad)
    moment[3] *= factor
    torch.testing.assert_close(loss_gradient(projector, moment, grad), expected)


@pytest.mark.parametrize("seed", range(20))
def test_an_update_of_the_projector_lowers_the_loss_and_does_not_lower_the_correlation(seed: int) -> None:
    """Of gradients with a common part; of unrelated ones, one in forty lowers it in favour of the reconstruction."""
    optimizer, param = started((12, 8), rank=3, update_interval=2, projector_lr=0.1)
    gs = random(1, 12, 8, seed=seed) + 0.7 * random(3, 12, 8, seed=seed + 100)
    for g in gs[:2]:
        step(optimizer, param, g.numpy())
    before, moment = (optimizer.state[param][name].clone() for name in ("projector", "exp_avg"))
    step(optimizer, param, gs[2].numpy())
    after = optimizer.state[param]["projector"]
    (loss_before, cosine_before), (loss_after, cosine_after) = (loss(p, moment, gs[2]) for p in (before, after))
    assert loss_after < loss_before
    assert cosine_after >= cosine_before


@pytest.mark.parametrize("base", ["adamw", "adafactor"])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_gradients_of_exact_rank_r_make_the_random_start_irrelevant(shape: tuple[int, int], base: str) -> None:
    ends = []
    for seed in (0, 1):
        optimizer, param = started(shape, rank=2, update_interval=3, svd_factor=2, seed=seed, base=base)
        for t in range(8):
            step(optimizer, param, (random(shape[0], 2, seed=t) @ random(2, shape[1], seed=50 + t)).numpy())
            if t == 0:
                ends.append(optimizer.state[param]["projector"].clone())
        ends.append(param.detach().clone())
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-9)
    torch.testing.assert_close(ends[1], ends[3], rtol=0, atol=1e-9)


def test_another_seed_is_another_start() -> None:
    ends = []
    for seed in (0, 0, 1):
        optimizer, param = started((9, 6), rank=2, seed=seed)
        step(optimizer, param, gradients((9, 6), 1, decades=2)[0])
        ends.append(param.detach().clone())
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[0], ends[2])


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_the_projector_is_updated_and_recomputed_on_time(shape: tuple[int, int]) -> None:
    optimizer, param = started(shape, rank=3, update_interval=2, svd_factor=3)
    before, kinds = torch.zeros(6, 3, dtype=torch.float64), []
    for g in gradients(shape, 14, decades=2):
        step(optimizer, param, g)
        projector = optimizer.state[param]["projector"]
        is_orthonormal = torch.allclose(projector.mT @ projector, torch.eye(3, dtype=torch.float64), atol=1e-12)
        kinds.append("-" if torch.equal(projector, before) else "recomputed" if is_orthonormal else "updated")
        before = projector.clone()
    assert kinds == ["recomputed", *["-", "updated"] * 2, "-"] * 2 + ["recomputed", "-"]


def test_recomputing_comes_nearer_to_the_singular_vectors_from_where_it_is() -> None:
    """A step of power iteration: of a steady gradient, all the way."""
    grad = random(12, 8)
    best, projector, kept = torch.linalg.svdvals(grad)[:3].norm(), random(8, 3, seed=1), [torch.zeros(())]
    for _ in range(30):
        found = principal(grad, projector)
        assert found is not None
        projector = found
        kept.append((grad @ projector).norm())
    assert all(after >= before - 1e-12 for before, after in pairwise(kept))
    assert kept[1] < 0.99 * best and kept[-1] > 0.999 * best


@pytest.mark.parametrize("shape", [(9, 6), (7,), (2, 3, 4)])
def test_what_is_shorter_than_the_rank_is_the_bases(shape: tuple[int, ...]) -> None:
    settings: dict[str, Any] = {"rank": 7, "eps": 0.0, "betas": (0.9, 0.95), "weight_decay": 0.1}
    adamw, start = started(shape, scale=0.5, **settings)
    adafactor, other = started(shape, base="adafactor", scale=0.5, **settings)
    w = start.detach().numpy()
    first = oracles.AdamW(w, lr=0.03, betas=(0.9, 0.95), eps=0.0, weight_decay=0.1)
    second = oracles.Adafactor(w, lr=0.03, beta1=0.9, weight_decay=0.1, relative_step=False)
    pairs: list[tuple[COAP, Tensor, Any]] = [(adamw, start, first), (adafactor, other, second)]
    for optimizer, param, oracle in pairs:
        for g in gradients(shape, 9, decades=2) + 1e-3:
            step(optimizer, param, g)
            oracle.step(g)
        np.testing.assert_allclose(param.detach().numpy(), oracle.w)


def test_a_factorisation_that_fails_leaves_the_projector_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("failed to converge")

    optimizer, param = started((6, 4), rank=2, update_interval=1, svd_factor=2)
    gs = gradients((6, 4), 5, decades=2)
    step(optimizer, param, gs[0])
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    for g in gs[1:]:
        step(optimizer, param, g)
    found = {name: float(value) for name, value in optimizer.diagnostics().items()}
    assert found["kept_projectors"] == 2
    assert "2 projectors could not be refreshed" in optimizer.hints(found)[0]
    assert param.isfinite().all()


@pytest.mark.parametrize("svd_factor", [1, 2])
def test_a_gradient_that_is_not_finite_leaves_the_projector(svd_factor: int) -> None:
    optimizer, param = started((6, 4), rank=2, update_interval=2, svd_factor=svd_factor)
    for t, g in enumerate(gradients((6, 4), 3, decades=2)):
        step(optimizer, param, g * (np.nan if t == 2 else 1))
    assert optimizer.state[param]["projector"].isfinite().all()
    assert optimizer.diagnostics()["kept_projectors"] == 1


@pytest.mark.parametrize("base", ["adamw", "adafactor"])
def test_zeros_and_gradients_of_less_than_the_rank_are_safe(base: str) -> None:
    optimizer, param = started((6, 4), torch.float32, rank=3, update_interval=1, svd_factor=2, base=base)
    for t in range(9):
        step(optimizer, param, (random(6, 1, seed=t) @ random(1, 4, seed=9)).numpy() * (t % 3 > 0))
        assert all(tensor.isfinite().all() for tensor in (param, *optimizer.state[param].values()))
    assert optimizer.diagnostics()["kept_projectors"] == 0


@pytest.mark.parametrize(
    ("shape", "settings", "numbers"),
    [
        ((30, 20), {"rank": 4}, 2 * 30 * 4 + 20 * 4),
        ((20, 30), {"rank": None, "rank_ratio": 3}, 2 * 30 * 6 + 20 * 6),
        ((20, 30), {"rank": 4, "base": "adafactor"}, 30 * 4 + 20 * 4 + 30 + 4),
        ((30, 20), {"rank": 21, "base": "adafactor"}, 600 + 50),
        ((30,), {"rank": 4}, 2 * 30),
    ],
)
def test_the_state_is_as_small_as_it_says(shape: tuple[int, ...], settings: dict[str, Any], numbers: int) -> None:
    optimizer, param = started(shape, **settings)
    optimizer.init_state()
    assert sum(t.numel() for t in optimizer.state[param].values() if t.ndim) == numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"base": "sgd"}, "base='sgd' must be one of adamw, adafactor"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"eps": -1e-8}, "eps=-1e-08 must be >= 0"),
        ({"beta2_decay": 0.0}, "beta2_decay=0.0 must be .*0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"rank": 0}, "rank=0 must be >= 1"),
        ({"rank_ratio": 3}, "rank=128 and rank_ratio=3: give one of them"),
        ({"update_interval": 0}, "update_interval=0 must be >= 1"),
        ({"svd_factor": 0}, "svd_factor=0 must be >= 1"),
        ({"projector_lr": -0.1}, "projector_lr=-0.1 must be >= 0"),
        ({"scale": 0.0}, "scale=0.0 must be > 0"),
        ({"seed": -1}, "seed=-1 must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"COAP: {message}"):
        COAP([torch.zeros(2, 3, requires_grad=True)], **settings)
