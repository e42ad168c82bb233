"""What GaLore and COAP share: another rule's step in a space of `rank` dimensions on the shorter side of a matrix."""

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, RuleOptimizer, Shape, Spec, State, within
from .rule import Rule

PROJECTOR = "projector"  # in the state of every matrix that is projected


class ProjectedOptimizer(RuleOptimizer):
    """The inner rule's direction of a projected gradient, projected back and multiplied by hp.scale.

    A matrix (m, n) with min(m, n) > rank has a projector P (min(m, n), rank): its gradient g becomes g P (m, rank) if
    m >= n, else P^T g (rank, n). All other parameters are the inner rule's as they are. A subclass sets `inner`, has
    `rank` and `scale` among its settings, and renews projectors in refresh.
    """

    inner: Rule

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "rank", hp.rank, 1, float("inf"))
        within(self, "scale", hp.scale, 0, float("inf"), open_low=True)

    def rank_of(self, shape: Shape, hp: Hyper) -> int | None:
        """The dimensions that a parameter of this shape is projected to; None if it is not."""
        return int(hp.rank) if len(shape) == 2 and min(shape) > hp.rank else None

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        rank = self.rank_of(shape, hp)
        if rank is None:
            return dict(self.inner.state_spec(shape, hp))
        small = (shape[0], rank) if shape[0] >= shape[1] else (rank, shape[1])
        return {**self.inner.state_spec(small, hp), PROJECTOR: Spec((min(shape), rank))}

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return self.inner.coefficients(hp)

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        if PROJECTOR not in state:
            return self.inner.direction(grad, param, state, hp)
        projector = state[PROJECTOR]
        update = self.inner.direction(project(grad, projector), param, state, hp)
        found: Tensor = project_back(update, projector, grad.shape) * hp.scale
        return found

    @override
    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        if PROJECTOR in state:
            self.refresh_projector(grad, state, hp)

    @abstractmethod
    def refresh_projector(self, grad: Tensor, state: State, hp: Hyper) -> None:
        """Renews the projector of a matrix when that is due, before its direction of step hp.t."""

    def product_flops(self, shape: Shape, hp: Hyper) -> float:
        """FLOPs of a step's two projections of a parameter of this shape."""
        rank = self.rank_of(shape, hp)
        return 0.0 if rank is None else 4.0 * shape[0] * shape[1] * rank


def project(grad: Tensor, projector: Tensor) -> Tensor:
    """g P (m, rank) of a gradient (m, n) with m >= n, else P^T g (rank, n)."""
    return grad @ projector if grad.shape[0] >= grad.shape[1] else projector.mT @ grad


def project_back(update: Tensor, projector: Tensor, shape: torch.Size) -> Tensor:
    """An update of project's shape as one of that shape (m, n)."""
    return update @ projector.mT if shape[0] >= shape[1] else projector @ update
