"""How a rule meets its tensors: in which pieces, and interpreted or compiled. One copy of the maths serves all.

An elementwise rule runs on flat pieces: a long tensor is a view, cut up where that keeps temporaries in the cache, and
short tensors are packed into one. Any other rule gets its tensors whole. Either way the same function updates pieces.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from .sharding import Owners, is_cut, local, rows_of

EXECUTIONS = ("auto", "eager", "compiled")
COMPILED_FROM = 1 << 25  # parameters; below, "auto" does not think compiling (seconds) worth it
PACKED_BELOW = 1 << 16  # numbers; a shorter tensor costs more to launch than to copy
PACK = 1 << 20  # numbers per packed piece at which the next one begins
CACHED = 1 << 18  # numbers per piece whose temporaries stay in a CPU's cache
VARIANTS = 64  # of compiled code per optimizer: dtypes, numbers of pieces, shapes with a side of 1
UNCOMPILED = (
    "optimizer steps run uncompiled, and slower, because compiling them failed; install what is missing (often a C++ "
    "compiler), or choose execution='eager' to silence this"
)
TOGETHER = 8  # long pieces per call of compiled code: a call costs as much as 300,000 numbers, a piece 0.5 s once

P = ParamSpec("P")
R = TypeVar("R")
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
    is_stack: bool = False  # whether all have one more dimension, the first, over parameters


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
    for param, grad, state, is_stack in map(_with_dimension, pieces):
        changed = {} if found_inf is None else {**state, "": param}
        before = {name: tensor.clone() for name, tensor in changed.items()}
        dtype = working_dtype(param)
        working = param.to(dtype)
        direction = torch.vmap(rule.direction, in_dims=(0, 0, 0, None)) if is_stack else rule.direction
        update = direction(grad.to(dtype), working, state, hp)
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


class Compiled:
    """A function as one kernel per piece, for any size; its first call takes seconds, also to import the compiler.

    What cannot be compiled, for lack of a C++ compiler above all, runs as it is from then on, after one warning.
    """

    def __init__(self, update: Update) -> None:
        # The compiled variants of a function are counted per code object, so each gets one of its own: optimizers do
        # not use up each other's.
        own = FunctionType(update.__code__.replace(), update.__globals__, update.__name__)
        self._plain, self._fast, self.works = update, torch.compile(own, dynamic=True, fullgraph=True), True

    def __call__(self, *arguments: Any) -> None:
        """Runs the function; where compiling fails, which comes before anything is changed, as it is."""
        if self.works:
            try:
                with torch._dynamo.config.patch(recompile_limit=VARIANTS):
                    self._fast(*arguments)
                return
            except (torch._dynamo.exc.BackendCompilerFailed, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                self.works = False
                cause = getattr(error, "inner_exception", error)
                warnings.warn(f"{UNCOMPILED}: {type(cause).__name__}: {str(cause).splitlines()[0]}", stacklevel=2)
        self._plain(*arguments)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which code that is being compiled calls as it is, after a graph break."""
    same: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # unannotated
    return same


