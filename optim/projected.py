"""What rules share that keep moments of matrices in fewer dimensions, `rank`, on their shorter side."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Shape, Spec, State, within
from .projection import check_rank, project, project_back, projected_shape, rank_of, upright
from .refreshing import RefreshingOptimizer
from .rule import Rule

PROJECTOR = "projector"  # in the state of every matrix that is projected


class ProjectedOptimizer(RefreshingOptimizer):
    """The inner rule's direction of a projected gradient, projected back and multiplied by hp.scale.

    A matrix (m, n) of a rank, see rank_of, has a projector P (min(m, n), rank): its gradient g becomes g P (m, rank) if
    m >= n, else P^T g (rank, n). All other parameters are the inner rule's as they are. P is renewed in the first step
    and every hp.update_interval steps from there. Until that has worked once, P is the first columns of the identity.
    """

    kept = "kept_projectors"
    read_only = (PROJECTOR, kept)

    @abstractmethod
    def inner(self, hp: Hyper) -> Rule:
        """The rule that is applied in the smaller space."""

    def inner_hyper(self, hp: Hyper) -> Hyper:
        """What the inner rule gets for hp."""
        return hp

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        check_rank(self, hp)
        within(self, "update_interval", hp.update_interval, 1, math.inf)
        within(self, "scale", hp.scale, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        rank, inner, own = rank_of(shape, hp), self.inner(hp), self.inner_hyper(hp)
        if rank is None:
            return dict(inner.state_spec(shape, own))
        spec = inner.state_spec(projected_shape(shape, rank), own)
        return {**spec, PROJECTOR: Spec((min(shape), rank), is_identity=True), self.kept: Spec(())}

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return self.inner(hp).coefficients(self.inner_hyper(hp))

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        inner, own = self.inner(hp), self.inner_hyper(hp)
        if PROJECTOR not in state:
            return inner.direction(grad, param, state, own)
        projector = state[PROJECTOR]
        update = inner.direction(project(grad, projector, hp.bf16_products), param, state, own)
        return project_back(update, projector, grad.shape, hp.bf16_products).mul(hp.scale)

    @override
    def refresh_interval(self, hp: Hyper) -> int | None:
        return int(hp.update_interval)

    def renewals(self, hp: Hyper, steps: int) -> int:
        """How many of the first `steps` steps renew the projector."""
        return len(range(1, steps + 1, int(hp.update_interval)))

    @override
    def is_due(self, hp: Hyper) -> bool:
        return bool((hp.t - 1) % int(hp.update_interval) == 0)

    @override
    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        if PROJECTOR not in state or not self.is_due(hp):
            return
        with self._refreshes:
            if (fresh := self.renewed(upright(grad), state, hp)) is None:
                state[self.kept].add_(1)
                return
            state[self.kept].add_((is_finite := fresh.isfinite().all()).logical_not())
            # What comes of a gradient of zeros is no direction of it.
            state[PROJECTOR].copy_(torch.where(is_finite & grad.any(), fresh, state[PROJECTOR]))

    @abstractmethod
    def renewed(self, grad: Tensor, state: State, hp: Hyper) -> Tensor | None:
        """A new projector (n, rank) for the gradient (m, n), m >= n, of step hp.t; None if there is none.

        Of a parameter with m < n, the gradient is given transposed; state is the parameter's.
        """

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        rank = rank_of(shape, hp)
        if rank is None:
            return 0.0
        m, n = max(shape), min(shape)
        return steps * 4.0 * m * n * rank + self.renewal_flops(m, n, rank, hp, steps)  # there and back

    @abstractmethod
    def renewal_flops(self, m: int, n: int, rank: int, hp: Hyper, steps: int) -> float:
        """FLOPs of all renewals in the first `steps` steps of a parameter of this shape, m >= n."""
