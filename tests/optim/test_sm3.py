"""SM3 against its paper's box, the bounds that the paper proves, and the special case in which it is AdaGrad."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from drift import after, drift, normal, zeros
from oracles import Array, ema
from torch import Tensor

from optim import SM3


class Oracle:
    """Anil et al., arXiv:1901.11150, Algorithm SM3-II, with the momentum of its experiments and a decoupled decay.

    Every S_r is a slice: the numbers of one index along one axis; of a vector, one number.
     7. nu(i) = min over S_r with i of mu(r), + g(i)^2
     8. u(i) = g(i) / sqrt(nu(i)), with 0 / 0 = 0
        m <- EMA_b1(m, u)
        w <- (1 - lr weight_decay) w
        w <- w - lr m
     9. mu(r) <- max over i in S_r of nu(i)
    """

    def __init__(self, w: Array, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.w, self.lr, self.b1, self.weight_decay = w.copy(), lr, momentum, weight_decay
        self.m, self.mu = np.zeros_like(w), [np.zeros(n) for n in w.shape]

    def step(self, g: Array) -> None:
        nu, u = np.zeros_like(g), np.zeros_like(g)
        for i in np.ndindex(*g.shape):
            nu[i] = min(mu[k] for mu, k in zip(self.mu, i, strict=True)) + g[i] ** 2  # l. 7
            u[i] = g[i] / np.sqrt(nu[i]) if g[i] else 0.0  # l. 8
        self.m = ema(self.m, u, self.b1)
        self.w = (1 - self.lr * self.weight_decay) * self.w
        self.w = self.w - self.lr * self.m
        self.mu = [np.zeros(n) for n in g.shape]
        for i in np.ndindex(*g.shape):
            for mu, k in zip(self.mu, i, strict=True):
                mu[k] = max(mu[k], nu[i])  # l. 9


SETTINGS: list[dict[str, Any]] = [{"momentum": 0.0}, {"momentum": 0.8, "weight_decay": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_follows_the_papers_box(settings: dict[str, Any]) -> None:
    assert drift(SM3, Oracle, {"lr": 0.03, **settings}) < 1e-9


def test_two_steps_by_hand() -> None:
    param = zeros(2, 2)
    sm3 = SM3([param], lr=0.1, momentum=0.5)
    first = -0.05 * np.array([[1.0, 1.0], [-1.0, 0.0]])  # nu = g^2; rows: 4, 9; columns: 9, 4
    np.testing.assert_allclose(after(sm3, param, [[[1.0, 2.0], [-3.0, 0.0]]]), first)
    # nu = (4, 4; 9, 4) + (0, 12; 0, 5): rows 16, 9; columns 9, 16
    u = np.array([[0.0, 12**0.5 / 4], [0.0, 5**0.5 / 3]])
    second = first + 0.5 * first - 0.05 * u
    np.testing.assert_allclose(after(sm3, param, [[[0.0, 12**0.5], [0.0, 5**0.5]]]), second)
    row, column = sm3.state[param]["accumulator_0"], sm3.state[param]["accumulator_1"]
    np.testing.assert_allclose(row, [16, 9])
    np.testing.assert_allclose(column, [9, 16])


def bound(optimizer: SM3, param: Tensor) -> Array:
    """The least accumulator of each number's."""
    axes = np.meshgrid(*(optimizer.state[param][f"accumulator_{axis}"] for axis in range(param.ndim)), indexing="ij")
    return np.asarray(np.min(axes, axis=0))


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5)])
def test_accumulators_bound_the_sums_of_squares_and_not_more_loosely_than_variant_1(shape: tuple[int, ...]) -> None:
    """The paper's Propositions 1 and 3; variant I adds up mu(r) <- mu(r) + max over S_r of g^2."""
    param, sums = zeros(*shape), np.zeros(shape)
    sm3, looser, found = SM3([param]), [np.zeros(n) for n in shape], []
    for n in range(20):
        g = (normal(*shape, seed=n) ** 3).numpy()
        after(sm3, param, [g])
        sums += g**2
        for axis, mu in enumerate(looser):
            mu += (g**2).max(axis=tuple(each for each in range(len(shape)) if each != axis))
        found.append(bound(sm3, param))
        assert np.all(found[-1] >= sums * (1 - 1e-12))
        assert np.all(found[-1] <= np.min(np.meshgrid(*looser, indexing="ij"), axis=0) * (1 + 1e-12))
    assert all(np.all(later >= earlier) for earlier, later in pairwise(found))
    assert not np.allclose(found[-1], sums) and not np.allclose(
        found[-1], np.min(np.meshgrid(*looser, indexing="ij"), 0)
    )


def test_where_squares_are_an_outer_product_of_an_index_the_bound_is_exact() -> None:
    """Rows that are active in turns, as of an embedding: AdaGrad with a number per row."""
    param, sums = zeros(4, 3), np.zeros((4, 3))
    sm3 = SM3([param], momentum=0.0)
    for n in range(12):
        g = np.zeros((4, 3))
        g[n % 4] = (n + 1) * np.array([1.0, -1.0, 1.0])
        after(sm3, param, [g])
        sums += g**2
    np.testing.assert_allclose(sm3.state[param]["accumulator_0"], sums[:, 0])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1)])
def test_of_a_vector_it_is_torchs_adagrad(shape: tuple[int, ...]) -> None:
    a, b, gradients = zeros(*shape), zeros(*shape), normal(30, *shape)
    ours, theirs = SM3([a], lr=0.1, momentum=0.0), torch.optim.Adagrad([b], lr=0.1, eps=0.0)
    torch.testing.assert_close(after(ours, a, gradients), after(theirs, b, gradients), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_and_numbers_whose_squares_vanish_move_nothing_far(dtype: torch.dtype) -> None:
    param = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    sm3 = SM3([param], lr=0.1, momentum=0.0)
    assert torch.equal(after(sm3, param, [torch.zeros(3, 2)] * 2), torch.ones(3, 2, dtype=dtype))
    moved = after(sm3, param, [[[1e-30, 0.0], [1e-300, 0.0], [0.0, 0.0]]])
    assert moved.isfinite().all() and (moved - 1).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(("momentum", "numbers"), [(0.0, 50), (0.9, 650)])
def test_state_is_a_number_per_index_of_each_axis(momentum: float, numbers: int) -> None:
    param = torch.zeros(30, 20, requires_grad=True)
    optimizer = SM3([param], momentum=momentum)
    optimizer.init_state()
    assert sum(t.numel() for t in optimizer.state[param].values() if t.ndim) == numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SM3: {message}"):
        SM3([torch.zeros(2, requires_grad=True)], **settings)
