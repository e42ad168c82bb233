"""The pieces of rules that are not elementwise: parameters in their shapes, or stacks of parameters of one shape."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .hyper import Shape, State
from .owners import Owners
from .pieces import PACK, Piece, handed_on, piece_of

STACKED_BELOW = 1 << 25  # numbers; a longer matrix, or stack, keeps a device busy alone
Seen = Callable[[Shape], Shape]  # in which shape a rule sees a parameter


def owned_tensors(
    params: Sequence[Tensor],
    states: Mapping[Tensor, State],
    owners: Owners,
    apart: Sequence[str],
    seen: Seen,
    *,
    stacked_below: int = 0,
) -> Iterator[list[Piece]]:
    """The parameters that this rank computes, in full; all ranks have all updates at the end.

    seen, stacked_below: see stacked_tensors.
    """
    for together in owners.full_tensors(params):
        pieces = (Piece(values, grad, handed_on(states[param], apart)) for param, values, grad in together)
        yield from _stacked(pieces, seen, stacked_below)


def stacked_tensors(
    params: Sequence[Tensor],
    states: Mapping[Tensor, State],
    apart: Sequence[str] = (),
    seen: Seen = lambda shape: shape,
    *,
    below: int,
) -> Iterator[list[Piece]]:
    """Every parameter in the shape that the rule sees; those of one shape as one piece, with one more dimension first.

    below: a parameter of as many numbers or more comes alone, and a stack of as many, or of PACK if that is more, is
    full. Not for parameters that are sharded. A stack is written back when the next list is
    asked for.
    """
    yield from _stacked((piece_of(param, states, apart) for param in params), seen, below)


def unstacked(piece: Piece) -> list[Piece]:
    """The pieces of a stack, as views of it; any other piece as it is."""
    if not piece.is_stack:
        return [piece]
    states = [{name: tensor[i] for name, tensor in piece.state.items()} for i in range(len(piece.param))]
    return [Piece(*each) for each in zip(piece.param, piece.grad, states, strict=True)]


def _stacked(pieces: Iterable[Piece], seen: Seen, below: int) -> Iterator[list[Piece]]:
    stacks: dict[Any, list[Piece]] = {}
    for piece in (_in_shape(piece, seen) for piece in pieces):
        if piece.param.numel() >= below:
            yield [piece]
            continue
        kind = (piece.param.device, piece.param.dtype, piece.param.shape)
        stack = stacks.setdefault(kind, [])
        stack.append(piece)
        if len(stack) * piece.param.numel() >= max(PACK, below):
            yield from _stack(stacks.pop(kind))
    for stack in stacks.values():
        yield from _stack(stack)


def _in_shape(piece: Piece, seen: Seen) -> Piece:
    """The piece in the shape that the rule sees; unchanged if its parameter is not contiguous."""
    shape = seen(tuple(piece.param.shape))
    if shape == tuple(piece.param.shape) or not piece.param.is_contiguous():
        return piece
    return piece._replace(param=piece.param.view(shape), grad=piece.grad.reshape(shape))


def _stack(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    if len(pieces) == 1:
        yield list(pieces)
        return
    params, grads = [piece.param for piece in pieces], [piece.grad for piece in pieces]
    own = {name: [piece.state[name] for piece in pieces] for name in pieces[0].state}
    state = {name: torch.stack(each) for name, each in own.items()}
    stack = Piece(torch.stack(params), torch.stack(grads), state, is_stack=True)
    yield [stack]
    for name, each in [("", params), *own.items()]:
        torch._foreach_copy_(each, list((state[name] if name else stack.param).unbind()))
