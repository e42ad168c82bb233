"""Muon against its published form in NumPy, its singular values, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from optim import Muon, stacks
from optim.newton_schulz import orthogonal

Array = NDArray[np.float64]
STEPS = 60
SHAPES = [(7, 5), (5, 7), (6, 6), (1, 9), (9, 1), (1, 1), (12, 4), (70, 65)]


class Oracle:
    """Jordan et al., 2024, and for normalize_rows NorMuon, arXiv:2510.05491, Algorithm 1; for one matrix (m, n).

    1. B <- mu B + (1 - mu) g
    2. X = (1 - mu) g + mu B with Nesterov's momentum, else B
    3. of every part of X (query, key and value are three): O = NewtonSchulz(X)
       X <- X / (|X|_F + eps); 5 times X <- a X + (b A + c A @ A) @ X with A = X @ X^T, X transposed if it is tall
    4. NorMuon: v <- EMA_b2(v, mean of O^2 over columns);  N = O / (sqrt(v) + eps);  O <- N |O|_F / |N|_F
    5. w <- (1 - lr weight_decay) w
    6. w <- w - lr k O with k = 0.2 sqrt(max(m, n)), or sqrt(max(1, m / n)), of a part
    """

    def __init__(self, w: Array, lr: float, parts: int = 1, **settings: Any) -> None:
        self.w, self.lr, self.parts, self.settings = w.copy(), lr, parts, settings
        self.b, self.v = np.zeros_like(w), np.zeros(len(w))

    def newton_schulz(self, x: Array) -> Array:
        y = (x.T if x.shape[0] > x.shape[1] else x) / (math.sqrt((x * x).sum()) + 1e-7)
        for _ in range(5):
            gram = y @ y.T
            y = 3.4445 * y - (4.7750 * gram - 2.0315 * gram @ gram) @ y
        return y.T if x.shape[0] > x.shape[1] else y

    def step(self, g: Array) -> None:
        mu, decay = self.settings["momentum"], self.settings["weight_decay"]
        self.b = mu * self.b + (1 - mu) * g  # l. 1
        x = (1 - mu) * g + mu * self.b if self.settings.get("nesterov", True) else self.b  # l. 2
        o = np.concatenate([self.newton_schulz(part) for part in np.split(x, self.parts)])  # l. 3
        if self.settings.get("normalize_rows"):  # l. 4
            self.v = 0.9 * self.v + 0.1 * (o * o).mean(1)
            n = o / (np.sqrt(self.v) + 1e-7)[:, None]
            norm = math.sqrt((n * n).sum())
            o = n * math.sqrt((o * o).sum()) / norm if norm else n
        self.w = (1 - self.lr * decay) * self.w  # l. 5
        rows, columns = len(g) // self.parts, g.shape[1]
        usual = self.settings.get("scale", "rms") == "rms"
        k = 0.2 * math.sqrt(max(rows, columns)) if usual else math.sqrt(max(1, rows / columns))
        self.w = self.w - self.lr * k * o  # l. 6


@pytest.mark.parametrize(
    "settings",
    [{}, {"nesterov": False}, {"normalize_rows": True, "beta2": 0.9}, {"scale": "shape"}, {"splits_qkv": False}],
)
def test_it_follows_the_published_steps(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    settings = {"momentum": 0.8, "weight_decay": 0.1, **settings}
    start = [rng.standard_normal(shape) for shape in SHAPES]
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = Muon(params, lr=1.0, bf16_products=False, **settings)
    parts = [3 if s[0] == 3 * s[1] and settings.get("splits_qkv", True) else 1 for s in SHAPES]
    assert 3 in parts or not settings.get("splits_qkv", True)
    oracles = [Oracle(w, 1.0, n, **settings) for w, n in zip(start, parts, strict=True)]
    means = [rng.standard_normal(shape) for shape in SHAPES]
    for t in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t % 7)
        for param, oracle, mean in zip(params, oracles, means, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (mean + rng.standard_normal(mean.shape))
            if len(g) == 7:
                g[0] = 0
            param.grad, oracle.lr = torch.tensor(g), 0.03 / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
    for param, oracle, w in zip(params, oracles, start, strict=True):
        drift = np.linalg.norm(param.detach().numpy() - oracle.w) / np.linalg.norm(oracle.w - w)
        assert drift < 1e-9


def singular(values: Tensor, m: int, n: int) -> Tensor:
    """A matrix (m, n) with these singular values."""
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64, generator=generator), full_matrices=False)
    return (u * values) @ v


@pytest.mark.parametrize("shape", [(48, 48), (48, 200), (200, 48)])
@pytest.mark.parametrize(("in_bf16", "tolerance"), [(False, 0.0), (True, 0.08)])  # of 24 square ones 0.615 and more
def test_singular_values_end_in_the_band_that_the_polynomial_has(
    shape: tuple[int, int], in_bf16: bool, tolerance: float
) -> None:
    """Where it maps [0.0015, 1] in five steps, computed for numbers, is where it maps singular values."""
    x = np.linspace(0.0015, 1, 100_001)
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
    assert x.min() == pytest.approx(0.68, abs=0.01) and x.max() == pytest.approx(1.20, abs=0.01)
    start = torch.logspace(0, -2.7, 48, dtype=torch.float64)
    start = start / start.norm()
    assert start.min() > 0.0015 / 2
    found = orthogonal(singular(start.clamp(min=0.0015), *shape)[None], 5, 1e-12, in_bf16=in_bf16)[0]
    ends = torch.linalg.svdvals(found.double())
    assert x.min() - 1e-3 - tolerance <= ends.min() and ends.max() <= x.max() + 1e-3 + tolerance


def test_the_update_is_that_of_any_multiple_of_the_gradients() -> None:
    ends = []
    for factor in (1.0, 1e4):
        param = torch.nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
        optimizer = Muon([param], lr=0.1, bf16_products=False, eps=1e-30)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            param.grad = factor * torch.randn(8, 6, dtype=torch.float64, generator=generator)
            optimizer.step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("options", [{}, {"normalize_rows": True}])
def test_stacks_of_a_shape_are_as_each_alone(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices where a launch is expensive."""
    ends, counts = [], []
    for below in (0, 1 << 25):
        params = [torch.nn.Parameter(torch.full(s, 1 / 4, dtype=torch.float64)) for s in [(8, 6)] * 3 + [(6, 2)] * 2]
        optimizer = Muon(params, lr=0.1, bf16_products=False, **options)
        calls: list[int] = []

        def stacked(*arguments: Any, below: int, limit: int = below, seen: list[int] = calls) -> Any:
            for each in stacks.stacked_tensors(*arguments, below=limit):
                seen.append(len(each[0].param))
                yield each

        monkeypatch.setattr("optim.engine.stacked_tensors", stacked)
        for step in range(3):
            for n, param in enumerate(params):
                generator = torch.Generator().manual_seed(10 * step + n)
                param.grad = torch.randn(param.shape, dtype=torch.float64, generator=generator)
            optimizer.step()
        monkeypatch.undo()
        ends.append([param.detach() for param in params])
        counts.append(len(calls))
    assert counts == [15, 6]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_costs_the_products_that_it_does() -> None:
    shapes = [(8, 6), (6, 8), (12, 4), (300, 70)]
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = Muon(params, bf16_products=False)
    for param in params:
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as products:
        optimizer.step()
    assert optimizer.flops_of_all(1) == products.get_total_flops()


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="Muon: .* is no matrix, but has 1 dimensions; give it to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps=0"),
        ({"scale": "spectral"}, "scale='spectral' must be one of rms, shape"),
        ({"beta2": -0.1}, "beta2=-0.1"),
        ({"eps": 0.0}, "eps=0.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Muon: {message}"):
        Muon([torch.nn.Parameter(torch.zeros(3, 3))], **settings)