def as_tensors(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every float, also in tuples, as a 0-dim float64 tensor in host memory.

    Compiled code takes tensors as arguments, where it would be compiled anew for every other float. float64, because
    1 - 0.999 is another number in fp32; it does not widen fp32 tensors that have a dimension.
    """
    floats = list(_floats(settings.values()))
    tensors = iter(torch.tensor(floats, dtype=torch.float64).unbind())

    def replaced(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(replaced(each) for each in value)
        return next(tensors) if isinstance(value, float) else value

    return {name: replaced(value) for name, value in settings.items()}


def _floats(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, tuple):
            yield from _floats(value)
        elif isinstance(value, float):
            yield value


def whole_tensors(
    params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str] = ()
) -> Iterator[list[Piece]]:
    """Every parameter as it is, one at a time; of one that is cut across ranks this rank's rows.

    apart: state that is not handed on, beside the step.
    """
    for param in params:
        with rows_of(param):
            yield [_piece(param, states, apart)]


def owned_tensors(
    params: Sequence[Tensor], states: Mapping[Tensor, State], owners: Owners, apart: Sequence[str] = ()
) -> Iterator[list[Piece]]:
    """The parameters that this rank computes, whole, one at a time; all ranks have all updates at the end."""
    for param, values, grad in owners.wholes(params):
        yield [Piece(values, grad, _handed_on(states[param], apart))]


def stacked_tensors(
    params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str] = ()
) -> Iterator[list[Piece]]:
    """Every parameter whole, the short ones of a shape as one piece with one more dimension, the first.

    Not for parameters that are cut. A stack is written back at the next list.
    """
    stacks: dict[Any, list[Tensor]] = {}
    for param in params:
        if param.numel() >= PACKED_BELOW:
            yield from whole_tensors([param], states, apart)
            continue
        kind = (param.device, param.dtype, param.shape)
        stack = stacks.setdefault(kind, [])
        stack.append(param)
        if len(stack) * param.numel() >= PACK:
            yield from _stacked(stacks.pop(kind), states, apart)
    for stack in stacks.values():
        yield from _stacked(stack, states, apart)


def flat_pieces(
    params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str] = (), *, compiled: bool
) -> Iterator[list[Piece]]:
    """The parameters' numbers as 1-D pieces, in lists to update at once; a pack is written back at the next list.

    compiled: long tensors come uncut, and together. Otherwise, on a CPU, in parts of at most CACHED numbers.
    """
    packs: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    views: list[Piece] = []
    for param in params:
        held = local(param)
        size = held.numel()
        if size >= PACKED_BELOW and held.is_contiguous():
            on_cpu = held.device.type == "cpu"
            views += _views(_piece(param, states, apart), CACHED if on_cpu and not compiled else size)
            continue
        kind = (param.device, param.dtype)
        packs.setdefault(kind, []).append(param)
        sizes[kind] = sizes.get(kind, 0) + size
        if sizes[kind] >= PACK:
            del sizes[kind]
            yield from _packed(packs.pop(kind), states, apart)
    for pack in packs.values():
        yield from _packed(pack, states, apart)
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


class _Columns(NamedTuple):
    """Several parameters, their gradients, and their state by name; of those that are cut this rank's rows."""

    params: list[Tensor]
    grads: list[Tensor]
    state: dict[str, list[Tensor]]


def _columns(params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str]) -> _Columns:
    found = [states[param] for param in params]
    names = _handed_on(found[0], apart)
    grads = [param.grad for param in params if param.grad is not None]
    columns = [list(params), grads, *([state[name] for state in found] for name in names)]
    if is_cut(params[0]):
        columns = [[local(tensor) for tensor in column] for column in columns]
    return _Columns(columns[0], columns[1], dict(zip(names, columns[2:], strict=True)))


def _packed(params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str]) -> Iterator[list[Piece]]:
    own = _columns(params, states, apart)
    joined = Piece(_joined(own.params), _joined(own.grads), {name: _joined(each) for name, each in own.state.items()})
    if not joined.param.numel():  # ranks may hold no rows
        return
    yield [joined]
    _split_into(own.params, joined.param)
    for name, tensor in joined.state.items():
        _split_into(own.state[name], tensor)


def _joined(tensors: list[Tensor]) -> Tensor:
    # As torch.cat of every tensor's reshape(-1), which takes 1 us more for each.
    joined: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]  # unannotated
    return joined.detach()


def _split_into(tensors: list[Tensor], joined: Tensor) -> None:
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def _stacked(params: Sequence[Tensor], states: Mapping[Tensor, State], apart: Sequence[str]) -> Iterator[list[Piece]]:
    if len(params) == 1:
        yield from whole_tensors(params, states, apart)
        return
    own = _columns(params, states, apart)
    state = {name: torch.stack(each) for name, each in own.state.items()}
    stack = Piece(torch.stack(own.params), torch.stack(own.grads), state, is_stack=True)
    yield [stack]
    torch._foreach_copy_(own.params, list(stack.param.unbind()))
    for name, tensor in state.items():
        torch._foreach_copy_(own.state[name], list(tensor.unbind()))


def _piece(param: Tensor, states: Mapping[Tensor, State], apart: Sequence[str]) -> Piece:
    assert param.grad is not None
    state = {name: local(tensor) for name, tensor in _handed_on(states[param], apart).items()}
    return Piece(local(param.detach()), local(param.grad), state)


def _handed_on(state: State, apart: Sequence[str]) -> State:
    """The state that direction sees."""
    return {name: tensor for name, tensor in state.items() if name != "step" and name not in apart}


def _with_dimension(piece: Piece) -> Piece:
    """A single number as a vector of one: a 0-dim tensor would be widened by 0-dim float64 ones."""
    if piece.param.ndim:
        return piece
    state = {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in piece.state.items()}
    return Piece(piece.param.view(1), piece.grad.view(1), state)
