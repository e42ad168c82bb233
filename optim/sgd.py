"""SGD: see the class."""

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within


class SGD(RuleOptimizer):
    """Stochastic gradient descent with momentum, Polyak's or Nesterov's (Sutskever et al., ICML 2013).

    State for a parameter: momentum_buffer, of its shape; none without momentum. Memory: 1 or 0 numbers per parameter.
    Differs from torch's code: the decay is decoupled, W <- (1 - lr weight_decay) W, and never enters the momentum.

    Raises: ValueError: if lr < 0, weight_decay < 0, momentum or dampening lies outside [0, 1), or nesterov comes
    without momentum.
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "momentum", hp.momentum, 0, 1)
        within(self, "dampening", hp.dampening, 0, 1)
        if hp.nesterov and not hp.momentum:
            raise ValueError("SGD: nesterov=True needs momentum > 0, which is 0.0")

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"momentum_buffer": Spec(shape, moment="signed")} if hp.momentum else {}

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return {"share": 1.0 if hp.t == 1 else 1 - hp.dampening}  # the first gradient enters in full

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        if "momentum_buffer" not in state:
            return grad
        b = state["momentum_buffer"].mul_(hp.momentum).add_(grad * hp.share)
        return grad + b * hp.momentum if hp.nesterov else b
