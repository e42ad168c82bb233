"""SOAP's eigenbases: rotations into them, and their refresh."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .hyper import State
from .kronecker import copy_finite, eigen, mirrored, nearer_rows, product


class Refreshed(NamedTuple):
    """Of a side's basis, 0-dim tensors."""

    energy_left: Tensor  # share of the rotated factor's energy off its diagonal, before
    failed: Tensor | bool  # whether it was kept


def refresh_bases(
    sides: Mapping[str, int], state: State, *, is_first: bool, in_bf16: bool
) -> Iterator[tuple[str, Refreshed]]:
    """Renews the bases of a matrix's sides (name to axis) from its factors, and at the end turns its moments into them.

    Yields what is known of every side.
    """
    m = rotate_back(state["exp_avg"], state, in_bf16)
    for side, axis in sides.items():
        factor, basis = mirrored(state[f"factor_{side}"]), state[f"basis_{side}"]
        product = basis @ factor  # (P Q)^T of Alg. 4
        values = (product * basis).sum(1)  # diagonal of Q^T P Q
        rest = _energy_left(product, values)
        if is_first:
            failed = _first_basis(factor, basis)
        else:
            failed = _next_basis(product, values, basis, state["exp_avg_sq"], axis)
        yield side, Refreshed(rest, failed)
    rotated, v = rotate(m, state, in_bf16), state["exp_avg_sq"]
    if is_first:
        # Both moments are of one gradient, or zero, and V = (1 - b2) (M / (1 - b1))^2 in every basis. The factor is
        # taken from the norms, which rotations keep, so that it is that of the step before whatever the betas are now.
        size = rotated.square().sum().clamp(min=torch.finfo(v.dtype).tiny)
        v.copy_(rotated.square() * (v.sum() / size))
    state["exp_avg"].copy_(rotated)


def _energy_left(product: Tensor, values: Tensor) -> Tensor:
    """The share of the product's squares that are not those of the values, whose own would leave fp32's range."""
    tiny = torch.finfo(product.dtype).tiny
    size = product.abs().amax().clamp(min=tiny)
    energy = (product / size).square().sum()
    return (energy - (values / size).square().sum()) / energy.clamp(min=tiny)


def _first_basis(factor: Tensor, basis: Tensor) -> Tensor | bool:
    """Eigenvectors by descending eigenvalue into basis; whether there are none."""
    found = eigen(factor)
    if found is None:
        return True
    basis.copy_(found[1].flip(1).mT)
    return False


def _next_basis(product: Tensor, values: Tensor, basis: Tensor, v: Tensor, axis: int) -> Tensor:
    """A step of power iteration, in order of eigenvalues, into basis and the order of v; whether it was not finite."""
    fresh, order = nearer_rows(product, values, basis)
    is_finite = copy_finite(basis, fresh)
    v.copy_(torch.where(is_finite, v.index_select(axis, order), v))
    return is_finite.logical_not()


def rotate(x: Tensor, state: State, in_bf16: bool) -> Tensor:
    """Into the eigenbasis."""
    x = product(state["basis_left"], x, in_bf16) if "basis_left" in state else x
    return product(x, state["basis_right"].mT, in_bf16) if "basis_right" in state else x


def rotate_back(x: Tensor, state: State, in_bf16: bool) -> Tensor:
    """Out of the eigenbasis."""
    x = product(state["basis_left"].mT, x, in_bf16) if "basis_left" in state else x
    return product(x, state["basis_right"], in_bf16) if "basis_right" in state else x
