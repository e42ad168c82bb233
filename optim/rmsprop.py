"""RMSprop: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within


class RMSprop(RuleOptimizer):
    """RMSprop (Tieleman & Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012).

    The gradient over the root of its mean square; with centered over its standard deviation, and with momentum a sum of
    those (both Graves, arXiv:1308.0850, equations 38-41). Averages are not corrected for bias: first steps are up to
    1 / sqrt(1 - alpha) times as long as later ones, so warm up.
    State for a parameter, all of its shape: square_avg, or centered grad_avg and variance; with momentum
    momentum_buffer. Memory: 1 number per parameter, and 1 more for each of the two.
    Differs from Graves, as torch's code does: eps is added to the root, and lr multiplies the sum, not what enters it.
    Differs from torch's code: the decay is decoupled, and the variance itself is kept. As the mean square less the
    squared mean, the same number would have no correct digit in fp32 where a gradient hardly changes.

    Raises: ValueError: if lr < 0, weight_decay < 0, eps <= 0, alpha or momentum lies outside [0, 1), or centered comes
    with alpha = 0.
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        centered: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "centered": centered,
        }
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "alpha", hp.alpha, 0, 1)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)
        within(self, "momentum", hp.momentum, 0, 1)
        if hp.centered and not hp.alpha:
            raise ValueError("RMSprop: centered=True needs alpha > 0: one gradient has no variance")

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        signed, positive = Spec(shape, moment="signed"), Spec(shape, moment="positive")
        averages = {"grad_avg": signed, "variance": positive} if hp.centered else {"square_avg": positive}
        return averages | ({"momentum_buffer": signed} if hp.momentum else {})

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Graves' equations.
        if "variance" in state:
            mean, v = state["grad_avg"], state["variance"]
            # (38) less the square of (39), n - s^2, written as a recursion with the s of the step before.
            v.add_((1 - hp.alpha) * (grad - mean).square()).mul_(hp.alpha)
            mean.lerp_(grad, 1 - hp.alpha)  # (39)
        else:
            v = state["square_avg"].lerp_(grad.square(), 1 - hp.alpha)  # (38)
        update: Tensor = grad / (v.sqrt() + hp.eps)
        if "momentum_buffer" in state:
            update = state["momentum_buffer"].mul_(hp.momentum).add_(update)  # (40)
        return update
