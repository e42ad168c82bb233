"""How the engine steps some parameters: which pieces, which code, and what it notes of them. See base.py."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from . import groups
from .changes import Changes
from .coding import decode_all, encode_all, keep, opened
from .execution import EXECUTIONS, Compiled, as_tensors, copies, restore, update_pieces
from .formats import narrow, widened
from .grouped import Params
from .hyper import Hyper, working_dtype
from .pieces import PACKED_BELOW, Piece, flat_pieces
from .ranges import one_of
from .rule import Rule
from .saving import SavedRule
from .sharding import is_sharded
from .stacks import STACKED_BELOW, owned_tensors, stacked_tensors, unstacked
from .streams import at_once

COMPILED_FROM = 1 << 25  # parameters; below, "auto" does not think compiling (seconds) worth it


class Engine(SavedRule):
    """Steps of parameters that are due; RuleOptimizer decides which."""

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str, state_format: str) -> None:
        super().__init__(params, defaults, state_format)
        one_of(self, "execution", execution, EXECUTIONS)
        self.execution = execution
        self.measures = False  # whether steps note what diagnostics() then says about updates
        self.found_inf: Tensor | None = None  # as torch's fused optimizers: a step does nothing where it is not 0
        self._changes = Changes()
        self._compiled: dict[Callable[..., Any], Compiled] = {}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": {}}  # compiled code is made anew

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
            update = self._changes.measured(update, getattr(hp, groups.ROLE, "all"))
        for kept in self._pieces(params, is_compiled):
            pieces = opened(kept, self._fast(decode_all, is_compiled), elementwise=self.elementwise)
            if self._refreshes_state:
                self._refresh(pieces, hp)
            if moves:
                update(pieces)
            if pieces is not kept:
                places = [self.place(piece.rows, hp.t) for piece in kept]
                keep(pieces, kept, places, self._fast(encode_all, is_compiled), self.found_inf)

    def _pieces(self, params: Sequence[Tensor], is_compiled: bool) -> Iterator[list[Piece]]:
        if self.elementwise:
            return flat_pieces(params, self.state, self.apart, compiled=is_compiled)
        # On a CPU launches are cheap, and products of stacks differ in their last bits from those of matrices, so that
        # results would depend on the ranks.
        on_cpu = params[0].device.type == "cpu"
        below = 0 if on_cpu else STACKED_BELOW
        if (owners := self.owners()) is not None:
            return owned_tensors(params, self.state, owners, self.apart, self.seen, stacked_below=below)
        if self.splits_rows:
            if on_cpu and not is_compiled:
                below = PACKED_BELOW
            if is_sharded(params[0]) or self._refreshes_state:
                below = 0
        return stacked_tensors(params, self.state, self.apart, self.seen, below=below)

    @property
    def _refreshes_state(self) -> bool:
        return type(self).refresh is not Rule.refresh

    def _refresh(self, pieces: Sequence[Piece], hp: Hyper) -> None:
        is_due = self.is_due(hp)
        taken, undone_by = None, self.found_inf
        if self.found_inf is not None and not is_due:
            taken, undone_by = self.found_inf == 0, None
        hp = hp.replaced(taken=taken)

        def refresh(piece: Piece) -> None:
            param, grad, state, _, rows = piece
            dtype = working_dtype(param)
            before = copies(state, undone_by)
            wide = widened(state, dtype)
            self.refresh(grad.to(dtype), param.to(dtype), wide, hp.with_rows(rows))
            narrow(wide, state)
            restore(before, state, undone_by)

        single = [each for piece in pieces for each in unstacked(piece)]
        if is_due:
            at_once(refresh, single, pieces[0].param.device)
        else:  # at most a few launches, which threads would only delay
            for piece in single:
                refresh(piece)

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
            is_open = (hp.gate > 0).to(working_dtype(hp.gate))  # 0-dim; not every device has float64
            lr = lr * (float(is_open) if is_open.device.type == "cpu" else is_open)
        shrink = 1.0 if self.decays_in_direction else 1 - lr * hp.weight_decay
        numbers = self.coefficients(hp) | {"lr": lr, "shrink": shrink}
        hidden = ("lr", "t", "gate", *groups.MOVING)
        settings = {name: value for name, value in hp.settings.items() if name not in hidden} | numbers
        function = self._fast(update_pieces, is_compiled)
        if is_compiled:
            settings = as_tensors(settings)
        lr, shrink, found_inf = settings.pop("lr"), settings.pop("shrink"), self.found_inf
        visible = Hyper(settings)
        return lambda pieces: function(self, pieces, visible, lr, shrink, found_inf)

    def _is_compiled(self) -> bool:
        if not all(each.works for each in self._compiled.values()):
            return False
        if self.execution == "auto":
            numbers: int = sum(param.numel() for group in self.param_groups for param in group["params"])
            return numbers >= COMPILED_FROM
        return self.execution == "compiled"
