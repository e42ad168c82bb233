"""How a rule meets its tensors: in which pieces, and interpreted or compiled. One copy of the maths serves all.

An elementwise rule runs on flat pieces: a long tensor is a view, cut up where that keeps temporaries in the cache, and
short tensors are packed into one. Any other rule gets its tensors whole. Either way the same function updates pieces.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .sharding import Owners, local, rows_of

EXECUTIONS = ("auto", "eager", "compiled")
COMPILED_FROM = 1 << 25  # parameters; below, "auto" does not think compiling (seconds) worth it
PACKED_BELOW = 1 << 16  # numbers; a shorter tensor costs more to launch than to copy
PACK = 1 << 20  # numbers per packed piece at which the next one begins
CACHED = 1 << 18  # numbers per piece whose temporaries stay in a CPU's cache
VARIANTS = 64  # of compiled code per optimizer: dtypes, numbers of pieces, shapes with a side of 1
TOGETHER = 8  # long pieces per call of compiled code: a call costs as much as 300,000 numbers, a piece 0.5 s once

State = dict[str, Tensor]
Update = Callable[..., None]


class Hyper:
    """Settings as attributes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.__dict__.update(settings)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no {name!r} here, only {', '.join(sorted(vars(self)))}")


class Rule(Protocol):
    """What update_pieces needs of an optimizer."""

    decays_after_update: bool

    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        """See base.Optimizer."""


class Piece(NamedTuple):
    """Tensors updated together: of one shape if the rule is elementwise, else the state has shapes of its own."""

    param: Tensor
    grad: Tensor
    state: State


def update_pieces(
    rule: Rule,
    pieces: Sequence[Piece],
    hp: Hyper,
    lr: float | Tensor,
    shrink: float | Tensor,
    found_inf: Tensor | None = None,
) -> None:
    """param <- shrink param - lr u, in place. lr and shrink: numbers, or 0-dim tensors for compiled code.

    found_inf: a 0-dim tensor on the device; where it is not 0, parameter and state stay, and no host has to know.
    """
    for param, grad, state in pieces:
        changed = {} if found_inf is None else {**state, "": param}
        before = {name: tensor.clone() for name, tensor in changed.items()}
        dtype = working_dtype(param)
        working = param.to(dtype)
        update = rule.direction(grad.to(dtype), working, state, hp)
        if not rule.decays_after_update:
            working.mul_(shrink)
        working.sub_(update * lr)
        if rule.decays_after_update:
            working.mul_(shrink)
        if dtype != param.dtype:
            param.copy_(working)
        restore(before, changed, found_inf)


def restore(before: State, changed: State, found_inf: Tensor | None) -> None:
    """Undoes what was changed, on the device, where found_inf is not 0; before is empty if there is no found_inf."""
    if found_inf is not None:
        for name, tensor in before.items():
            changed[name].copy_(torch.where(found_inf == 0, changed[name], tensor))


def compiled(update: Update) -> Update:
    """The function as one kernel per piece, for any size; its first call takes seconds, also to import the compiler.

    The compiled variants of a function are counted per code object, so each call here gets one of its own: optimizers
    do not use up each other's.
    """
    own = FunctionType(update.__code__.replace(), update.__globals__, update.__name__)
    fast: Update = torch.compile(own, dynamic=True, fullgraph=True)

    def limited(*arguments: Any) -> None:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            fast(*arguments)

    return limited


def whole_tensors(params: Sequence[Tensor], states: Mapping[Tensor, State]) -> Iterator[list[Piece]]:
    """Every parameter as it is, one at a time; of one that is cut across ranks this rank's rows."""
    for param in params:
        assert param.grad is not None
        with rows_of(param):
            yield [Piece(local(param.detach()), local(param.grad), _named(states[param]))]


def owned_tensors(params: Sequence[Tensor], states: Mapping[Tensor, State], owners: Owners) -> Iterator[list[Piece]]:
    """The parameters that this rank computes, whole, one at a time; all ranks have all updates at the end."""
    for param, values, grad in owners.wholes(params):
        yield [Piece(values, grad, _named(states[param]))]


def flat_pieces(params: Sequence[Tensor], states: Mapping[Tensor, State], *, compiled: bool) -> Iterator[list[Piece]]:
    """The parameters' numbers as 1-D pieces, in lists to update at once; a pack is written back at the next list.

    compiled: long tensors come uncut, and together. Otherwise, on a CPU, in parts of at most CACHED numbers.
    """
    packs: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}
    views: list[Piece] = []
    for param in params:
        assert param.grad is not None
        piece = Piece(local(param.detach()), local(param.grad), _named(states[param]))
        if piece.param.numel() >= PACKED_BELOW and piece.param.is_contiguous():
            on_cpu = piece.param.device.type == "cpu"
            views += _views(piece, CACHED if on_cpu and not compiled else piece.param.numel())
            continue
        kind = (piece.param.device, piece.param.dtype)
        packs.setdefault(kind, []).append(piece)
        if sum(p.param.numel() for p in packs[kind]) >= PACK:
            yield from _packed(packs.pop(kind))
    for pack in packs.values():
        yield from _packed(pack)
    together = TOGETHER if compiled else 1
    full = len(views) - len(views) % together
    for i in range(0, full, together):
        yield views[i : i + together]
    for piece in views[full:]:  # one at a time, as another number of pieces is another thing to compile
        yield [piece]


def working_dtype(param: Tensor) -> torch.dtype:
    """The dtype in which a parameter's update is computed and its state kept."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _views(piece: Piece, size: int) -> list[Piece]:
    flat = [piece.param.view(-1), piece.grad.reshape(-1), *(tensor.view(-1) for tensor in piece.state.values())]
    cut = zip(*(torch.split(tensor, size) for tensor in flat), strict=True)
    return [Piece(p, g, dict(zip(piece.state, parts, strict=True))) for p, g, *parts in cut]


def _packed(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    joined = Piece(
        _joined([piece.param for piece in pieces]),
        _joined([piece.grad for piece in pieces]),
        {name: _joined([piece.state[name] for piece in pieces]) for name in pieces[0].state},
    )
    if not joined.param.numel():  # ranks may hold no rows
        return
    yield [joined]
    _split_into([piece.param for piece in pieces], joined.param)
    for name, tensor in joined.state.items():
        _split_into([piece.state[name] for piece in pieces], tensor)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _split_into(tensors: Sequence[Tensor], joined: Tensor) -> None:
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def _named(state: State) -> State:
    return {name: local(tensor) for name, tensor in state.items() if name != "step"}
