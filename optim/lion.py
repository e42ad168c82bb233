"""Lion: see the class."""

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State


class Lion(RuleOptimizer):
    """Lion (Chen et al., NeurIPS 2023, arXiv:2302.06675, Algorithm 2).

    State for a parameter: exp_avg, of its shape. Memory: 1 number per parameter.
    Every number moves by lr: take lr 3-10 times smaller than AdamW's, and weight_decay as much larger.

    Raises: ValueError: if lr < 0, weight_decay < 0, or a beta lies outside [0, 1).
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, execution, state)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"exp_avg": Spec(shape, moment="signed")}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 2. The decay of l. 7 is the engine's.
        m, (beta1, beta2) = state["exp_avg"], hp.betas
        c = m.lerp(grad, 1 - beta1)  # l. 6, with the m of the step before
        m.lerp_(grad, 1 - beta2)  # l. 8
        return c.sign()  # l. 7; the sign of 0 is 0
