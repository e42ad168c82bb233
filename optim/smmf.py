"""SMMF: see the class."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import column_sums

SIGN = "exp_avg_sign"
BITS = 8  # signs in a byte
# Eight numbers that are 0 or 1, a byte each, are an int64, the first in its lowest byte. Times EIGHT_COPIES, a sum of
# 2^(9 j), that of byte i comes to bit 63 - i; and of a byte, bit 7 - i to the highest of byte i.
EIGHT_COPIES = 0x8040201008040201 - (1 << 64)  # as int64, which counts modulo 2^64
LOWEST_OF_EACH_BYTE = 0x0101010101010101


class SMMF(RuleOptimizer):
    """SMMF (Park & Lee, AAAI 2025, arXiv:2412.08894, Algorithm 1).

    Adam whose moments are kept as a row and a column each, of a matrix (a, b) as square as the number N of values
    allows, whatever the parameter's shape; the momentum's signs are kept beside. A step restores both, updates them in
    full, divides them, and keeps their row and column sums.
    State for N values: exp_avg_row and exp_avg_sq_row (a), exp_avg_col and exp_avg_sq_col (b), exp_avg_sign (N / 8),
    8 signs to a byte. Memory: 2(a + b) numbers and a bit per value. All shapes are treated alike. A prime N makes
    (N, 1), which saves nothing: more than Adam's state, by the signs.
    The momentum's average keeps beta1 growth_rate^(t - 1) of the old, which fades: with the defaults from 0.9 to 0.33
    in 1000 steps and to 4e-5 in 10,000, as the paper's regret bound wants it; growth_rate=1 stops that. The second
    moment's keeps 1 - t^beta2_decay; -0.8 is the authors' for Transformers, -0.5 for convolutions. Neither is corrected
    for bias.
    weight_decay comes before the update, as with the authors' "adamw". Differs from the authors' code, where a sign
    takes a byte, and where vectors may be left out. A momentum of exactly 0 counts as negative, as there: restored, it
    may be other than 0.
    Memory beyond state: of a step, five copies of the largest parameter.

    Raises: ValueError: if lr < 0, beta1 lies outside [0, 1), growth_rate outside (0, 1], beta2_decay >= 0, eps <= 0, or
    weight_decay < 0.
    """

    takes_stacks = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        beta1: float = 0.9,
        growth_rate: float = 0.999,
        beta2_decay: float = -0.8,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "beta1": beta1, "growth_rate": growth_rate, "beta2_decay": beta2_decay}
        super().__init__(params, {**settings, "eps": eps, "weight_decay": weight_decay}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "beta1", hp.beta1, 0, 1)
        within(self, "growth_rate", hp.growth_rate, 0, 1, open_low=True, closed_high=True)
        within(self, "beta2_decay", hp.beta2_decay, -math.inf, 0)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        n = math.prod(shape)
        a, b = square_shape(n)
        row, col, sign = Spec((a,)), Spec((b,)), Spec((-(-n // BITS),), torch.uint8)
        return {"exp_avg_row": row, "exp_avg_col": col, SIGN: sign, "exp_avg_sq_row": row, "exp_avg_sq_col": col}

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return {"beta1": hp.beta1 * hp.growth_rate ** (hp.t - 1), "beta2": 1 - float(hp.t) ** hp.beta2_decay}

    @override
    def seen(self, shape: Shape) -> Shape:
        return square_shape(math.prod(shape))

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 1, with Algorithms 2 to 5 in the functions below.
        m, v = restored(state, "exp_avg"), restored(state, "exp_avg_sq")  # decompression
        m = m * signs_of(state[SIGN], m.shape)
        g = grad.reshape(m.shape)  # square-matricization, where it has not been done before, as seen() asks
        m = m.mul_(hp.beta1).add_((1 - hp.beta1) * g)
        v = v.mul_(hp.beta2).add_((1 - hp.beta2) * g.square())
        keep(m.abs(), state, "exp_avg")  # compression
        keep(v, state, "exp_avg_sq")
        state[SIGN].copy_(packed(m))
        u: Tensor = m / (v.sqrt() + hp.eps)
        return u.view(grad.shape)


@cache
def square_shape(n: int) -> tuple[int, int]:
    """(a, b), a >= b, of n values: the divisors with a b = n that are nearest to each other."""
    b = next((b for b in range(math.isqrt(n), 0, -1) if n % b == 0), 1)
    return n // b, b


def restored(state: State, name: str) -> Tensor:
    """The matrix (a, b) that its row (a) and column (b) stand for; here and below, also stacks of them."""
    return state[f"{name}_row"].unsqueeze(-1) * state[f"{name}_col"].unsqueeze(-2)


def keep(matrix: Tensor, state: State, name: str) -> None:
    """Keeps a non-negative matrix (a, b) as its sums by row (a) and by column (b), these as shares of all."""
    state[f"{name}_row"].copy_(matrix.sum(-1))
    col = column_sums(matrix)
    state[f"{name}_col"].copy_(col / col.sum(-1, keepdim=True).clamp(min=torch.finfo(col.dtype).tiny))


def packed(x: Tensor) -> Tensor:
    """Which numbers (n in a matrix) are > 0, as bits (n / 8, rounded up), uint8, 8 to a byte, the first one highest."""
    return _packed_apart(x) if torch.compiler.is_compiling() else _packed(x)


def signs_of(bits: Tensor, shape: Shape) -> Tensor:
    """1 where packed() found a positive number, else -1; float32, of this shape."""
    ones = (bits.to(torch.int64) * EIGHT_COPIES >> 7 & LOWEST_OF_EACH_BYTE).view(torch.uint8)
    return 2 * ones[..., : shape[-2] * shape[-1]].reshape(shape).to(torch.float32) - 1


def _packed(x: Tensor) -> Tensor:
    ones = (x > 0).flatten(-2).to(torch.uint8)
    if missing := -ones.shape[-1] % BITS:
        ones = nn.functional.pad(ones, (0, missing))
    return (ones.view(torch.int64) * EIGHT_COPIES >> 56).to(torch.uint8)


# Of the package's name, as factored.stored. Compiled code would ask for every number whether it is one that is missing.
@torch.library.custom_op(f"{__name__.replace('.', '_')}::packed", mutates_args=())
def _packed_apart(x: Tensor) -> Tensor:
    return _packed(x)


@_packed_apart.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-2], (x.shape[-2] * x.shape[-1] + BITS - 1) // BITS), dtype=torch.uint8)
