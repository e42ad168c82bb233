"""Approximations of a matrix by one of low rank: subspace iteration, from random numbers that come again or a guess."""

from typing import Any

import torch
from torch import Tensor

from .kronecker import eigen, orthonormal_flops, orthonormal_rows
from .noise import SEEDS, gaussians, key_of
from .precision import FullFp32
from .projection import with_signs
from .sampling import hashed


def low_rank(v: Tensor, k: int, iterations: int, seed: int, step: float | Tensor) -> tuple[Tensor, Tensor]:
    """Q (m, k), of orthonormal columns, and U = V^T Q (n, k), for V (m, n), k <= m, such that Q U^T is near V.

    V Q's columns are made orthonormal in order, so that the first j columns are those of rank j, and
    |V - Q U^T|^2 = |V|^2 - |U|^2. Also for compiled code, which runs it as it is. step: a whole number in host memory.
    """
    if torch.compiler.is_compiling():
        q, u = _apart(v, k, iterations, seed, step)
        return q, u
    return _low_rank(v, k, iterations, seed, int(step))


def principal(grad: Tensor, start: Tensor) -> Tensor | None:
    """The right singular vectors (n, r) of Q^T G, for Q of the reduced QR of G P: of grad (m, n) and start P (n, r).

    None if the factorisation fails.
    """
    small = orthonormal_rows((grad @ start).mT) @ grad  # Q^T G (r, n)
    span = orthonormal_rows(small)  # of its rows (r, n), in which its vectors are those of a matrix (r, r)
    inside = (small @ span.mT).double()
    found = eigen(inside.mT @ inside)
    return None if found is None else with_signs(span.mT @ found[1].flip(1).to(grad.dtype))


def low_rank_flops(m: int, n: int, k: int, iterations: int) -> float:
    """FLOPs of low_rank for V (m, n)."""
    return iterations * (4.0 * m * n * k + orthonormal_flops(k, m))


def gaussian(n: int, k: int, seed: int, step: int, device: torch.device | None = None) -> Tensor:
    """Numbers from N(0, 1), (n, k) fp32, on the device: a function of these four numbers alone."""
    return gaussians((n, k), key_of(hashed(seed, step, n, k) % SEEDS), torch.float32, device)


def _low_rank(v: Tensor, k: int, iterations: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """What low_rank says, of every V (..., m, n)."""
    u = gaussian(v.shape[-1], k, seed, step, v.device).to(v.dtype)
    with FullFp32():
        for _ in range(iterations):
            q = orthonormal_rows(scaled(v @ scaled(u)).mT).mT
            u = v.mT @ q
    return q.contiguous(), u


def scaled(x: Tensor, dims: int | tuple[int, ...] = (-2, -1)) -> Tensor:
    """x with 1 as the largest magnitude of each part that dims span: squares, and products of them, may be too small.

    Zeros stay zeros.
    """
    return x / x.abs().amax(dims, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


# Of the package's name, as factored.stored. Compiled code has neither generators nor, in torch 2.13, geqrf.
@torch.library.custom_op(f"{__name__.replace('.', '_')}::low_rank", mutates_args=())
def _apart(v: Tensor, k: int, iterations: int, seed: int, step: Tensor) -> tuple[Tensor, Tensor]:
    return _low_rank(v, k, iterations, seed, int(step))


@_apart.register_fake
def _(v: Tensor, k: int, iterations: int, seed: int, step: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty((*v.shape[:-1], k)), v.new_empty((*v.shape[:-2], v.shape[-1], k))


@_apart.register_vmap
def _(
    info: Any, in_dims: tuple[int, *tuple[None, ...]], v: Tensor, k: int, iterations: int, seed: int, step: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    q, u = _apart(v.movedim(in_dims[0], 0), k, iterations, seed, step)
    return (q, u), (0, 0)
