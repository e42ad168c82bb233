"""Random numbers that are a function of integers alone: the same on every rank and after a resume, also compiled."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 24  # of a draw: as many as fp32 tells apart
MASK = 0xFFFFFFFF
SEEDS = MASK + 1
STEP = 0x1E3779B9  # odd, below 2^31; added, as mixed() leaves 0 as it is
# erf^-1(x) / x for w = -log(1 - x^2), highest power first: in w - 2.5 for w below 5, otherwise in sqrt(w) - 3.
CENTRE = [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4]
CENTRE += [-1.25372503e-3, -4.17768164e-3, 0.246640727, 1.50140941]
TAIL = [-2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3]
TAIL += [-7.6224613e-3, 9.43887047e-3, 1.00167406, 2.83297682]


def mixed(numbers: Tensor) -> Tensor:
    """A hash in [0, 2^32) of the lower 32 bits of each of these int64 numbers, with no two alike."""
    found = numbers & MASK
    for shift, factor in ((16, 0x7FEB352D), (15, 0x297A2D39), (16, 1)):  # odd, below 2^31: products stay below 2^63
        found = ((found ^ (found >> shift)) * factor) & MASK
    return found


def key_of(*numbers: int | Tensor) -> Tensor:
    """A 0-dim int64 hash of integers, some of which may be 0-dim int64 tensors."""
    key = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        key = mixed(key * STEP + number + STEP)
    return key


def gaussians(shape: Sequence[int], key: Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Independent numbers of mean 0 and variance 1: the first ones of an endless row of numbers for every key."""
    places = torch.arange(math.prod(shape), device=device)
    drawn = mixed(mixed(places) + key) >> (32 - BITS)
    # The middle of one of 2^BITS equal parts of (-1, 1), exactly.
    uniform = (2 * drawn + 1 - (1 << BITS)).to(dtype) * (1 / (1 << BITS))
    return (inverse_erf(uniform) * math.sqrt(2)).view(tuple(shape))


def inverse_erf(x: Tensor) -> Tensor:
    """The inverse of erf for x in (-1, 1); of fp32 with a relative error below 4e-7, by Giles (2011), single precision.

    M. Giles, "Approximating the erfinv function", GPU Computing Gems 2. A CPU computes torch's own number by number, in
    eight times as long.
    """
    if x.dtype != torch.float32:
        return x.erfinv()
    w = -((1 - x) * (1 + x)).log()
    return torch.where(w < 5, _polynomial(CENTRE, w - 2.5), _polynomial(TAIL, w.sqrt() - 3)) * x


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    found = x * coefficients[0] + coefficients[1]
    for each in coefficients[2:]:
        found = found * x + each
    return found
