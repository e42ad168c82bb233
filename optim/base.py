"""The engine under every optimizer of this package: takes the steps of a rule (rule.py).

It turns the rule's direction u into param <- (1 - lr weight_decay) param - lr u, and does for all rules
* the state (state.py): made from its spec before the first step, plus "step", a 0-dim fp32 tensor in host memory;
* copies, saving and loading (saving.py), and what parameter groups may hold (groups.py);
* the working dtype: fp32 for narrower parameters, which get a working copy; float64 stays float64 throughout;
* the format of the state (formats.py, coding.py);
* the execution (engine.py): on which pieces (pieces.py, stacks.py), and eager or compiled from the same lines
  (execution.py), unless there is no compiler; on CUDA refreshes of several parameters at once (streams.py);
* ranks (shared.py, sharding.py): under FSDP2 by itself, under DDP where distribute(group) was called;
* skipping parameters without gradient or without numbers, closures, and messages about bad values.

Memory of a step beyond state: eager, a few pieces of pieces.CACHED numbers for elementwise rules, otherwise what
direction makes for one parameter; compiled, less. Short tensors are copied: for elementwise rules
into packs of about pieces.PACK numbers, for other rules into stacks of parameters of one shape (stacks.py), over which
torch.vmap runs direction unless the rule takes stacks.
A measured step (diagnostics) copies the pieces of one call, at most pieces.TOGETHER matrices.
"""

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from . import groups
from .changes import Changes
from .engine import Engine
from .execution import uncompiled
from .foreign import step_where
from .grouped import Params
from .hyper import Hyper, Shape, Spec, State, working_dtype
from .ranges import one_of, within
from .sharding import ALL_ROWS

__all__ = ["Hyper", "Params", "RuleOptimizer", "Shape", "Spec", "State", "one_of", "within", "working_dtype"]


class RuleOptimizer(Engine):
    """A torch.optim.Optimizer made of a rule.

    execution: "eager"; "compiled", worth its seconds of compilation for large models; "auto", compiled from
    engine.COMPILED_FROM parameters up. state: a format of formats.py; "fp32" is the working dtype. lr and the other
    numbers of a group may be NumPy's, or 0-dim tensors, which are read in every step.

    Raises: ValueError: if a hyperparameter lies outside its range, a group has a key that is no hyperparameter, or a
    parameter is not real. From step(): if a gradient is sparse.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str = "auto", state: str = "fp32") -> None:
        super().__init__(params, defaults, execution, state)

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
        self._changes = Changes()
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
        """Numbers to tune by, as 0-dim tensors on the device.

        update_ratio/<role>: RMS of the last step's update, decay included, over that of the parameters before it; there
        only if `measures` was true, and 0 if the step did not move. Rules add their own. All ranks must call this, and
        get the same.
        """
        ratios = self._changes.ratios(self.total, self.device)
        return {f"update_ratio/{role}": ratio for role, ratio in ratios.items()}

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about diagnostics out of their usual range."""
        return []

    def _due(self) -> list[tuple[Hyper, list[Tensor]]]:
        """The parameters that have a gradient, in lists of equal group, step and gate, each with its Hyper.

        Beside the group's numbers a Hyper has t, the 1-based step that comes next, and the gate.
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
