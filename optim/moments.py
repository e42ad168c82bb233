"""Adam's moments, of whoever keeps them: averages of a gradient and of its square."""

from typing import Any

from torch import Tensor

from .rule import Shape, Spec, State


def moments_spec(shape: Shape) -> dict[str, Spec]:
    """exp_avg and exp_avg_sq, of the parameter's shape."""
    return {"exp_avg": Spec(shape, moment="signed"), "exp_avg_sq": Spec(shape, moment="positive")}


def update_moments(state: State, grad: Tensor, betas: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """m and v after m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, in place."""
    m = state["exp_avg"].lerp_(grad, 1 - betas[0])
    v = state["exp_avg_sq"].lerp_(grad.square(), 1 - betas[1])
    return m, v
