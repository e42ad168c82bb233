"""GaLore: the paper's box in float64, and what its projector promises."""

from typing import Any

import numpy as np
import oracles
import pytest
import torch
from drift import gradients, step
from oracles import Array, ema
from torch import Tensor

from optim import GaLore

SHAPES = [(7, 5), (5, 7), (6, 6), (11,), (1,), (2, 3, 4), (1, 9), (9, 1), (24, 8), (8, 32)]
SETTINGS: list[dict[str, Any]] = [
    {"rank": 2, "update_interval": 4},
    {"rank": 5, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3, "update_interval": 1, "scale": 0.5},
    {"rank": None, "rank_ratio": 3, "update_interval": 7, "weight_decay": 0.1},
    {"rank": None, "rank_ratio": 1.5, "scale": 2.0},
]


class Oracle:
    """Zhao et al., arXiv:2403.03507, Algorithm 2, with its authors' place for eps and decay.

    W (m, n) with m >= n >= r; t = 1, 2, ...
    1. if (t - 1) mod T = 0: U S V^T = svd(G); P = V[:, :r], signs such that the largest entry of a column is positive
    2. R = G @ P
    3. M <- EMA_b1(M, R)
    4. V <- EMA_b2(V, R^2)
    5. N = sqrt(1 - b2^t) / (1 - b1^t) M / (sqrt(V) + eps)
    6. W <- W - lr scale N @ P^T
    7. W <- (1 - lr weight_decay) W
    With m < n, the same of the transposed W. Anything else: P = I, scale = 1. r = rank or min(m, n) // rank_ratio, at
    least 1.
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        rank_ratio: float | None = None,
        update_interval: int = 200,
        scale: float = 0.25,
    ) -> None:
        self.w, self.lr, self.betas, self.eps, self.weight_decay = w.copy(), lr, betas, eps, weight_decay
        shorter = min(w.shape) if w.ndim == 2 else 0
        self.r = rank if rank is not None else max(1, int(shorter // rank_ratio))  # type: ignore[operator]
        self.is_projected, self.is_turned = self.r <= shorter, w.ndim == 2 and w.shape[0] < w.shape[1]
        self.T, self.scale, self.t = update_interval, scale if self.is_projected else 1.0, 0
        self.P, self.M, self.V = np.zeros(()), np.zeros(()), np.zeros(())

    def step(self, g: Array) -> None:
        self.t += 1
        b1, b2 = self.betas
        g = g.T if self.is_turned else g
        if self.is_projected and (self.t - 1) % self.T == 0:  # l. 1
            self.P = np.linalg.svd(g)[2].T[:, : self.r]
            self.P = self.P * np.sign(self.P[abs(self.P).argmax(0), np.arange(self.r)])
        R = g @ self.P if self.is_projected else g  # l. 2
        self.M = ema(self.M, R, b1)  # l. 3
        self.V = ema(self.V, R * R, b2)  # l. 4
        N = np.sqrt(1 - b2**self.t) / (1 - b1**self.t) * self.M / (np.sqrt(self.V) + self.eps)  # l. 5
        N = N @ self.P.T if self.is_projected else N
        self.w = self.w - self.lr * self.scale * (N.T if self.is_turned else N)  # l. 6
        self.w = (1 - self.lr * self.weight_decay) * self.w  # l. 7


def started(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[GaLore, Tensor]:
    param = torch.tensor(np.random.default_rng(7).standard_normal(shape), dtype=dtype, requires_grad=True)
    return GaLore([param], **{"lr": 0.03} | settings), param


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_follows_the_papers_box(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    optimizer, param = started(shape, **settings)
    start = param.detach().numpy().copy()
    oracle = Oracle(start, lr=0.03, **settings)
    for t, g in enumerate(gradients(shape, 60), start=1):
        optimizer.param_groups[0]["lr"] = oracle.lr = 0.03 / (1 + t % 7)
        step(optimizer, param, g)
        oracle.step(g)
    assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - start)


def test_a_step_by_hand() -> None:
    """Of a diagonal gradient the first singular vector is that of the largest entry, whatever its sign."""
    optimizer, param = started((3, 2), rank=1, lr=0.5, betas=(0.5, 0.75), eps=1.0, weight_decay=0.2, scale=0.1)
    before = param.detach().clone()
    step(optimizer, param, np.array([[1.0, 0], [0, -4.0], [0, 0]]))
    # P = (0, 1); R = (0, -4, 0): M / (1 - b1) = R, and V = R^2 / 4 = 4, so that N = -4 sqrt(1 / 4) / (2 + 1).
    moved = torch.zeros(3, 2, dtype=torch.float64)
    moved[1, 1] = 0.5 * 0.1 * 2 / 3
    torch.testing.assert_close(param.detach(), 0.9 * (before + moved))


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (6, 6)])
def test_the_projector_is_orthonormal_and_renewed_on_time(shape: tuple[int, int]) -> None:
    optimizer, param = started(shape, rank=3, update_interval=4)
    renewed, before = [], torch.zeros(6, 3, dtype=torch.float64)
    for t, g in enumerate(gradients(shape, 13), start=1):
        step(optimizer, param, g)
        projector = optimizer.state[param]["projector"]
        torch.testing.assert_close(projector.mT @ projector, torch.eye(3, dtype=torch.float64))
        if not torch.equal(projector, before):
            renewed.append(t)
            kept = (g if shape[0] >= shape[1] else g.T) @ projector.numpy()
            np.testing.assert_allclose(np.linalg.norm(kept, axis=0), np.linalg.svd(g)[1][:3])
        before = projector.clone()
    assert renewed == [1, 5, 9, 13]


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (6, 6)])
def test_with_full_rank_and_scale_1_it_is_adam_in_a_rotated_basis(shape: tuple[int, int]) -> None:
    optimizer, param = started(shape, rank=6, scale=1.0, eps=0.0, betas=(0.9, 0.95))
    gs, start = gradients(shape, 20), param.detach().numpy().copy()
    u, _, vt = np.linalg.svd(gs[0])
    left, right = (np.eye(shape[0]), vt.T) if shape[0] >= shape[1] else (u, np.eye(shape[1]))
    adam = oracles.AdamW(left.T @ start @ right, lr=0.03, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
    for g in gs:
        step(optimizer, param, g)
        adam.step(left.T @ g @ right)
    np.testing.assert_allclose(param.detach().numpy(), left @ adam.w @ right.T, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 6), (7,), (2, 3, 4)])
def test_what_is_shorter_than_the_rank_is_adams(shape: tuple[int, ...]) -> None:
    """Without scale, so that a setting for a large model makes sense for a tiny one."""
    optimizer, param = started(shape, rank=7, eps=0.0, betas=(0.9, 0.95))
    adam = oracles.AdamW(param.detach().numpy(), lr=0.03, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
    for g in gradients(shape, 9) + 1e-3:
        step(optimizer, param, g)
        adam.step(g)
    np.testing.assert_allclose(param.detach().numpy(), adam.w)


def test_moments_stay_when_the_projector_changes() -> None:
    optimizer, param = started((6, 4), rank=2, update_interval=3, betas=(0.5, 0.5))
    for g in gradients((6, 4), 3):
        step(optimizer, param, g)
    state = optimizer.state[param]
    before = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq", "projector")}
    g = gradients((6, 4), 1, seed=1)[0]
    step(optimizer, param, g)
    assert not torch.equal(state["projector"], before["projector"])
    projected = torch.tensor(g) @ state["projector"]
    torch.testing.assert_close(state["exp_avg"], (before["exp_avg"] + projected) / 2)
    torch.testing.assert_close(state["exp_avg_sq"], (before["exp_avg_sq"] + projected.square()) / 2)


def test_signs_do_not_depend_on_the_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    eigh, projectors = torch.linalg.eigh, []
    for sign in (1.0, -1.0):

        def turned(matrix: Tensor, sign: float = sign) -> tuple[Tensor, Tensor]:
            values, vectors = eigh(matrix)
            return values, vectors * sign

        monkeypatch.setattr(torch.linalg, "eigh", turned)
        optimizer, param = started((6, 4), rank=3)
        step(optimizer, param, gradients((6, 4), 1)[0])
        projectors.append(optimizer.state[param]["projector"])
    assert torch.equal(*projectors)
    largest = projectors[0].gather(0, projectors[0].abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_the_projector_is_as_near_to_the_singular_vectors_as_an_svd_in_float32() -> None:
    """Of a gradient whose singular values span four decades; a Gram matrix in float32 would miss by 0.4."""
    rng = np.random.default_rng(0)
    m, n, r = 60, 40, 30
    left, right = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (m, n))
    g = torch.tensor((left * 10.0 ** (-4 * np.arange(n) / n)) @ right.T, dtype=torch.float32)
    exact = torch.linalg.svd(g.double())[2][:r].mT
    optimizer, param = started((m, n), torch.float32, rank=r)
    step(optimizer, param, g.numpy())
    found = {"ours": optimizer.state[param]["projector"], "svd": torch.linalg.svd(g)[2][:r].mT}
    errors = {name: float((p.double() @ p.double().mT - exact @ exact.mT).norm()) for name, p in found.items()}
    assert errors["ours"] < errors["svd"] < 1e-2


def test_without_a_first_gradient_it_is_the_identitys_first_columns_until_the_next_renewal() -> None:
    optimizer, param = started((6, 4), rank=2, update_interval=3)
    gs = gradients((6, 4), 3)
    param.grad = torch.tensor(gs[0])
    optimizer.skip()
    for g in gs[:2]:
        before = param.detach().clone()
        step(optimizer, param, g)
        assert torch.equal(optimizer.state[param]["projector"], torch.eye(4, 2, dtype=torch.float64))
        assert ((param.detach() - before).norm(dim=0) > 0).tolist() == [True, True, False, False]
    step(optimizer, param, gs[2])
    np.testing.assert_allclose(abs(optimizer.state[param]["projector"].numpy()), abs(np.linalg.svd(gs[2])[2][:2].T))


def test_a_gradient_of_zeros_leaves_the_projector_and_is_no_failure() -> None:
    optimizer, param = started((6, 4), rank=2, update_interval=2)
    for t, g in enumerate(gradients((6, 4), 3)):
        step(optimizer, param, g * (t == 0))
        if t == 0:
            before = optimizer.state[param]["projector"].clone()
    assert torch.equal(optimizer.state[param]["projector"], before)
    assert optimizer.diagnostics()["kept_projectors"] == 0
    assert param.isfinite().all()


def test_a_factorisation_that_fails_leaves_the_projector_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("failed to converge")

    optimizer, param = started((6, 4), rank=2, update_interval=2)
    gs = gradients((6, 4), 5)
    step(optimizer, param, gs[0])
    before = optimizer.state[param]["projector"].clone()
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    for g in gs[1:]:
        step(optimizer, param, g)
    assert torch.equal(optimizer.state[param]["projector"], before)
    found = {name: float(value) for name, value in optimizer.diagnostics().items()}
    assert (found["kept_projectors"], optimizer._refreshes.count) == (2, 3)
    assert "2 projectors could not be refreshed" in optimizer.hints(found)[0]
    assert param.isfinite().all()


def test_a_gradient_that_is_not_finite_leaves_the_projector() -> None:
    optimizer, param = started((6, 4), rank=2, update_interval=2)
    for t, g in enumerate(gradients((6, 4), 3)):
        step(optimizer, param, g * (np.nan if t == 2 else 1))
    assert optimizer.state[param]["projector"].isfinite().all()
    assert optimizer.diagnostics()["kept_projectors"] == 1


@pytest.mark.parametrize(
    ("shape", "settings", "numbers"),
    [
        ((30, 20), {"rank": 4}, 2 * 30 * 4 + 20 * 4),
        ((20, 30), {"rank": None, "rank_ratio": 3}, 2 * 30 * 6 + 20 * 6),
        ((20, 30), {"rank": 21}, 2 * 600),
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
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"eps": -1e-8}, "eps=-1e-08 must be >= 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
        ({"rank": 0}, "rank=0 must be >= 1"),
        ({"rank": None, "rank_ratio": 0.5}, "rank_ratio=0.5 must be >= 1"),
        ({"rank": None}, "rank=None and rank_ratio=None: give one of them, and null for the other"),
        ({"rank_ratio": 3}, "rank=128 and rank_ratio=3: give one of them"),
        ({"update_interval": 0}, "update_interval=0 must be >= 1"),
        ({"scale": 0.0}, "scale=0.0 must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"GaLore: {message}"):
        GaLore([torch.zeros(2, 3, requires_grad=True)], **settings)
