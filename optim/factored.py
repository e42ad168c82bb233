"""What rules share that keep a matrix's statistics by row and by column."""

import math
from typing import Any

import torch
from torch import Tensor

from .hyper import Shape, Spec, State
from .sharding import Rows

SQUARES = "exp_avg_sq"  # the name of what is factored, unless a rule factors something else too
BLOCK = 64  # rows whose numbers stay in a CPU's cache


def factors_spec(shape: Shape, name: str = SQUARES) -> dict[str, Spec]:
    """name_row (m) and name_col (n), for a matrix (m, n)."""
    return {f"{name}_row": Spec(shape[:1], by_row=True), f"{name}_col": Spec(shape[1:])}


def squares_spec(shape: Shape) -> dict[str, Spec]:
    """A second moment: the factors of a matrix, otherwise exp_avg_sq of the parameter's shape."""
    return factors_spec(shape) if len(shape) == 2 else {SQUARES: Spec(shape, moment="positive")}


def over_root_of_squares(grad: Tensor, state: State, beta: Any, eps: Any, rows: Rows) -> Tensor:
    """g / sqrt(V), after g^2 + eps was averaged into what squares_spec describes, in place, with weight 1 - beta."""
    square = grad.square() + eps
    if SQUARES in state:
        return grad * state[SQUARES].mul_(beta).add_((1 - beta) * square).rsqrt()
    update_factors(state, square, beta, rows)
    return over_root(grad, state, rows)


def update_factors(state: State, square: Tensor, beta: Any, rows: Rows, name: str = SQUARES) -> None:
    """Averages the means over columns and over rows of square (m, n) into the factors, in place, with weight 1 - beta.

    beta: a number, or a 0-dim tensor.
    """
    state[f"{name}_row"].mul_(beta).add_((1 - beta) * square.mean(1))
    state[f"{name}_col"].mul_(beta).add_((1 - beta) * column_means(square, rows))


def over_root(x: Tensor, state: State, rows: Rows, name: str = SQUARES) -> Tensor:
    """x / sqrt(V) for the matrix V = row col / mean(row) of the factors."""
    row, col = state[f"{name}_row"], state[f"{name}_col"]
    return x * computed_once((row / rows.mean(row)).rsqrt())[:, None] * computed_once(col.rsqrt())


def rms(x: Tensor, rows: Rows) -> Tensor:
    """The root of the mean square, 0-dim."""
    return rows.mean(x.square()).sqrt()


def clipped(x: Tensor, threshold: Any, rows: Rows) -> Tensor:
    """x, scaled down where its RMS exceeds the threshold, to have that (Adafactor's update clipping)."""
    return x * computed_once(1 / (rms(x, rows) / threshold).clamp(min=1))


def column_means(matrix: Tensor, rows: Rows) -> Tensor:
    """matrix.mean(0) of a matrix (m, n) with these rows, (n)."""
    return rows.sum(column_sums(matrix)) / rows.count(matrix)


def column_sums(matrix: Tensor) -> Tensor:
    """matrix.sum(0) of a matrix (m, n), (n), or of each of a stack, computed in blocks of rows.

    Compiled code would otherwise walk down the whole height once for every few columns: 2.6 times slower at
    50257 x 768 on a CPU.
    """
    blocks = matrix.shape[-2] // BLOCK
    if blocks == 0:  # compiled code cannot shape nothing
        return matrix.sum(-2)
    in_blocks = matrix[..., : blocks * BLOCK, :].view(*matrix.shape[:-2], blocks, BLOCK, matrix.shape[-1])
    return in_blocks.sum(-2).sum(-2) + matrix[..., blocks * BLOCK :, :].sum(-2)


def column_maxima(x: Tensor) -> Tensor:
    """x.amax(0) of a tensor (m, n, ...), (n, ...), computed in blocks of rows, as column_sums; -inf where m is 0."""
    blocks = len(x) // BLOCK
    if blocks == 0:
        return x.amax(0) if len(x) else x.new_full(x.shape[1:], -math.inf)
    in_blocks = x[: blocks * BLOCK].view(blocks, BLOCK, *x.shape[1:])
    return torch.cat([in_blocks.amax(1), x[blocks * BLOCK :]]).amax(0)


def computed_once(small: Tensor) -> Tensor:
    """The tensor; in compiled code, where it would be computed for every number that is multiplied by it, a copy.

    That holds for the arithmetic of a row's or column's factor, roots and divisions included, or the product would be
    written out for lack of a cheap way to it.
    """
    return stored(small) if torch.compiler.is_compiling() else small


# Of the package's name, so that two copies of it may be imported in one process.
@torch.library.custom_op(f"{__name__.replace('.', '_')}::stored", mutates_args=())
def stored(small: Tensor) -> Tensor:
    """A copy."""
    return small.clone()


@stored.register_fake
def _(small: Tensor) -> Tensor:
    return torch.empty_like(small)


@stored.register_vmap
def _(info: Any, in_dims: tuple[int], small: Tensor) -> tuple[Tensor, int]:
    return stored(small), in_dims[0]
