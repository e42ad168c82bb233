"""An average of curvature estimates in an optimizer's state, which its rule reads as `hessian`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from .base import Params, RuleOptimizer, Shape, Spec, State
from .execution import uncompiled
from .groups import Group, plain
from .sharding import local


def curvature_spec(shape: Shape) -> dict[str, Spec]:
    """hessian, of the parameter's shape, and estimates, how many it has averaged."""
    return {"hessian": Spec(shape, moment="signed"), "estimates": Spec((), torch.float32, by_row=False)}


class CurvatureOptimizer(RuleOptimizer):
    """Averages estimates of the curvature's diagonal with weight 1 - betas[1]; a group counts those that it got."""

    apart = ("estimates",)

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str, state: str) -> None:
        self._counts: dict[tuple[torch.device, float], Tensor] = {}  # see _share
        super().__init__(params, {**defaults, "curvature_updates": 0, "skipped_estimates": 0}, execution, state)

    @uncompiled
    @torch.no_grad()
    def update_curvature(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Averages new estimates of the curvature's diagonal (by parameter, of its shape) into the state, l. 9.

        If a number of any of them is not finite, on any rank, it only counts as a skipped estimate, on all ranks. No
        host waits for that.

        Raises: ValueError: if an estimate is not of its parameter's shape.
        """
        for param, estimate in estimates.items():
            if estimate.shape != param.shape:
                shapes = f"{tuple(estimate.shape)} for a parameter of shape {tuple(param.shape)}"
                raise ValueError(f"{type(self).__name__}: an estimate of the curvature has shape {shapes}")
        is_finite = self._is_finite(estimates)
        counted: dict[Tensor, Tensor] = {}  # by the count before
        for group in self.param_groups:
            weight = 1 - plain(group["betas"])[1]
            for param in (param for param in group["params"] if param in estimates):
                state = self._state_of(param, group)
                h, count = self.numbers(param, "hessian"), state["estimates"]
                estimate = torch.where(is_finite, local(estimates[param]).to(h.dtype), h)
                self.set_numbers(param, "hessian", h.lerp_(estimate, weight))
                if count not in counted:
                    counted[count] = count + is_finite
                state["estimates"] = counted[count]
            group["curvature_updates"] += 1
            group["skipped_estimates"] = group["skipped_estimates"] + is_finite.logical_not()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state_dict with a tensor per count: a shared one would be filled several times on loading."""
        found = super().state_dict()
        own = {i: state | {"estimates": state["estimates"].clone()} for i, state in found["state"].items() if state}
        return found | {"state": own}

    @override
    def take_over(self, fresh: Sequence[Group], states: Mapping[Tensor, State]) -> None:
        super().take_over(fresh, states)
        for state in states.values():
            self._share(state, float(state["estimates"]))

    def _is_finite(self, estimates: Mapping[Tensor, Tensor]) -> Tensor:
        """Whether all numbers are, on all ranks; a 0-dim bool on the device."""
        parts = [part for part in map(local, estimates.values()) if part.numel()]
        found = torch.zeros((), device=self.device)
        if parts:  # the largest of each, NaN if there is one
            largest = torch.stack([norm.to(self.device) for norm in torch._foreach_norm(parts, math.inf)])
            found += largest.isfinite().logical_not().sum()
        return self.total_of_all(found) == 0

    @override
    def _state_of(self, param: Tensor, group: Group) -> State:
        is_new = not self.state.get(param)
        state = super()._state_of(param, group)
        if is_new:
            self._share(state, 0.0)
        return state

    def _share(self, state: State, value: float) -> None:
        """Makes equal counts one tensor, so that parameters with the same past are updated together."""
        count = state["estimates"]
        state["estimates"] = self._counts.setdefault((count.device, value), count)

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also skipped_estimates, those that were not finite."""
        skipped = [torch.as_tensor(group["skipped_estimates"], device=self.device) for group in self.param_groups]
        return super().diagnostics() | {"skipped_estimates": torch.stack(skipped).max().float()}

    @override
    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        if not (skipped := diagnostics.get("skipped_estimates")):
            return []
        return [f"{type(self).__name__}: {skipped:.0f} estimates of the curvature were not finite and were skipped"]
