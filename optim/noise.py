"""Random numbers that are a function of integers alone: the same on every rank and after a resume, also compiled."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 24  # of a draw: as many as fp32 tells apart
MASK = 0xFFFFFFFF
SEEDS = MASK + 1
STEP = 0x1E3779B9  # odd, below 2^31; added, as mixed() leaves 0 as it is


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
    return (uniform.erfinv() * math.sqrt(2)).view(*shape)
