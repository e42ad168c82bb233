"""How state is kept between steps: as a rule computes it, in bfloat16, or in blocks of 8-bit codes.

A rule does not depend on it. Its spec marks the averages that tolerate rounding (Spec.moment); the engine keeps those
in the optimizer's state format, and hands the rule numbers of the working dtype. Factors, projectors, sums and counts
are kept exactly in every format, and so is a tensor that is too small, or whose rows are too short, to gain by codes.

int8: a row of a parameter is divided into equal blocks of at most BLOCK numbers (256, as in Dettmers et al., ICLR 2022,
arXiv:2110.02861), and a block is kept as its largest magnitude in fp32 and a code for every number: the fourth root of
its ratio to that magnitude, in 127 steps and a sign, or in 255 steps. Rows, not flat ranges, so that a rank's rows are
whole blocks on any number of ranks. Differs from the published dynamic map, a table of powers of ten with evenly spaced
ratios between them: on Adam's updates of gradients whose scales within a block have a log-normal spread of 0.5, 1 and
2, the relative error of the fourth root is 0.03, 0.05 and 0.20, the table's 0.04, 0.08 and 0.35, and it takes two roots
instead of a search. The largest number of a block, of either sign, and 0 are kept exactly; what is positive is never
rounded to 0, since a second moment of 0 would turn the next update into m / eps.
Rounding to the nearest is that of the root. Stochastic rounding takes the upper or the lower neighbour, with
probabilities that make the mean that of the number itself. Its noise is a function of step, row and column alone: the
same after a resume, and on any number of ranks.
"""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .hyper import Spec, State
from .noise import mixed

FORMATS = ("fp32", "bf16", "int8", "int8_stochastic")
BLOCK = 256  # numbers of a block, at most
SHORTEST_BLOCK = 64  # numbers; with shorter ones, the blocks' maxima weigh as much as the codes
SMALLEST = 4096  # numbers of a tensor that is kept as codes
MAXIMA = "_max"  # what the name of the blocks' maxima adds


class Place(NamedTuple):
    """What the noise of stochastic rounding depends on."""

    first: int  # the parameter's row with which these numbers begin
    step: int


TOP = {torch.int8: 127, torch.uint8: 255}  # code of a block's largest magnitude


def kept(specs: Mapping[str, Spec], shape: tuple[int, ...], state_format: str) -> dict[str, Spec]:
    """What is kept of the state of a parameter of this shape: of moments, where that is wanted, codes and maxima."""
    found: dict[str, Spec] = {}
    for name, spec in specs.items():
        found[name] = spec
        if spec.moment is None or state_format == "fp32":
            continue
        if state_format == "bf16":
            found[name] = spec._replace(dtype=torch.bfloat16)
        elif (blocks := blocks_of_row(spec.shape)) is not None:
            found[name] = spec._replace(dtype=torch.int8 if spec.moment == "signed" else torch.uint8)
            by_row = spec.shape == shape if spec.by_row is None else spec.by_row
            found[name + MAXIMA] = Spec((spec.shape[0], blocks), torch.float32, by_row=by_row)
    return found


def blocks_of_row(shape: tuple[int, ...]) -> int | None:
    """How many blocks a row of a tensor of this shape has; None if it is kept exactly."""
    if len(shape) < 2 or prod(shape) < SMALLEST:
        return None
    width = prod(shape[1:])
    blocks = next(n for n in range(-(-width // BLOCK), width + 1) if width % n == 0)
    return blocks if width // blocks >= SHORTEST_BLOCK else None


def coded(state: Mapping[str, Tensor]) -> list[str]:
    """The names of what is kept as codes."""
    return [name for name in state if name + MAXIMA in state]


def decoded(codes: Tensor, maxima: Tensor) -> Tensor:
    """The fp32 numbers of codes (..., m, n), with the maxima (..., m, blocks of a row)."""
    root = codes.reshape(*maxima.shape, -1).float() * (1 / TOP[codes.dtype])
    return (root * root.abs() * root.square() * maxima.unsqueeze(-1)).view(codes.shape)


def encode(numbers: Tensor, codes: Tensor, maxima: Tensor, place: Place | None) -> None:
    """Keeps numbers of codes' shape as codes (..., m, n) and maxima (..., m, blocks of a row).

    place: for stochastic rounding; None: to the nearest.
    """
    blocks, top = numbers.reshape(*maxima.shape, -1), TOP[codes.dtype]
    maxima.copy_(blocks.abs().amax(-1))
    ratio = blocks * (1 / maxima.clamp(min=torch.finfo(torch.float32).tiny)).unsqueeze(-1)
    magnitude = ratio.abs()
    root = magnitude.sqrt().sqrt() * top
    if place is None:
        code = (root + 0.5).floor()
    else:
        below = root.floor()
        low, high = (below / top).square().square(), ((below + 1) / top).square().square()
        code = below + (_noise(maxima, blocks.shape[-1], place) < (magnitude - low) / (high - low))
    code = code.clamp(max=top)
    if codes.dtype == torch.uint8:
        code = torch.where(magnitude > 0, code.clamp(min=1), code)
    else:
        code = torch.where(ratio < 0, -code, code)
    codes.copy_(code.to(codes.dtype).view(codes.shape))


def widened(state: State, dtype: torch.dtype) -> State:
    """The state with what is kept in bfloat16 as numbers of the working dtype; the rest as it is."""
    return {name: tensor.to(dtype) if tensor.dtype == torch.bfloat16 else tensor for name, tensor in state.items()}


def narrow(working: State, state: State) -> None:
    """Writes the tensors that widened returned, which a rule has changed, back into the state."""
    for name, tensor in state.items():
        if working[name] is not tensor:
            tensor.copy_(working[name])


def _noise(maxima: Tensor, width: int, place: Place) -> Tensor:
    """Numbers in [0, 1) for each of a block's, (m, blocks of a row, width), the same in all matrices of a stack."""
    m, blocks = maxima.shape[-2:]
    numbers = torch.arange(m * blocks * width, device=maxima.device) + place.first * blocks * width
    bits = mixed(numbers + place.step * 0x3C6EF35F)
    return ((bits >> 8).float() / (1 << 24)).view(m, blocks, width)
