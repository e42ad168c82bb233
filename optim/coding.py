"""State that is kept as codes: opened for a rule, and kept again; formats.py has the codes themselves."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from .execution import copies, restore
from .formats import MAXIMA, Place, coded, decoded, encode
from .hyper import working_dtype
from .pieces import Piece

Decode = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]  # decode_all, compiled or not
Encode = Callable[..., None]  # encode_all


def opened(kept: Sequence[Piece], decode: Decode, *, elementwise: bool) -> Sequence[Piece]:
    """The pieces with what is kept as codes as numbers; the same object if none is.

    elementwise: of a rule that wants no rows.
    """
    names = [coded(piece.state) for piece in kept]
    if not any(names):
        return kept
    numbers = iter(decode(*_codes(kept, names)))
    found = []
    for piece, own in zip(kept, names, strict=True):
        exact = {n: t for n, t in piece.state.items() if n.removesuffix(MAXIMA) not in own}
        dtype = working_dtype(piece.param)
        fresh = {n: next(numbers).to(dtype).view_as(piece.state[n]) for n in own}
        found.append(piece._replace(state=exact | fresh, rows=None if elementwise else piece.rows))
    return found


def keep(
    pieces: Sequence[Piece],
    kept: Sequence[Piece],
    places: Sequence[Place | None],
    encode: Encode,
    found_inf: Tensor | None,
) -> None:
    """Writes what became of opened pieces back. places: of each piece's rows; found_inf: as in update_pieces."""
    names = [coded(piece.state) for piece in kept]
    codes, maxima = _codes(kept, names)
    numbers = [piece.state[name] for piece, own in zip(pieces, names, strict=True) for name in own]
    numbers = [each.view_as(own) for each, own in zip(numbers, codes, strict=True)]
    of_blocks = [
        None if place is None else place._replace(first=place.first * piece.state[name + MAXIMA].shape[-1])
        for piece, place, own in zip(kept, places, names, strict=True)
        for name in own
    ]
    encode(numbers, codes, maxima, of_blocks, found_inf)


def decode_all(codes: Sequence[Tensor], maxima: Sequence[Tensor]) -> list[Tensor]:
    """The fp32 numbers of several tensors that are kept as codes."""
    return [decoded(*each) for each in zip(codes, maxima, strict=True)]


def encode_all(
    numbers: Sequence[Tensor],
    codes: Sequence[Tensor],
    maxima: Sequence[Tensor],
    places: Sequence[Place | None],
    found_inf: Tensor | None = None,
) -> None:
    """Keeps the numbers of several tensors as codes. found_inf: as in update_pieces."""
    for each, code, most, place in zip(numbers, codes, maxima, places, strict=True):
        own = {"codes": code, "maxima": most}
        before = copies(own, found_inf)
        encode(each, code, most, place)
        restore(before, own, found_inf)


def _codes(pieces: Sequence[Piece], names: Sequence[Sequence[str]]) -> tuple[list[Tensor], list[Tensor]]:
    """The named codes of each piece with a block per row, (..., blocks, width), and their maxima, (..., blocks, 1).

    A width is a constant to compiled code, which could not use vector instructions on blocks of an unknown width.
    """
    codes, maxima = [], []
    for piece, own in zip(pieces, names, strict=True):
        for code, most in ((piece.state[name], piece.state[name + MAXIMA]) for name in own):
            *stack, m, blocks = most.shape
            width = prod(code.shape[len(stack) + 1 :]) // blocks
            codes.append(code.view(*stack, m * blocks, width))
            maxima.append(most.view(*stack, m * blocks, 1))
            torch._dynamo.mark_static(codes[-1], len(stack) + 1)
    return codes, maxima
