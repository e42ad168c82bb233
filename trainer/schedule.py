"""Learning-rate schedules: a factor on every group's peak, a pure function of the 0-based step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from typing_extensions import override


class HasGroups(Protocol):
    """What a schedule needs of an optimizer."""

    @property
    def param_groups(self) -> Sequence[dict[str, Any]]:
        """Parameter groups, each with "lr"."""


class Schedule(ABC):
    """A linear warm-up over warmup_steps, then after_warmup(step), which subclasses define.

    Step n gets (n + 1) / warmup_steps of the peak, so the first update moves and step warmup_steps - 1 is at the peak.
    A run may end before that, as a short trial does.

    Raises: ValueError: if warmup_steps is negative, or a fraction lies outside [0, 1].
    """

    def __init__(self, *, max_steps: int, warmup_steps: int) -> None:
        if warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={warmup_steps} must be >= 0")
        self.max_steps, self.warmup_steps = max_steps, warmup_steps

    def factor(self, step: int) -> float:
        """Returns lr / peak lr at the 0-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Returns the factor for a step >= warmup_steps."""

    @property
    def remark(self) -> str:
        """A warning about a run with this schedule; empty if there is none."""
        if self.warmup_steps <= self.max_steps:
            return ""
        return (
            f"max_steps={self.max_steps} ends within the warm-up (schedule.warmup_steps={self.warmup_steps}): the "
            "learning rate never reaches its peak"
        )

    def apply(self, optimizer: HasGroups, step: int) -> float:
        """Sets every group's lr to factor(step) times its peak; returns that of the first group, for the log.

        The peak is the group's lr before the first call, kept as "initial_lr" (torch's own name for it).
        """
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.factor(step)
        first: Mapping[str, Any] = optimizer.param_groups[0]
        return float(first["lr"])

    def progress(self, step: int) -> float:
        """Returns 0 at the end of the warm-up, 1 at max_steps, linear between."""
        return (step - self.warmup_steps) / max(self.max_steps - self.warmup_steps, 1)


class Constant(Schedule):
    """Stays at the peak."""

    @override
    def after_warmup(self, step: int) -> float:
        return 1.0


class Linear(Schedule):
    """A straight line from the peak to final_lr_fraction of it at max_steps."""

    def __init__(self, *, max_steps: int, warmup_steps: int, final_lr_fraction: float) -> None:
        super().__init__(max_steps=max_steps, warmup_steps=warmup_steps)
        self.final = _fraction("final_lr_fraction", final_lr_fraction)

    @override
    def after_warmup(self, step: int) -> float:
        return 1 - (1 - self.final) * self.progress(step)


class Cosine(Linear):
    """Half a cosine from the peak to final_lr_fraction of it at max_steps (Loshchilov and Hutter 2017)."""

    @override
    def after_warmup(self, step: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * self.progress(step))) / 2


class WSD(Schedule):
    """Warm-up, stable, decay: the peak, then a straight line over the last decay_fraction of all steps.

    Hu et al. 2024 (MiniCPM, arXiv:2404.06395); the linear decay is that of Hägele et al. 2024 (arXiv:2405.18392).
    """

    def __init__(self, *, max_steps: int, warmup_steps: int, decay_fraction: float, final_lr_fraction: float) -> None:
        super().__init__(max_steps=max_steps, warmup_steps=warmup_steps)
        self.final = _fraction("final_lr_fraction", final_lr_fraction)
        self.decay_steps = round(_fraction("decay_fraction", decay_fraction) * max_steps)
        if warmup_steps + self.decay_steps > max_steps:
            raise ValueError(
                f"schedule.warmup_steps={warmup_steps} and the decay's {self.decay_steps} steps "
                f"(decay_fraction={decay_fraction}) must fit into max_steps={max_steps}"
            )

    @override
    def after_warmup(self, step: int) -> float:
        remaining = self.max_steps - step
        return 1.0 if remaining >= self.decay_steps else self.final + (1 - self.final) * remaining / self.decay_steps


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"schedule.{name}={value} must lie in [0, 1]")
    return value
