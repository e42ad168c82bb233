"""The engine under every optimizer of this package: takes the steps of a rule (rule.py).

It turns the rule's direction u into param <- (1 - lr weight_decay) param - lr u, and does for all rules
* the state (state.py): made from its spec before the first step, plus "step", a 0-dim fp32 tensor in host memory;
* copies, saving and loading (saving.py), and what parameter groups may hold (groups.py);
* the working dtype: fp32 for narrower parameters, which get a working copy; float64 stays float64 throughout;
* the execution: on which pieces (pieces.py), and eager or compiled from the same lines (execution.py), unless there is
  no compiler;
* ranks (sharding.py): under FSDP2 by itself, under DDP where distribute(group) was called;
* skipping parameters without gradient or without numbers, closures, and messages about bad values.

Memory of a step beyond state: eager, a few pieces of pieces.CACHED numbers for elementwise rules, otherwise what
direction makes for one parameter; compiled, less. Short tensors are copied into packs of about pieces.PACK numbers,
for rules that split rows stacks of those of a shape, over which torch.vmap runs direction.
A measured step (diagnostics) copies the pieces of one call, at most pieces.TOGETHER matrices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, overload

import torch
from torch import Tensor
from typing_extensions import override

from . import groups
from .execution import EXECUTIONS, Compiled, as_tensors, decode_all, encode_all, restore, uncompiled, update_pieces
from .formats import MAXIMA, coded, narrow, widened
from .member import step_where
from .pieces import Piece, flat_pieces, full_tensors, owned_tensors, stacked_tensors
from .rule import Hyper, Rule, Shape, Spec, State, within, working_dtype
from .saving import SavedRule
from .sharding import ALL_ROWS, is_sharded
from .state import Params

__all__ = ["Hyper", "Params", "RuleOptimizer", "Shape", "Spec", "State", "within", "working_dtype"]

COMPILED_FROM = 1 << 25  # parameters; below, "auto" does not think compiling (seconds) worth it


class RuleOptimizer(SavedRule):
    """A torch.optim.Optimizer made of a rule.

    execution: "eager"; "compiled", worth its seconds of compilation for large models; "auto", compiled from
    COMPILED_FROM parameters up. lr and the other numbers of a group may be NumPy's, or 0-dim tensors, which are read in
    every step.

    Raises: ValueError: if a hyperparameter lies outside its range, a group has a key that is no hyperparameter, or a
    parameter is not real. From step(): if a gradient is sparse.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str = "auto", state: str = "fp32") -> None:
        super().__init__(params, defaults, state)
        if execution not in EXECUTIONS:
            raise ValueError(f"{type(self).__name__}: execution={execution!r} must be one of {', '.join(EXECUTIONS)}")
        self.execution = execution
        self.measures = False  # whether steps note what diagnostics() then says about updates
        self.found_inf: Tensor | None = None  # as torch's fused optimizers: a step does nothing where it is not 0
        self._changes: dict[str, list[Tensor]] = {}  # by role: sums of squares of update and parameter, (2,) each
        self._compiled: dict[Callable[..., Any], Compiled] = {}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": {}}  # compiled code is made anew

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; returns what closure, run first, returns.

        Raises: ValueError: if a gradient is sparse; then nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._changes = {}
        is_compiled = self._is_compiled()
        for hp, params in self._due():
            self._advance(params, hp, is_compiled)
        return loss

    def step_if_finite(self, is_finite: Tensor | None, *, measured: bool) -> None:
        """A step where is_finite, 0-dim, is true (or None); where not, only counts it.

        On a CPU the tensor is read, on other devices it stays there. measured: see diagnostics().
        """
        self.measures = measured
        if is_finite is not None and is_finite.device.type != "cpu":
            step_where(is_finite, self)
        elif is_finite is None or is_finite:
            self.step()
        else:
            self.skip()

    def skip(self) -> None:
        """Counts a step for every parameter that has a gradient, and changes nothing else."""
        for hp, params in self._due():
            self._count(params, hp.t)

    def diagnostics(self) -> dict[str, Tensor]:
        """What users tune by, as 0-dim tensors on the device.

        update_ratio/<role>: RMS of the last step's update, decay included, over that of the parameters before it; there
        only if `measures` was true, and 0 if the step did not move. Rules add their own. All ranks must ask, and get
        the same.
        """
        nothing = torch.zeros(2, device=self.device)
        sums = {
            role: self.total(torch.stack(found).sum(0) if found else nothing.clone())
            for role, found in self._changes.items()
        }
        return {f"update_ratio/{role}": (s[0] / s[1].clamp(min=1e-30)).sqrt() for role, s in sums.items()}

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about diagnostics out of their usual range."""
        return []

    def _due(self) -> list[tuple[Hyper, list[Tensor]]]:
        """The parameters that have a gradient, with what tells how they are updated: those of one group and one step.

        Beside the group's numbers that is t, the 1-based step that comes next, and the gate.
        """
        found: dict[tuple[int, int, int], tuple[Hyper, list[Tensor]]] = {}
        for number, group in enumerate(self.param_groups):
            self._follow_settings(number, group)
            for index, param in enumerate(group["params"]):
                if (grad := param.grad) is None:
                    continue
                if grad.layout is not torch.strided:
                    raise ValueError(groups.not_dense(type(self).__name__, group, number, index))
                state = self.state.get(param) or self._state_of(param, group)
                t, gate = int(state["step"]) + 1, self.gate(state)
                kind = (number, t, id(gate))
                if kind not in found:
                    found[kind] = self._hyper(group, t=t, gate=gate, rows=ALL_ROWS), []
                found[kind][1].append(param)
        return list(found.values())

    def _count(self, params: Sequence[Tensor], t: int) -> None:
        steps = [self.state[param]["step"] for param in params]
        torch._foreach_copy_(steps, [torch.tensor(float(t))] * len(steps))

    def _advance(self, params: Sequence[Tensor], hp: Hyper, is_compiled: bool) -> None:
        moves = self.moves(hp)
        self._count(params, hp.t)
        params = [param for param in params if param.numel()]
        if not params:
            return
        # Compiled code has no collectives here. Ranks that shard parameters hold small parts of them anyway.
        is_compiled = is_compiled and not (self.splits_rows and is_sharded(params[0]))
        update = self._update(hp, is_compiled)
        if self.measures:
            update = self._measured(update, getattr(hp, groups.ROLE, "all"))
        for kept in self._pieces(params, is_compiled):
            pieces = self._opened(kept, is_compiled)
            if self._refreshes_state:
                self._refresh(pieces, hp)
            if moves:
                update(pieces)
            self._keep(pieces, kept, hp.t, is_compiled)

    def _pieces(self, params: Sequence[Tensor], is_compiled: bool) -> Iterator[list[Piece]]:
        if self.elementwise:
            return flat_pieces(params, self.state, self.apart, compiled=is_compiled)
        if (owners := self.owners()) is not None:
            return owned_tensors(params, self.state, owners, self.apart)
        if self.splits_rows and not (is_compiled or is_sharded(params[0]) or self._refreshes_state):
            return stacked_tensors(params, self.state, self.apart)
        return full_tensors(params, self.state, self.apart)

    @property
    def _refreshes_state(self) -> bool:
        return type(self).refresh is not Rule.refresh

    def _refresh(self, pieces: Sequence[Piece], hp: Hyper) -> None:
        for param, grad, state, _, rows in pieces:
            dtype = working_dtype(param)
            before = {} if self.found_inf is None else {name: tensor.clone() for name, tensor in state.items()}
            wide = widened(state, dtype)
            self.refresh(grad.to(dtype), param.to(dtype), wide, hp.with_rows(rows))
            narrow(wide, state)
            restore(before, state, self.found_inf)

    def _opened(self, kept: Sequence[Piece], is_compiled: bool) -> Sequence[Piece]:
        """The pieces with what is kept as codes as numbers; those without any as they are."""
        names = [coded(piece.state) for piece in kept]
        if not any(names):
            return kept
        codes, maxima = _codes(kept, names)
        numbers = iter(self._fast(decode_all, is_compiled)(codes, maxima))
        found = []
        for piece, own in zip(kept, names, strict=True):
            exact = {n: t for n, t in piece.state.items() if n.removesuffix(MAXIMA) not in own}
            dtype = working_dtype(piece.param)
            rows = None if self.elementwise else piece.rows
            opened = {n: next(numbers).to(dtype).view_as(piece.state[n]) for n in own}
            found.append(piece._replace(state=exact | opened, rows=rows))
        return found

    def _keep(self, pieces: Sequence[Piece], kept: Sequence[Piece], t: int, is_compiled: bool) -> None:
        """Writes what became of opened pieces back."""
        names = [coded(piece.state) for piece in kept]
        numbers = [piece.state[name] for piece, own in zip(pieces, names, strict=True) for name in own]
        if numbers:
            places = [
                self.place(piece.rows, t, piece.state[name + MAXIMA])
                for piece, own in zip(kept, names, strict=True)
                for name in own
            ]
            codes, maxima = _codes(kept, names)
            numbers = [each.view_as(own) for each, own in zip(numbers, codes, strict=True)]
            self._fast(encode_all, is_compiled)(numbers, codes, maxima, places, self.found_inf)

    def _fast(self, function: Callable[..., Any], is_compiled: bool) -> Callable[..., Any]:
        """The function, compiled if that is wanted."""
        if not is_compiled:
            return function
        if function not in self._compiled:
            self._compiled[function] = Compiled(function)
        return self._compiled[function]

    def _update(self, hp: Hyper, is_compiled: bool) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces, for this step's numbers."""
        lr = hp.lr
        if hp.gate is not None:
            is_open = (hp.gate > 0).double()  # 0-dim
            lr = lr * (float(is_open) if is_open.device.type == "cpu" else is_open)
        shrink = 1.0 if self.decays_in_direction else 1 - lr * hp.weight_decay
        numbers = self.coefficients(hp) | {"lr": lr, "shrink": shrink}
        hidden = ("lr", "t", "gate", *groups.MOVING)
        settings = {name: value for name, value in vars(hp).items() if name not in hidden} | numbers
        function = self._fast(update_pieces, is_compiled)
        if is_compiled:
            settings = as_tensors(settings)
        lr, shrink, found_inf = settings.pop("lr"), settings.pop("shrink"), self.found_inf
        visible = Hyper(settings)
        return lambda pieces: function(self, pieces, visible, lr, shrink, found_inf)

    def _measured(self, update: Callable[[Sequence[Piece]], None], role: str) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces that also notes how far it went, at the cost of a copy of them."""
        found = self._changes.setdefault(role, [])

        def measured(pieces: Sequence[Piece]) -> None:
            before = [piece.param.to(working_dtype(piece.param), copy=True) for piece in pieces]
            sizes = [torch.linalg.vector_norm(tensor) for tensor in before]
            update(pieces)
            for piece, tensor, size in zip(pieces, before, sizes, strict=True):
                found.append(torch.stack([torch.linalg.vector_norm(tensor.sub_(piece.param)), size]).square())

        return measured

    def _is_compiled(self) -> bool:
        if not all(each.works for each in self._compiled.values()):
            return False
        if self.execution == "auto":
            numbers: int = sum(param.numel() for group in self.param_groups for param in group["params"])
            return numbers >= COMPILED_FROM
        return self.execution == "compiled"


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
