"""Adalayer: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import computed_once
from .moments import Adam


class Adalayer(Adam, RuleOptimizer):
    """Adalayer (Zhao et al., ICLR 2025, arXiv:2407.07972): Adam with one second moment per layer.

    A layer is a weight tensor. per_row: each of its rows has a number of its own, as the paper's Adalayer* has it for
    the last layer, where a row holds the weights of one logit; give it to the roles head and embedding, which is also a
    tied head.
    State for a parameter of shape (m, ...): exp_avg of its shape; exp_avg_sq, one number, or per_row exp_avg_sq_row
    (m). Memory: 1 number per parameter, and 1 per parameter tensor or row. A vector has one number for all, per_row it
    is Adam's.
    Where the paper leaves it open, as Adam: both averages are corrected for bias, eps is added to the root, and the
    decay is AdamW's.

    Raises: ValueError: if lr < 0, eps <= 0, weight_decay < 0, or a beta lies outside [0, 1).
    """

    elementwise = False
    splits_rows = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        per_row: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "per_row": per_row}
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        # Not of shape (): compiled code (torch 2.13) loses what is done to a 0-dim float64 tensor.
        number = {"exp_avg_sq": Spec((1,), by_row=False)}
        rows = {"exp_avg_sq_row": Spec(shape[:1], by_row=True)}
        return {"exp_avg": Spec(shape, moment="signed"), **(rows if hp.per_row else number)}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Adam's lines (moments.py), but for the mean of a layer's squares.
        beta1, beta2 = hp.betas
        m = state["exp_avg"].mul_(beta1).add_((1 - beta1) * grad)
        square = grad.square()
        if "exp_avg_sq_row" in state:
            v, mean = state["exp_avg_sq_row"], square if square.ndim == 1 else square.flatten(1).mean(1)
        else:
            v, mean = state["exp_avg_sq"], hp.rows.mean(square)
        v.mul_(beta2).add_((1 - beta2) * mean)
        factor = computed_once(hp.correction1 / (v.sqrt() * hp.correction2 + hp.eps))  # of m_hat / (sqrt(v_hat) + eps)
        update: Tensor = m * factor[(...,) + (None,) * (m.ndim - 1)]
        return update
