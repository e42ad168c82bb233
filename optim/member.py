"""Member, the interface of an optimizer in OptimizerSet: base.py implements it, ForeignMember adapts others."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from . import groups
from .sharding import Owners, is_sharded, zeros

State = dict[str, Any]  # by name: tensors, and of foreign optimizers also numbers
Saved = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # by name: shape and dtype of what a checkpoint has


class Member(Protocol):
    """One optimizer of a set; parameters, groups and state as torch.optim.Optimizer has them."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """By parameter."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings of a group that has none of its own."""

    def zero_grad(self) -> None:
        """Forgets all gradients."""

    def step_if_finite(self, is_finite: Tensor | None, *, measured: bool) -> None:
        """A step where is_finite, 0-dim, is true (or None); otherwise parameters and state stay as they are.

        measured: the step also notes what diagnostics() then says about it. Raises: ValueError: if the first step of a
        foreign optimizer fails: it is not for such a model.
        """

    def diagnostics(self) -> Mapping[str, Tensor]:
        """What users tune by, 0-dim tensors on the device by name; the same on all ranks, which must all ask."""

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Sentences for the user about diagnostics out of their usual range."""

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Records the ranks that hold the same full parameters and gradients, which share the work."""

    def owners(self) -> Owners | None:
        """Who computes which parameter, where ranks share full parameters."""

    def refresh_intervals(self) -> list[int]:
        """Steps between expensive refreshes, of every group that has them."""

    def flops_of_all(self, steps: int) -> float:
        """FLOPs of matrix products and factorisations in the first `steps` steps; 0 of a foreign optimizer: unknown."""

    def init_state(self) -> None:
        """Makes the state of every parameter; of a foreign optimizer only on the meta device."""

    def empty_state(self, param: Tensor, group: Mapping[str, Any], saved: Saved) -> State:
        """Tensors for a checkpoint to be read into: what this rank keeps for a parameter.

        Raises: ValueError: if what was saved does not fit.
        """

    def prepare_load(
        self, saved: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> Callable[[], None]:
        """What makes this optimizer take over saved groups, known to be these, and states by parameter.

        Raises: ValueError: if they do not fit; nothing has changed before the result is called.
        """


def refusal(target: str, error: Exception) -> str:
    """What a class says in one line, after its import path unless its own words name the class."""
    said, kind = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, ValueError):
        return said if target.rpartition(".")[2] in said else f"{target}: {said or kind}"
    return f"{target}: {kind}: {said}" if said else f"{target}: {kind}"


class ForeignMember(Member):
    """Any torch.optim.Optimizer: without diagnostics, hints or shared work, and with any state it likes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._has_stepped = False

    @property
    @override
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    @override
    def state(self) -> Mapping[Any, Any]:
        return self.optimizer.state

    @property
    @override
    def defaults(self) -> Mapping[str, Any]:
        return self.optimizer.defaults

    @override
    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @override
    def step_if_finite(self, is_finite: Tensor | None, *, measured: bool) -> None:
        try:
            self._step(is_finite)
        except Exception as error:  # whatever a class raises that is not ours
            if self._has_stepped or self._may_be_of_the_machine(error):
                raise
            target = f"{type(self.optimizer).__module__}.{type(self.optimizer).__qualname__}"
            raise ValueError(f"optim: in the first step, {refusal(target, error)}") from error
        self._has_stepped = True

    def _step(self, is_finite: Tensor | None) -> None:
        is_fused = all(group.get("fused") for group in self.param_groups)
        if is_finite is not None and is_finite.device.type != "cpu" and is_fused:
            step_where(is_finite, self.optimizer)
        elif is_finite is None or is_finite:  # the host waits for it
            self.optimizer.step()

    def _may_be_of_the_machine(self, error: Exception) -> bool:
        """Whether memory, a device or another rank may be at fault, not what the optimizer was given."""
        if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError | dist.DistError):
            return True
        return any(is_sharded(param) for group in self.param_groups for param in group["params"])

    @override
    def diagnostics(self) -> Mapping[str, Tensor]:
        return {}

    @override
    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        return []

    @override
    def distribute(self, group: dist.ProcessGroup | None) -> None:
        pass  # every rank updates all that it holds

    @override
    def owners(self) -> Owners | None:
        return None

    @override
    def refresh_intervals(self) -> list[int]:
        return []  # unknown

    @override
    def flops_of_all(self, steps: int) -> float:
        return 0.0

    @override
    def init_state(self) -> None:
        for group in self.param_groups:
            if "fused" in group:
                group["fused"] = False  # has no meta kernel; keeps the same state
            for param in group["params"]:
                param.grad = torch.empty_like(param)
        self.optimizer.step()

    @override
    def empty_state(self, param: Tensor, group: Mapping[str, Any], saved: Saved) -> State:
        shape = tuple(param.shape)
        return {name: zeros(param, found, dtype, by_row=found == shape) for name, (found, dtype) in saved.items()}

    @override
    def prepare_load(
        self, saved: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
    ) -> Callable[[], None]:
        fresh = [groups.adopted(ours, theirs) for ours, theirs in zip(self.param_groups, saved, strict=True)]
        owners = {param: group for group in fresh for param in group["params"]}
        found = {param: _placed(param, owners[param], state) for param, state in states.items()}

        def commit() -> None:
            for group, settings in zip(self.param_groups, fresh, strict=True):
                group.update(settings)
            self.optimizer.state = defaultdict(dict, found)

        return commit


def step_where(is_finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step that the device leaves out where is_finite is false, of an optimizer that heeds found_inf."""
    optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # torch's name for it
    try:
        optimizer.step()
    finally:
        optimizer.found_inf = None  # type: ignore[attr-defined]  # or it would stop steps that do not ask


def _placed(param: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> State:
    # As torch keeps them: steps in host memory unless a fused or capturable kernel counts them on the device.
    on_device = group.get("fused") or group.get("capturable")
    return {
        name: value.to(param.device if name != "step" or on_device else "cpu", copy=True)
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }
