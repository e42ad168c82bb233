"""The step of some pieces, interpreted or compiled from the same lines."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .formats import narrow, widened
from .hyper import Hyper, State, working_dtype
from .pieces import Piece
from .rule import Rule

EXECUTIONS = ("auto", "eager", "compiled")
VARIANTS = 64  # of compiled code per optimizer: dtypes, numbers of pieces, shapes with a side of 1
UNCOMPILED = (
    "optimizer steps run uncompiled, and slower, because compiling them failed; install what is missing (often a C++ "
    "compiler), or choose execution='eager' to silence this"
)

P = ParamSpec("P")
R = TypeVar("R")


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
    for param, grad, state, is_stack, rows in map(_with_dimension, pieces):
        changed = {name: tensor for name, tensor in state.items() if name not in rule.read_only} | {"": param}
        before = copies(changed, found_inf)
        dtype = working_dtype(param)
        working = param.to(dtype)
        direction = _of_stack(rule) if is_stack and not rule.takes_stacks else rule.direction
        wide = widened(state, dtype)
        update = direction(grad.to(dtype), working, wide, hp.with_rows(rows))
        narrow(wide, state)
        if not rule.decays_after_update:
            working.mul_(shrink)
        working.sub_(update * lr)
        if rule.decays_after_update:
            working.mul_(shrink)
        if dtype != param.dtype:
            param.copy_(working)
        restore(before, changed, found_inf)


def _of_stack(rule: Rule) -> Callable[..., Tensor]:
    """The rule's direction for stacks. Random numbers, of the step and the shape, are those of each matrix alone."""
    return torch.vmap(rule.direction, in_dims=(0, 0, 0, None), randomness="same")


def copies(state: State, found_inf: Tensor | None) -> State:
    """What restore needs of tensors that will change: nothing without found_inf; compiled code copies none of it."""
    return {} if found_inf is None else {name: tensor.clone() for name, tensor in state.items()}


def restore(before: State, changed: State, found_inf: Tensor | None) -> None:
    """Undoes what was changed, on the device, where found_inf is not 0. before: what copies has returned."""
    if found_inf is not None:
        is_taken = found_inf == 0
        for name, tensor in before.items():
            torch.where(is_taken, changed[name], tensor, out=changed[name])


class Compiled:
    """A function as one kernel per piece, for any size; its first call takes seconds, also to import the compiler.

    What cannot be compiled, for lack of a C++ compiler above all, runs as it is from then on, after one warning.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        # The compiled variants of a function are counted per code object, so each gets one of its own: optimizers do
        # not use up each other's.
        own = FunctionType(update.__code__.replace(), update.__globals__, update.__name__)
        self._plain, self._fast, self.works = update, torch.compile(own, dynamic=True, fullgraph=True), True

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function; where compiling fails, which comes before anything is changed, as it is."""
        if self.works:
            try:
                with torch._dynamo.config.patch(recompile_limit=VARIANTS):
                    return self._fast(*arguments)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                self.works = False
                cause = getattr(error, "inner_exception", error)
                warnings.warn(f"{UNCOMPILED}: {type(cause).__name__}: {str(cause).splitlines()[0]}", stacklevel=2)
        return self._plain(*arguments)


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


def _with_dimension(piece: Piece) -> Piece:
    """A single number as a vector of one: a 0-dim tensor would be widened by 0-dim float64 ones."""
    if piece.param.ndim:
        return piece
    state = {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in piece.state.items()}
    return piece._replace(param=piece.param.view(1), grad=piece.grad.view(1), state=state)
