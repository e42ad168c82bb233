"""The factors of SOAP and Shampoo against plain linear algebra, and what happens when a factorisation fails."""

from typing import Any

import pytest
import torch

from optim.kronecker import BLOCKS, SMALLEST_BLOCK, add_outer, eigen, mirrored, orthonormal_rows

SIZES = [1, SMALLEST_BLOCK - 1, SMALLEST_BLOCK, SMALLEST_BLOCK + 1, BLOCKS * SMALLEST_BLOCK + 3]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("n", SIZES)
def test_a_factor_averages_outer_products(n: int) -> None:
    factor, expected = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for _ in range(3):
        grad = torch.randn(n, 5, dtype=torch.float64)
        add_outer(factor, grad, 0.9, 0.1)
        expected = 0.9 * expected + 0.1 * grad @ grad.mT
        torch.testing.assert_close(mirrored(factor), expected)


def test_a_large_factor_costs_five_eighths_of_its_square() -> None:
    n = BLOCKS * SMALLEST_BLOCK
    factor = torch.zeros(n, n)
    add_outer(factor, torch.randn(n, 5), 0.0, 1.0)
    assert (factor != 0).sum() == n * n * 5 // 8


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("columns", [0, 7])
def test_rows_become_orthonormal_in_order(n: int, columns: int) -> None:
    matrix = torch.randn(n, n + columns, dtype=torch.float64)
    rows = orthonormal_rows(matrix)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(n, dtype=torch.float64))
    assert (matrix @ rows.mT).triu(1).abs().max() < 1e-12 * n  # row i is made of the first i directions


def test_a_zero_factor_has_a_basis() -> None:
    zero = torch.zeros(4, 4)
    found = eigen(zero)
    assert found is not None and torch.equal(found[1].abs(), torch.eye(4))
    assert torch.equal(orthonormal_rows(zero).abs(), torch.eye(4))


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_eigh_gets_three_attempts_the_last_in_float64(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts, eigh = [], torch.linalg.eigh

    def stubborn(matrix: torch.Tensor) -> Any:
        attempts.append(matrix)
        if len(attempts) <= failures:
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)
    half = torch.randn(6, 6)
    factor = half @ half.mT
    found = eigen(factor)
    assert [a.dtype for a in attempts] == [torch.float32, torch.float32, torch.float64][: failures + 1]
    assert torch.equal(attempts[0], attempts[0].mT)
    if failures == 3:
        assert found is None
    else:
        assert found is not None and found[0].dtype == found[1].dtype == torch.float32
        torch.testing.assert_close((found[1] * found[0]) @ found[1].mT, factor, rtol=1e-4, atol=1e-4)


def test_a_factor_that_is_not_finite_has_no_eigenvectors() -> None:
    assert eigen(torch.full((3, 3), torch.nan)) is None
