"""The orthogonal factor of a matrix by Newton-Schulz steps."""

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.775, 2.0315)  # a, b, c: steepest at 0, while a singular value of about 1 stays about 1
FIRST, NEXT = 3, 2  # steps of a round before bfloat16's errors in A grow: least while singular values are small
LONG = 1.5  # sides from which that saves arithmetic


def orthogonal(x: Tensor, steps: int, eps: float | Tensor, *, in_bf16: bool) -> Tensor:
    """U V^T, nearly, of matrices (k, m, n) with singular value decomposition U S V^T."""
    is_tall = x.shape[-2] > x.shape[-1]
    y = x.mT if is_tall else x
    y = y / (torch.linalg.matrix_norm(y, keepdim=True) + eps)  # singular values at most 1
    if in_bf16:
        y = y.bfloat16()
    for n in _rounds(y.shape[-2], y.shape[-1], int(steps)):
        y = _advanced(y, n)
    found: Tensor = (y.mT.contiguous() if is_tall else y).to(x.dtype)
    return found


def orthogonal_flops(short: int, long: int, steps: int) -> float:
    """FLOPs of orthogonal for a matrix (short, long), or its transpose."""
    return sum(4.0 * short**2 * long + 2.0 * short**3 * (4 * n - 3) for n in _rounds(short, long, steps))


def _rounds(short: int, long: int, steps: int) -> list[int]:
    """The Newton-Schulz steps of matrices (short, long), those of each round as _advanced does them."""
    if long <= LONG * short:
        return [1] * steps
    first = min(FIRST, steps)
    return [first, *(min(NEXT, steps - done) for done in range(first, steps, NEXT))]


def _advanced(y: Tensor, steps: int) -> Tensor:
    """Y (k, m, n) after so many steps Y <- (a I + P) Y, with P = b A + c A^2 of A = Y Y^T (m, m).

    A of the next step is (a I + P) A (a I + P), so that several steps need two products with Y alone (as in Dion's
    Gram Newton-Schulz).
    """
    a, b, c = QUINTIC
    gram = y @ y.mT  # A
    all_of_them = None
    for step in range(1, steps + 1):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if steps == 1:
            return torch.baddbmm(y, p, y, beta=a)
        identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        all_of_them = p + a * identity if all_of_them is None else torch.baddbmm(all_of_them, p, all_of_them, beta=a)
        if step < steps:
            half = torch.baddbmm(gram, p, gram, beta=a)
            gram = torch.baddbmm(half, half, p, beta=a)
    assert all_of_them is not None
    return all_of_them @ y
