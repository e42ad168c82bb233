"""Adam's moments, and the direction that they give: of AdamW, and of rules that apply Adam in a space of their own."""

import math
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from .hyper import Hyper, Shape, Spec, State
from .rule import Rule


def moments_spec(shape: Shape) -> dict[str, Spec]:
    """exp_avg and exp_avg_sq, of the parameter's shape."""
    return {"exp_avg": Spec(shape, moment="signed"), "exp_avg_sq": Spec(shape, moment="positive")}


def update_moments(state: State, grad: Tensor, betas: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """m and v after m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, in place."""
    m = move_average(state["exp_avg"], grad, 1 - betas[0])
    v = move_average(state["exp_avg_sq"], grad.square(), 1 - betas[1])
    return m, v


def move_average(average: Tensor, value: Tensor, weight: Any) -> Tensor:
    """average <- average + weight (value - average), in place.

    Also for stacks of matrices: vmap knows no lerp_, and would compute one matrix after the other.
    """
    return average.copy_(average.lerp(value, weight))


class Adam(Rule):
    """Adam's rule (Kingma & Ba, ICLR 2015, arXiv:1412.6980, Algorithm 1), without a decay."""

    elementwise = True
    eps_joins_uncorrected_root: ClassVar[bool] = False  # sqrt(v) + eps instead of sqrt(v_hat) + eps

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return moments_spec(shape)

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return self.corrections(hp, hp.t)

    def corrections(self, hp: Hyper, t: int) -> dict[str, float]:
        """The coefficients of update t, counted from 1."""
        # Multiplied, not divided by: beside the root and the last line, divisions would outlast the memory traffic.
        found = {"correction1": 1 / (1 - hp.betas[0] ** t), "correction2": 1 / math.sqrt(1 - hp.betas[1] ** t)}
        return found | ({"eps": hp.eps * found["correction2"]} if self.eps_joins_uncorrected_root else {})

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 1.
        m, v = update_moments(state, grad, hp.betas)  # ll. 7-8
        m_hat = m * hp.correction1  # l. 9
        root = v.sqrt() * hp.correction2  # l. 10, of v_hat
        update: Tensor = m_hat / (root + hp.eps)  # l. 11
        return update


class AdamBesideUncorrectedRoot(Adam):
    """Adam as SOAP's and GaLore's authors write it: eps is not corrected for bias, and larger in the first steps."""

    eps_joins_uncorrected_root = True
