"""FAdam: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import clipped, rms

LEAST_EPS = 1e-15  # where a tensor never had a gradient, the adaptive eps would be 0, and 0 / 0 its update


class FAdam(RuleOptimizer):
    """Fisher Adam (Hwang, arXiv:2405.12807, Algorithm 1): Adam as a natural gradient with a diagonal Fisher matrix.

    The gradient is divided by the root of the Fisher information, clipped by its RMS, and only then averaged. So is the
    decay, but for the average: it moves a parameter by an RMS of at most lr weight_decay clip, whatever its size, so
    AdamW's weight_decay does not carry over. Rows that had no gradient yet, whose information is 0, take most of it.
    State for a parameter: exp_avg and fisher, both of its shape. Memory: 2 numbers per parameter. Vectors are as
    matrices: every RMS is of a whole parameter. eps: the largest, and its ratio to the gradient's RMS.
    Differs from the paper: the exponent is its default, 1/2, and the adaptive eps is at least 1e-15.
    Differs from the published code (lessw2020/FAdam_PyTorch) where clip is not 1: that divides by max(1, RMS) / clip.

    Raises: ValueError: if lr < 0, weight_decay < 0, an eps or clip <= 0, or a beta lies outside [0, 1).
    """

    splits_rows = True
    decays_in_direction = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: tuple[float, float] = (1e-8, 1e-2),
        clip: float = 1.0,
        weight_decay: float = 1e-3,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "weight_decay": weight_decay}
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps[0]", hp.eps[0], 0, math.inf, open_low=True)
        within(self, "eps[1]", hp.eps[1], 0, math.inf, open_low=True)
        within(self, "clip", hp.clip, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"exp_avg": Spec(shape, moment="signed"), "fisher": Spec(shape, moment="positive")}

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        beta2 = hp.betas[1]
        return {"beta2": beta2 * (1 - beta2 ** (hp.t - 1)) / (1 - beta2**hp.t)}  # l. 6

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 1.
        beta1, m, f = hp.betas[0], state["exp_avg"], state["fisher"]
        f.mul_(hp.beta2).add_((1 - hp.beta2) * grad.square())  # l. 7
        eps = (hp.eps[1] * rms(grad, hp.rows)).clamp(max=hp.eps[0]).clamp(min=LEAST_EPS)  # l. 8
        inverse = 1 / (f.sqrt() + eps)
        natural = clipped(grad * inverse, hp.clip, hp.rows)  # ll. 9-10
        decay = clipped(param * inverse, hp.clip, hp.rows)  # ll. 12-13
        m.mul_(beta1).add_((1 - beta1) * natural)  # l. 11
        update: Tensor = m + hp.weight_decay * decay  # l. 14
        return update
