"""Flora: the paper's box on Adafactor in float64, and what its sketch promises."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from drift import gradients, step
from oracles import Array, ema, rms
from torch import Tensor

from optim import Adafactor, Flora
from optim.noise import gaussians, key_of

SHAPES = [(7, 5), (5, 7), (6, 6), (11,), (1,), (2, 3, 4), (1, 9), (9, 1), (24, 8), (8, 32), (33, 8), (4, 1)]
SETTINGS: list[dict[str, Any]] = [
    {"rank": 2, "kappa": 7},
    {"rank": 5, "kappa": 1, "beta1": 0.5, "weight_decay": 0.3, "clip_threshold": 0.5, "seed": 3},
    {"rank": None, "rank_ratio": 3, "kappa": 16, "beta2_decay": -0.5, "eps": (1e-3, 0.5), "relative_step": True},
    {"rank": None, "rank_ratio": 1, "kappa": 30, "beta1": 0.0},
    {"rank": 2, "kappa": 7, "exact_update": True},
    {"rank": None, "rank_ratio": 2, "kappa": 16, "beta1": 0.6, "relative_step": True, "exact_update": True},
]


class Oracle:
    """Hao et al., arXiv:2402.03293, Algorithm 2, for the updates of Adafactor (arXiv:1804.04235).

    W (m, n) with r <= n <= m <= 4n; t = 1, 2, ...; A_0, A_1, ... (n, r) with independent entries of variance 1 / r
    1. b2 = 1 - t^beta2_decay; R <- EMA_b2(R, row means of g^2 + eps1); C <- EMA_b2(C, column means of it)
    2. u = g / sqrt(R C / mean(R));  u <- u / max(1, rms(u) / d)
    3. if t > 1 and (t - 1) mod kappa = 0: M <- M @ A_e^T @ A_e+1;  e <- e + 1
    4. with exact_update, the authors' code: D = b1 M @ A_e^T + (1 - b1) u
    5. M <- EMA_b1(M, u @ A_e);  without: D = M @ A_e^T
    6. alpha = lr, with relative_step max(eps2, rms(W)) min(lr, 1 / sqrt(t))
    7. W <- (1 - lr weight_decay) W - alpha D
    With m < n, the same of the transposed W. Anything else: M <- EMA_b1(M, u) and alpha M; what is no matrix has
    V <- EMA_b2(V, g^2 + eps1) for R C / mean(R).
    """

    def __init__(
        self,
        w: Array,
        lr: float,
        sketch: Callable[[int], Array] | None,
        kappa: int = 1000,
        beta1: float = 0.9,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        relative_step: bool = False,
        exact_update: bool = False,
    ) -> None:
        self.exact_update = exact_update
        self.w, self.lr, self.A, self.kappa, self.beta1 = w.copy(), lr, sketch, kappa, beta1
        self.beta2_decay, self.eps, self.d, self.weight_decay = beta2_decay, eps, clip_threshold, weight_decay
        self.relative_step, self.is_turned = relative_step, w.ndim == 2 and w.shape[0] < w.shape[1]
        self.M, self.V, self.R, self.C = (np.zeros(()),) * 4
        self.t, self.e = 0, 0

    def step(self, g: Array) -> None:
        self.t += 1
        u = self.update(g.T if self.is_turned else g)
        if self.A is None:
            self.M = ema(self.M, u, self.beta1)
            out = self.M
        else:
            if self.t > 1 and (self.t - 1) % self.kappa == 0:  # l. 3
                self.M = self.M @ self.A(self.e).T @ self.A(self.e + 1)
                self.e += 1
            older = self.M @ self.A(self.e).T if self.t > 1 else 0 * u
            self.M = ema(self.M, u @ self.A(self.e), self.beta1)  # l. 5
            out = ema(older, u, self.beta1) if self.exact_update else self.M @ self.A(self.e).T  # l. 4, 5
        relative = max(self.eps[1], rms(self.w)) * min(self.lr, self.t**-0.5)
        alpha = relative if self.relative_step else self.lr  # l. 6
        self.w = (1 - self.lr * self.weight_decay) * self.w - alpha * (out.T if self.is_turned else out)  # l. 7

    def update(self, g: Array) -> Array:
        b2, square = 1 - float(self.t) ** self.beta2_decay, g * g + self.eps[0]
        if g.ndim == 2:
            self.R, self.C = ema(self.R, square.mean(1), b2), ema(self.C, square.mean(0), b2)  # l. 1
            u = g / np.sqrt(np.outer(self.R, self.C) / self.R.mean())  # l. 2
        else:
            self.V = ema(self.V, square, b2)
            u = g / np.sqrt(self.V)
        return np.asarray(u / max(1.0, rms(u) / self.d))


def sketch_of(
    shape: tuple[int, ...], rank: int | None = 128, rank_ratio: float | None = None, seed: int = 0, **_: Any
) -> Callable[[int], Array] | None:
    """By epoch, the draw that the paper leaves open: both sides take ours. None for shapes without."""
    shorter, longer = (min(shape), max(shape)) if len(shape) == 2 else (0, 0)
    r = rank if rank_ratio is None else max(1, int(shorter // rank_ratio))
    assert r is not None
    if r > shorter or longer > 4 * shorter:
        return None

    def sketch(epoch: int) -> Array:
        drawn = gaussians((shorter, r), key_of(seed, *shape, epoch), torch.float64, torch.device("cpu"))
        return np.asarray(drawn.numpy() / np.sqrt(r))

    return sketch


def started(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Flora, Tensor]:
    param = torch.tensor(np.random.default_rng(7).standard_normal(shape), dtype=dtype, requires_grad=True)
    return Flora([param], **{"lr": 0.03} | settings), param


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_follows_the_papers_box(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    optimizer, param = started(shape, **settings)
    start = param.detach().numpy().copy()
    own = {name: value for name, value in settings.items() if name not in ("rank", "rank_ratio", "seed")}
    oracle = Oracle(start, lr=0.03, sketch=sketch_of(shape, **settings), **own)
    for t, g in enumerate(gradients(shape, 60), start=1):
        optimizer.param_groups[0]["lr"] = oracle.lr = 0.03 / (1 + t % 7)
        step(optimizer, param, g)
        oracle.step(g)
    assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-9 * np.linalg.norm(oracle.w - start)


def test_two_steps_by_hand() -> None:
    """Of a single number the update is its gradient's sign, and each epoch's sketch a number a."""
    optimizer, param = started((1, 1), rank=1, kappa=1, beta1=0.75, lr=0.5, weight_decay=0.2)
    sketch, before = sketch_of((1, 1), rank=1), param.item()
    assert sketch is not None
    a, b = sketch(0).item(), sketch(1).item()
    step(optimizer, param, np.array([[-3.0]]))
    after = 0.9 * before - 0.5 * 0.25 * -1 * a * a
    np.testing.assert_allclose(param.item(), after)
    step(optimizer, param, np.array([[3.0]]))
    m = 0.75 * (0.25 * -1 * a) * a * b + 0.25 * 1 * b
    np.testing.assert_allclose(param.item(), 0.9 * after - 0.5 * m * b)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64)])
def test_the_momentum_is_adafactors_on_average_over_seeds(shape: tuple[int, int]) -> None:
    """Of the sixth step's update, after two transfers, each of which adds to the noise."""
    gs, seeds = gradients(shape, 6), 16
    params = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in range(seeds)]
    optimizer = Flora([{"params": [p], "seed": n} for n, p in enumerate(params)], lr=1.0, rank=16, kappa=2)
    exact = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    adafactor = Adafactor([exact], lr=1.0, beta1=0.9, relative_step=False)
    for g in gs:
        before, start = [param.detach().clone() for param in params], exact.detach().clone()
        for param in params:
            param.grad = torch.tensor(g)
        optimizer.step()
        step(adafactor, exact, g)
    moved = torch.stack([param.detach() - old for param, old in zip(params, before, strict=True)])
    expected = exact.detach() - start
    # How much of the exact update each has; without 1 / sqrt(r) in the sketches, 16 times as much and more.
    shares = (moved * expected).sum((1, 2)) / expected.square().sum()
    assert abs(shares.mean() - 1) < 4 * shares.std() / seeds**0.5 < 0.2
    # What the mean misses is the mean's own spread.
    missed, spread = (moved.mean(0) - expected).square().sum(), moved.var(0).sum() / seeds
    assert 0.8 < missed / spread < 1.25


