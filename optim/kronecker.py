"""Linear algebra of symmetric factors, sums of g gᵀ over steps: their update and factorisations that never end a run.

Of a factor (n, n) only the lower triangle of BLOCKS x BLOCKS blocks is kept up to date, which saves 3/8 of the
arithmetic; mirrored() fills in the rest.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCKS = 4
SMALLEST_BLOCK = 64  # rows; launching thinner products costs more than they save
SHIFT = 1e-10  # of the mean eigenvalue, added to all: see SOAP on directions without gradient


def add_outer(factor: Tensor, grad: Tensor, keep: float, weight: float) -> None:
    """factor <- keep factor + weight grad gradᵀ, in place, for factor (m, m) and grad (m, n)."""
    for rows, through in _lower_blocks(len(factor)):
        factor[rows, through].addmm_(grad[rows], grad[through].mT, beta=keep, alpha=weight)


def outer_flops(m: int, n: int) -> float:
    """FLOPs of add_outer for grad (m, n)."""
    numbers: int = sum((rows.stop - rows.start) * through.stop for rows, through in _lower_blocks(m))
    return 2.0 * numbers * n


def product(a: Tensor, b: Tensor, in_bf16: bool) -> Tensor:
    """a @ b, in bfloat16 if wanted, in a's dtype."""
    return (a.bfloat16() @ b.bfloat16()).to(a.dtype) if in_bf16 else a @ b


def mirrored(factor: Tensor) -> Tensor:
    """The factor, its upper triangle made that of the lower one, in place."""
    for rows, through in _lower_blocks(len(factor)):
        factor[: rows.start, rows] = factor[rows, through][:, : rows.start].mT
    return factor


def eigen(factor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues (n), ascending, and eigenvectors (n, n), in columns, of a full symmetric factor.

    What LAPACK or cuSOLVER gives up on is tried again with a little of the trace added to the diagonal, then also in
    float64. None if nothing helps.
    """
    symmetric, dtype = (factor + factor.mT) / 2, factor.dtype
    for part, wider in ((0.0, dtype), (torch.finfo(dtype).eps, dtype), (torch.finfo(dtype).eps, torch.float64)):
        attempt = symmetric.to(wider)
        attempt.diagonal().add_(attempt.trace(), alpha=part)
        try:
            values, vectors = torch.linalg.eigh(attempt)
        except RuntimeError:  # LinAlgError, which torch 2.13 does not export to type checkers
            continue
        return values.to(dtype), vectors.to(dtype)
    return None


def eigen_flops(n: int) -> float:
    """FLOPs of eigen for a factor (n, n): 9 n^3.

    Of the symmetric QR algorithm with eigenvectors (Golub & Van Loan, Matrix Computations, 4th ed., section 8.3). The
    divide and conquer that LAPACK and cuSOLVER offer takes as many or fewer, depending on the matrix.
    """
    return 9.0 * n**3


def eigen_near(factor: Tensor, basis: Tensor | None, *, is_first: bool) -> tuple[Tensor, Tensor] | None:
    """As eigen; with a basis (n, n), an eigenvector of an earlier factor in each row, by one step from there.

    It becomes the eigenvectors, unless they are not finite. is_first: it is none yet, and becomes eigen's.
    """
    if basis is None or is_first:
        found = eigen(factor)
        if basis is not None and found is not None:
            copy_finite(basis, found[1].mT.flip(0))
        return found
    product = basis @ factor
    rows, _ = nearer_rows(product, (product * basis).sum(1), basis)
    copy_finite(basis, rows)
    return ((rows @ factor) * rows).sum(1), rows.mT


def copy_finite(old: Tensor, fresh: Tensor) -> Tensor:
    """Copies fresh into old, unless it is not finite; whether it is, 0-dim."""
    is_finite = fresh.isfinite().all()
    old.copy_(torch.where(is_finite, fresh, old))
    return is_finite


def nearer_rows(product: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A step of orthogonal iteration (SOAP, arXiv:2409.11321, Algorithm 4): rows (n, n) nearer to eigenvectors.

    product: orthonormal rows (n, n) @ a full symmetric factor; is overwritten. values (n): rows_i factor rows_iᵀ. The
    second result (n) is the order by descending value into which the rows were brought before.
    """
    order = values.argsort(descending=True, stable=True)
    shifted = product.addcmul_(rows, values.mean(), value=SHIFT)
    return orthonormal_rows(shifted[order]), order


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """The rows (n, length), each made orthonormal to those above it: the transposed orthogonal factor of qr(matrixᵀ).

    n <= length. Without torch.linalg.qr's triangular factor and copies, which take a third of its time.
    """
    orthogonal: Tensor = torch.linalg.householder_product(*torch.geqrf(matrix.mT))
    return orthogonal.mT


def orthonormal_flops(n: int, length: int) -> float:
    """FLOPs of orthonormal_rows for a matrix (n, length): 4 n^2 (length - n / 3).

    Half of them for Householder's reflections and half for the product of them, Q (Golub & Van Loan, section 5.2).
    """
    return 4.0 * n**2 * (length - n / 3)


def _lower_blocks(n: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and for each the columns up to its diagonal."""
    size = max(SMALLEST_BLOCK, -(-n // BLOCKS))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n)), slice(0, min(start + size, n))
