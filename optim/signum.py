"""Signum: see the class."""

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within


class Signum(RuleOptimizer):
    """Signum (Bernstein et al., ICML 2018, arXiv:1802.04434, Algorithm 2): the sign of an average of gradients.

    State for a parameter: exp_avg, of its shape. Memory: 1 number per parameter. Lion with equal betas is the same.

    Raises: ValueError: if lr < 0, weight_decay < 0, or momentum lies outside [0, 1).
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "momentum", hp.momentum, 0, 1)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"exp_avg": Spec(shape, moment="signed")}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Algorithm 2.
        return state["exp_avg"].lerp_(grad, 1 - hp.momentum).sign()  # the sign of 0 is 0
