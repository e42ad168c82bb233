"""Notices that a run diverges, and decides which steps to skip, without waiting for the device on every step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.environment import widest_float

MEMORY = 0.05  # weight of the newest loss in the running mean


class Divergence:
    """Watches loss and gradient norm; its numbers stay on the device until they are read.

    A step whose loss or gradient norm is not finite is skipped. The run has diverged after max_nonfinite such steps in
    a row (None: never), or at a finite loss above spike_factor times its running mean (None: never).
    saved: what state() returned.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        max_nonfinite: int | None,
        spike_factor: float | None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self._dtype = widest_float(device)
        self._most, self._factor = max_nonfinite or math.inf, spike_factor or math.inf
        saved = saved or {"skipped": 0, "in_a_row": 0, "mean": None}
        mean = math.nan if saved["mean"] is None else saved["mean"]
        self._skipped, self._in_a_row, self._mean, self._first, self._spike = (
            torch.tensor(value, dtype=self._dtype, device=device)
            for value in (saved["skipped"], saved["in_a_row"], mean, math.inf, math.nan)
        )
        self._declared = ""

    def observe(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Records a step's 0-dim loss and gradient norm; returns whether to take the step, as 0-dim bool."""
        is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        loss = loss.to(self._dtype)
        is_spike = torch.isfinite(loss) & (
            loss > self._factor * self._mean
        )  # false while there is no mean, as it is nan
        self._skipped = self._skipped + ~is_finite
        self._in_a_row = (self._in_a_row + 1) * ~is_finite
        is_over = is_spike | (self._in_a_row >= self._most)
        self._spike = torch.where(is_spike & torch.isinf(self._first), loss, self._spike)
        self._first = torch.where(is_over, self._first.clamp(max=step), self._first)
        mean = torch.where(torch.isnan(self._mean), loss, self._mean.lerp(loss, MEMORY))
        self._mean = torch.where(is_finite, mean, self._mean)
        return is_finite

    def declare(self, step: int, diagnosis: str) -> None:
        """Records that the run has diverged by the end of a step, for a reason that observe() does not see."""
        if self.step is None:
            self._first, self._declared = torch.full_like(self._first, step), diagnosis

    @property
    def step(self) -> int | None:
        """The step at which the run diverged, None if it has not; waits for the device."""
        first = float(self._first)
        return None if math.isinf(first) else int(first)

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped; waits for the device."""
        return int(self._skipped)

    @property
    def diagnosis(self) -> str:
        """What happened at `step`, as part of a sentence."""
        if self._declared:
            return self._declared
        loss = float(self._spike)
        if math.isfinite(loss):
            return f"the loss jumped to {loss:.4g}, more than {self._factor:g} times its running mean (spike_factor)"
        return f"the loss or the gradient norm was not finite, {int(self._most)} steps in a row (max_nonfinite)"

    def state(self) -> dict[str, Any]:
        """Returns what a run needs to continue, as JSON; waits for the device."""
        mean = float(self._mean)
        return {
            "skipped": float(self._skipped),
            "in_a_row": float(self._in_a_row),
            "mean": None if math.isnan(mean) else mean,
        }
