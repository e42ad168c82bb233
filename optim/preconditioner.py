"""What SOAP and Shampoo share: a symmetric factor for each side of a matrix, and its rare, expensive refresh."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, Shape, State, within
from .kronecker import add_outer, outer_flops
from .refreshing import RefreshingOptimizer

SIDES = {"left": 0, "right": 1}  # the axis of each


def of_sides(*names: str) -> tuple[str, ...]:
    """The names of tensors that each side has."""
    return tuple(f"{name}_{side}" for name in names for side in SIDES)


class KroneckerOptimizer(RefreshingOptimizer):
    """Preconditions the sides of matrices that are at most max_precond_dim long, every precondition_frequency steps.

    Every matrix with such a side has a count of what was kept.

    Raises: ValueError: if a setting is out of its range, or no parameter is a matrix with a side to precondition.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], execution: str, state: str) -> None:
        super().__init__(params, defaults, execution, state)
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
        return {side: n for side, n in SIDES.items() if len(shape) == 2 and shape[n] <= hp.max_precond_dim}

    def add_statistics(self, grad: Tensor, state: State, hp: Hyper, keep: float, weight: float) -> None:
        """factor <- keep factor + weight g gᵀ on every side of grad; in refresh. Where hp.taken is false, they stay."""
        factors = {axis: state[f"factor_{side}"] for side, axis in self.sides(tuple(grad.shape), hp).items()}
        if factors and hp.taken is not None:
            kept = torch.where(hp.taken, grad.new_full((), keep), grad.new_ones(()))
            torch._foreach_mul_(list(factors.values()), kept)
            grad, keep = torch.where(hp.taken, grad, 0.0), 1.0
        for axis, factor in factors.items():
            add_outer(factor, grad.transpose(0, axis), keep, weight)

    @override
    def refresh_interval(self, hp: Hyper) -> int | None:
        return int(hp.precondition_frequency)

    @abstractmethod
    def refreshes(self, hp: Hyper, steps: int) -> int:
        """How many of the first `steps` steps factorise."""

    @override
    def is_due(self, hp: Hyper) -> bool:
        return self.refreshes(hp, hp.t) > self.refreshes(hp, hp.t - 1)

    def outer_flops(self, shape: Shape, hp: Hyper) -> float:
        """FLOPs of a step's updates of the factors of a parameter of this shape."""
        return sum(outer_flops(shape[axis], shape[1 - axis]) for axis in self.sides(shape, hp).values())

    def product_flops(self, shape: Shape, hp: Hyper) -> float:
        """FLOPs of the products of a parameter of this shape with a square matrix on each side that has a factor."""
        return sum(2.0 * shape[axis] * math.prod(shape) for axis in self.sides(shape, hp).values())
