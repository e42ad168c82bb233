"""The pieces in which a rule gets its tensors.

An elementwise rule runs on flat pieces: a long tensor is a view, split where that keeps temporaries in the cache, and
short tensors are packed into one. Any other rule gets its tensors in their shapes: in full, or, where it splits rows,
this rank's rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .formats import coded
from .hyper import State
from .sharding import Rows, is_sharded, local, rows_of

PACKED_BELOW = 1 << 16  # numbers; a shorter tensor costs more to launch than to copy
PACK = 1 << 20  # numbers per packed piece at which the next one begins
CACHED = 1 << 18  # numbers per piece whose temporaries stay in a CPU's cache
CODED = 1 << 20  # numbers per piece of state that is kept as codes, in compiled code
TOGETHER = 8  # long pieces per call of compiled code: a call costs as much as 300,000 numbers, a piece 0.5 s once
TOGETHER_ON_DEVICE = 24  # not on a CPU: a call costs as much as millions of numbers, and pieces share a kernel


class Piece(NamedTuple):
    """Tensors updated together: of one shape if the rule is elementwise, else the state has shapes of its own."""

    param: Tensor
    grad: Tensor
    state: State
    is_stack: bool = False  # whether all have one more dimension, the first, over parameters
    rows: Rows | None = None  # of a sharded parameter, whose rows on this rank these are


def flat_pieces(
    params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str] = (), *, compiled: bool
) -> Iterator[list[Piece]]:
    """The parameters' numbers as 1-D pieces, in lists to update at once; a pack is written back at the next list.

    compiled: long tensors come unsplit, and together. Otherwise, on a CPU, in parts of at most CACHED numbers. A
    parameter whose state is kept as codes comes in parts of some rows, 2-D.
    """
    packs: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    views: list[Piece] = []
    for param in params:
        held = local(param)
        size = held.numel()
        if coded(states[param]):
            yield from _row_pieces(piece_of(param, states, apart), CODED if compiled else CACHED)
            continue
        if size >= PACKED_BELOW and held.is_contiguous():
            on_cpu = held.device.type == "cpu"
            views += _views(piece_of(param, states, apart), CACHED if on_cpu and not compiled else size)
            continue
        kind = (param.device, param.dtype)
        packs.setdefault(kind, []).append(param)
        sizes[kind] = sizes.get(kind, 0) + size
        if sizes[kind] >= PACK:
            del sizes[kind]
            yield from _packed(packs.pop(kind), states, apart)
    for pack in packs.values():
        yield from _packed(pack, states, apart)
    yield from _together(views, compiled=compiled)


def _together(views: list[Piece], *, compiled: bool) -> Iterator[list[Piece]]:
    on_cpu = not views or views[0].param.device.type == "cpu"
    together = (TOGETHER if on_cpu else TOGETHER_ON_DEVICE) if compiled else 1
    full = len(views) - len(views) % together
    yield from (views[i : i + together] for i in range(0, full, together))
    rest = views[full:]  # another number of pieces is another thing to compile, on a CPU for seconds
    yield from ([piece] for piece in rest) if on_cpu else [rest] * bool(rest)


def _views(piece: Piece, size: int) -> list[Piece]:
    flat = [piece.param.view(-1), piece.grad.reshape(-1), *(tensor.view(-1) for tensor in piece.state.values())]
    if piece.param.numel() <= size:
        return [Piece(flat[0], flat[1], dict(zip(piece.state, flat[2:], strict=True)))]
    parts_of = zip(*(torch.split(tensor, size) for tensor in flat), strict=True)
    return [Piece(p, g, dict(zip(piece.state, parts, strict=True))) for p, g, *parts in parts_of]


def _row_pieces(piece: Piece, size: int) -> Iterator[list[Piece]]:
    m = len(piece.param)
    matrix = piece.param.reshape(m, -1)
    rows, first = max(1, size // max(1, matrix.shape[1])), 0 if piece.rows is None else piece.rows.first
    all_of_it = [matrix, piece.grad.reshape(m, -1), *(tensor.view(m, -1) for tensor in piece.state.values())]
    for i in range(0, m, rows):
        p, g, *parts = [tensor[i : i + rows] for tensor in all_of_it]
        yield [Piece(p, g, dict(zip(piece.state, parts, strict=True)), rows=Rows(first=first + i))]
    if matrix.data_ptr() != piece.param.data_ptr():  # a copy, of a tensor that is no matrix in memory
        piece.param.copy_(matrix.view_as(piece.param))


class _Columns(NamedTuple):
    """Several parameters, their gradients, and their state by name; of those that are sharded this rank's rows."""

    params: list[Tensor]
    grads: list[Tensor]
    state: dict[str, list[Tensor]]


def _columns(params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str]) -> _Columns:
    found = [states[param] for param in params]
    names = handed_on(found[0], apart)
    grads = [param.grad for param in params if param.grad is not None]
    columns = [list(params), grads, *([state[name] for state in found] for name in names)]
    if is_sharded(params[0]):
        columns = [[local(tensor) for tensor in column] for column in columns]
    return _Columns(columns[0], columns[1], dict(zip(names, columns[2:], strict=True)))


def _packed(params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str]) -> Iterator[list[Piece]]:
    own = _columns(params, states, apart)
    packed = Piece(
        _packed_tensor(own.params),
        _packed_tensor(own.grads),
        {name: _packed_tensor(each) for name, each in own.state.items()},
    )
    if not packed.param.numel():  # ranks may hold no rows
        return
    yield [packed]
    _split_into(own.params, packed.param)
    for name, tensor in packed.state.items():
        _split_into(own.state[name], tensor)


def _packed_tensor(tensors: list[Tensor]) -> Tensor:
    # As torch.cat of every tensor's reshape(-1), which takes 1 us more for each.
    packed: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]  # unannotated
    return packed.detach()


def _split_into(tensors: list[Tensor], packed: Tensor) -> None:
    parts = torch._utils._unflatten_dense_tensors(packed, tensors)  # type: ignore[no-untyped-call]  # unannotated
    torch._foreach_copy_(tensors, list(parts))


def piece_of(param: Tensor, states: Mapping[Tensor, State], apart: Sequence[str]) -> Piece:
    """A parameter in its shape; of one that is sharded this rank's rows."""
    assert param.grad is not None
    state = {name: local(tensor) for name, tensor in handed_on(states[param], apart).items()}
    return Piece(local(param.detach()), local(param.grad), state, rows=rows_of(param))


def handed_on(state: State, apart: Sequence[str]) -> State:
    """The state that direction sees."""
    return {name: tensor for name, tensor in state.items() if name != "step" and name not in apart}
