"""Subspace iteration beside the singular value decomposition, and what it is a function of."""

import numpy as np
import pytest
import torch
from torch import Tensor

from optim.subspace import _apart, gaussian, low_rank


def falling(m: int, n: int) -> Tensor:
    """A matrix whose singular values are 1, 1/4, 1/16, ..."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, min(m, n))))[0] for size in (m, n))
    return torch.tensor(left * 0.25 ** np.arange(min(m, n)) @ right.T)


@pytest.mark.parametrize(("m", "n"), [(12, 7), (7, 12), (9, 9), (1, 5), (5, 1)])
def test_it_comes_as_near_as_singular_vectors(m: int, n: int) -> None:
    v = falling(m, n)
    singular = torch.linalg.svdvals(v)
    for k in range(1, min(m, n) + 1):
        q, u = low_rank(v, k, 8, seed=0, step=1)
        torch.testing.assert_close(q.mT @ q, torch.eye(k, dtype=torch.float64))
        error, size = (v - q @ u.mT).norm(), singular[k:].norm()
        assert error <= 1.001 * size + 1e-15
        torch.testing.assert_close((v.norm() ** 2 - u.norm() ** 2).clamp(min=0).sqrt(), error, rtol=1e-4, atol=1e-7)


def test_more_columns_leave_the_first_ones_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every smaller rank can be read off, and oversampling would change nothing."""
    start = gaussian(7, 6, 0, 1)
    monkeypatch.setattr("optim.subspace.gaussian", lambda n, k, seed, step, device: start[:, :k])
    q, u = low_rank(falling(12, 7), 6, 3, seed=0, step=1)
    for k in range(1, 6):
        fewer = low_rank(falling(12, 7), k, 3, seed=0, step=1)
        torch.testing.assert_close(fewer, (q[:, :k], u[:, :k]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("v", [torch.zeros(6, 4), torch.ones(6, 4) * 1e-30, torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_a_matrix_of_lower_rank_has_finite_factors(v: Tensor) -> None:
    q, u = low_rank(v, 3, 5, seed=0, step=1)
    torch.testing.assert_close(q.mT @ q, torch.eye(3))
    torch.testing.assert_close(q @ u.mT, v, rtol=1e-5, atol=0 if v.max() < 1 else 1e-6)


def test_random_numbers_are_of_their_arguments_alone() -> None:
    state = torch.get_rng_state()
    drawn = [gaussian(*numbers) for numbers in ((200, 50, 0, 1), (200, 50, 1, 1), (200, 50, 0, 2))]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], gaussian(200, 50, 0, 1))
    assert all(abs(float(x.std()) - 1) < 0.03 and abs(float(x.mean())) < 0.03 for x in drawn)
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_compiled_code_knows_the_factors_shapes_and_makes_the_same() -> None:
    v, step = falling(12, 7), torch.tensor(3.0, dtype=torch.float64)
    torch.library.opcheck(_apart, (v, 3, 2, 0, step), test_utils=("test_schema", "test_faketensor"))
    for found, expected in zip(_apart(v, 3, 2, 0, step), low_rank(v, 3, 2, 0, 3), strict=True):
        assert torch.equal(found, expected)
