"""Noticing that a run has diverged, without a host synchronisation on every step."""

import math

import torch
from torch import Tensor


class Divergence:
    """The first step whose loss or gradient norm was not finite, kept on the device until somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), math.inf, dtype=torch.float64, device=device)

    def observe(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Takes a step's 0-dim loss and gradient norm."""
        is_finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._first = torch.where(is_finite, self._first, self._first.clamp(max=step))

    @property
    def step(self) -> int | None:
        """That step, None if there was none; waits for the device."""
        first = float(self._first)
        return None if math.isinf(first) else int(first)
