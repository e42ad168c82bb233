"""AdamW: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .moments import moments_spec, update_moments


class AdamW(RuleOptimizer):
    """AdamW (Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101, Algorithm 2).

    State for a parameter: exp_avg and exp_avg_sq, both of its shape. Memory: 2 numbers per parameter.
    As torch's, and unlike the paper, the decay is multiplied by lr itself, not by a schedule multiplier of its own.

    Raises: ValueError: if lr < 0, eps < 0, weight_decay < 0, or a beta lies outside [0, 1).
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return moments_spec(shape)

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        # Multiplied, not divided by: beside the root and the last line, divisions would outlast the memory traffic.
        return {"correction1": 1 / (1 - hp.betas[0] ** hp.t), "correction2": 1 / math.sqrt(1 - hp.betas[1] ** hp.t)}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 2.
        m, v = update_moments(state, grad, hp.betas)  # ll. 7-8
        m_hat = m * hp.correction1  # l. 9
        root = v.sqrt() * hp.correction2  # l. 10, of v_hat
        update: Tensor = m_hat / (root + hp.eps)  # l. 12
        return update
