"""Matrices in fewer dimensions, `rank`, on their shorter side: how many, there and back."""

import math

import torch
from torch import Tensor

from .base import Hyper, Shape, within
from .kronecker import product


def check_rank(owner: object, hp: Hyper) -> None:
    """Raises ValueError unless hp has either rank or rank_ratio, in its range."""
    if (hp.rank is None) == (hp.rank_ratio is None):
        found = f"rank={hp.rank} and rank_ratio={hp.rank_ratio}"
        raise ValueError(f"{type(owner).__name__}: {found}: give one of them, and null for the other")
    name = "rank" if hp.rank is not None else "rank_ratio"
    within(owner, name, getattr(hp, name), 1, math.inf)


def rank_of(shape: Shape, hp: Hyper) -> int | None:
    """The dimensions to which a parameter of this shape is projected: hp.rank, or its shorter side / hp.rank_ratio.

    None if it is no matrix, or its shorter side has fewer.
    """
    if len(shape) != 2:
        return None
    rank = int(hp.rank) if hp.rank is not None else max(1, int(min(shape) // hp.rank_ratio))
    return rank if rank <= min(shape) else None


def projected_shape(shape: Shape, rank: int) -> Shape:
    """The shape of what project makes of a matrix of this shape."""
    m, n = shape
    return (m, rank) if m >= n else (rank, n)


def project(matrix: Tensor, projector: Tensor, in_bf16: bool = False) -> Tensor:
    """G P (m, rank) of a matrix G (m, n) with m >= n, else P^T G (rank, n)."""
    a, b = (matrix, projector) if matrix.shape[0] >= matrix.shape[1] else (projector.mT, matrix)
    return product(a, b, in_bf16)


def project_back(projected: Tensor, projector: Tensor, shape: Shape, in_bf16: bool = False) -> Tensor:
    """A matrix of that shape (m, n) from one of project's shape."""
    a, b = (projected, projector.mT) if shape[0] >= shape[1] else (projector, projected)
    return product(a, b, in_bf16)


def upright(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose, whichever has at least as many rows as columns."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT


def with_signs(vectors: Tensor) -> Tensor:
    """The columns, each times the sign of its entry of largest magnitude: one of the two that span the same line."""
    is_negative = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) < 0
    return torch.where(is_negative, -vectors, vectors)
