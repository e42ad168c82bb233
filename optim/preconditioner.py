"""What SOAP and Shampoo share: a symmetric factor for each side of a matrix, and its rare, expensive refresh."""

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, within
from .kronecker import outer_flops


class Refreshes:
    """A context around each refresh of a parameter: how many there were in this process, and the host's seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.count += 1
        self.seconds += time.perf_counter() - self._start


class KroneckerOptimizer(RuleOptimizer):
    """Preconditions the sides of matrices that are at most max_precond_dim long, every precondition_frequency steps.

    A subclass puts a count named `kept` into the state of every matrix with such a side: how often a refresh failed and
    left what it should have renewed as it was.

    Raises: ValueError: if a setting is out of its range, or no parameter is a matrix with a side to precondition.
    """

    kept: ClassVar[str]

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str, state: str) -> None:
        super().__init__(params, defaults, execution, state)
        self._refreshes = Refreshes()
        shapes = [(tuple(p.shape), self._hyper(group)) for group in self.param_groups for p in group["params"]]
        if shapes and not any(self.sides(shape, hp) for shape, hp in shapes):
            raise ValueError(
                f"{type(self).__name__}: none of the {len(shapes)} parameters is a matrix with a side <= "
                f"max_precond_dim={defaults['max_precond_dim']} (the first is {shapes[0][0]}); give them to AdamW"
            )

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf)
        within(self, "precondition_frequency", hp.precondition_frequency, 1, math.inf)
        within(self, "max_precond_dim", hp.max_precond_dim, 1, math.inf)

    def sides(self, shape: Shape, hp: Hyper) -> dict[str, int]:
        """The sides with a factor, and their axes."""
        axes = {"left": 0, "right": 1} if len(shape) == 2 else {}
        return {side: axis for side, axis in axes.items() if shape[axis] <= hp.max_precond_dim}

    @override
    def refresh_interval(self, hp: Hyper) -> int | None:
        return int(hp.precondition_frequency)

    @abstractmethod
    def refreshes(self, hp: Hyper, steps: int) -> int:
        """How many of the first `steps` steps factorise."""

    def is_due(self, hp: Hyper) -> bool:
        """Whether step hp.t factorises."""
        return self.refreshes(hp, hp.t) > self.refreshes(hp, hp.t - 1)

    def outer_flops(self, shape: Shape, hp: Hyper) -> float:
        """FLOPs of a step's updates of the factors of a parameter of this shape."""
        return sum(outer_flops(shape[axis], shape[1 - axis]) for axis in self.sides(shape, hp).values())

    def product_flops(self, shape: Shape, hp: Hyper) -> float:
        """FLOPs of the products of a parameter of this shape with a square matrix on each side that has a factor."""
        return sum(2.0 * shape[axis] * math.prod(shape) for axis in self.sides(shape, hp).values())

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also, where a parameter has a factor:

        the count of kept ones, over all ranks; seconds_per_refresh: of a parameter, in this process, 0 before any.
        """
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p in self.state]
        kept = [float(state[self.kept]) for state in states if self.kept in state]
        numbers = [sum(kept), len(kept), self._refreshes.seconds, self._refreshes.count]
        total = self.total(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        if not total[1]:
            return super().diagnostics()
        found = {self.kept: total[0], "seconds_per_refresh": total[2] / total[3].clamp(min=1)}
        return super().diagnostics() | found

    @override
    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        if not (count := diagnostics.get(self.kept)):
            return []
        what = f"{type(self).__name__}: {count:.0f} {self.kept.removeprefix('kept_')}"
        return [f"{what} could not be refreshed and were kept; look for gradients that are not finite"]
