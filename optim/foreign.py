"""Optimizers that are not ours as members of an OptimizerSet: torch's, and anyone's."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from . import saved_groups
from .member import Member, Saved, State, refusal
from .owners import Owners
from .sharding import is_sharded, zeros


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
        fresh = [saved_groups.adopted(ours, theirs) for ours, theirs in zip(self.param_groups, saved, strict=True)]
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