@pytest.mark.parametrize("shape", [(11,), (2, 3, 4), (33, 8), (8, 33), (5, 4)])
@pytest.mark.parametrize("relative_step", [True, False])
def test_shapes_without_a_sketch_are_adafactors_with_momentum(shape: tuple[int, ...], relative_step: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.03, "beta1": 0.8, "weight_decay": 0.1, "relative_step": relative_step}
    flora, ours = started(shape, rank=5, kappa=2, **settings)
    theirs = ours.detach().clone().requires_grad_()
    adafactor = Adafactor([theirs], **settings)
    for g in gradients(shape, 9):
        step(flora, ours, g)
        step(adafactor, theirs, g)
    assert torch.equal(ours, theirs)
    assert flora.state[ours].keys() == adafactor.state[theirs].keys()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_with_exact_updates_the_sketch_has_the_older_ones_alone(shape: tuple[int, int]) -> None:
    settings: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.1, "relative_step": True}
    for beta1, steps in ((0.0, 9), (0.9, 1)):  # without momentum, or before there is any, Adafactor
        flora, ours = started(shape, rank=1, kappa=2, beta1=beta1, exact_update=True, **settings)
        theirs = ours.detach().clone().requires_grad_()
        adafactor = Adafactor([theirs], beta1=beta1, **settings)
        for g in gradients(shape, steps):
            step(flora, ours, g)
            step(adafactor, theirs, g)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_the_sketch_is_drawn_anew_every_kappa_steps_and_the_same_in_between() -> None:
    optimizer, param = started((6, 4), rank=4, kappa=3, beta1=0.0, lr=1.0)
    spaces = []
    for g in gradients((6, 4), 8):
        before = param.detach().clone()
        step(optimizer, param, np.ones_like(g))  # without momentum every update is u A A^T of the same u
        spaces.append(param.detach() - before)
    same = [torch.allclose(a, b) for a, b in pairwise(spaces)]
    assert same == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("kappa", [1, 1000])
def test_updates_have_the_rank_of_the_sketch_and_parameters_soon_more(kappa: int) -> None:
    """Why it is drawn anew: with one draw for ever, parameters would move in r dimensions."""
    optimizer, param = started((8, 8), rank=2, kappa=kappa)
    start = param.detach().clone()
    for g in gradients((8, 8), 6):
        before = param.detach().clone()
        step(optimizer, param, g)
        assert torch.linalg.matrix_rank(param.detach() - before, rtol=1e-9) == 2
    assert torch.linalg.matrix_rank(param.detach() - start, rtol=1e-9) == (8 if kappa == 1 else 2)


def test_seeds_and_shapes_have_their_own_sketches_and_the_global_generator_none() -> None:
    ends = []
    for seed, torchs in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(torchs)
        optimizer, param = started((6, 4), rank=2, seed=seed)
        step(optimizer, param, gradients((6, 4), 1)[0])
        ends.append(param.detach().clone())
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[0], ends[2])
    tall, other = sketch_of((6, 4), rank=2), sketch_of((7, 4), rank=2)
    assert tall is not None and other is not None and not np.allclose(tall(0), other(0))


def test_a_step_that_is_skipped_when_a_new_sketch_is_due_leaves_the_old_one() -> None:
    """The momentum must not be read by another draw than it was written with: it would be noise."""
    optimizer, param = started((6, 4), rank=2, kappa=2, lr=1.0)
    for g in gradients((6, 4), 2):
        before = param.detach().clone()
        step(optimizer, param, g)
    update = param.detach() - before
    optimizer.skip()  # step 3, whose sketch would be another
    before = param.detach().clone()
    step(optimizer, param, np.zeros((6, 4)))
    torch.testing.assert_close(param.detach() - before, 0.9 * update)
    step(optimizer, param, gradients((6, 4), 1)[0])
    assert optimizer.state[param]["epoch"] == 1


def test_a_row_without_gradient_and_a_gradient_of_zeros_are_safe() -> None:
    optimizer, param = started((6, 4), torch.float32, rank=2, kappa=2)
    before = param.detach().clone()
    for t in range(6):
        g = gradients((6, 4), 1)[0] * (t > 2)
        g[1] = 0
        step(optimizer, param, g)
    assert torch.equal(param.detach()[1], before[1])
    assert param.isfinite().all() and all(tensor.isfinite().all() for tensor in optimizer.state[param].values())


@pytest.mark.parametrize(
    ("shape", "settings", "numbers"),
    [
        ((30, 20), {"rank": 4}, 30 * 4 + 50),
        ((20, 30), {"rank": None, "rank_ratio": 3}, 30 * 6 + 50),
        ((20, 30), {"rank": 21}, 600 + 50),
        ((81, 20), {"rank": 4}, 81 * 20 + 101),
        ((30,), {"rank": 4}, 60),
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
        ({"beta1": 1.0}, r"beta1=1.0 must be in \[0, 1\)"),
        ({"beta1": None}, r"beta1=None must be in \[0, 1\)"),
        ({"beta2_decay": 0.0}, "beta2_decay=0.0 must be .*0"),
        ({"eps": (0.0, 1e-3)}, r"eps\[0\]=0.0 must be > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 must be > 0"),
        ({"rank": 0}, "rank=0 must be >= 1"),
        ({"rank_ratio": 3}, "rank=128 and rank_ratio=3: give one of them"),
        ({"kappa": 0}, "kappa=0 must be >= 1"),
        ({"seed": 1 << 32}, "seed=4294967296 must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Flora: {message}"):
        Flora([torch.zeros(2, 3, requires_grad=True)], **settings)
