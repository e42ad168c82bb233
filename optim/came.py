"""CAME: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import clipped, factors_spec, over_root, over_root_of_squares, squares_spec, update_factors

RESIDUAL = "exp_avg_res"  # the instability, as the authors' code names it


class CAME(RuleOptimizer):
    """CAME (Luo et al., ACL 2023, arXiv:2307.02047, Algorithm 2).

    Adafactor with momentum, whose update is divided by the root of its instability: a factored average of the squared
    distance between the clipped update and its momentum. State for a matrix (m, n): exp_avg (m, n); exp_avg_sq_row and
    exp_avg_res_row (m); exp_avg_sq_col and exp_avg_res_col (n). Memory: mn + 2(m + n) numbers. Parameters that are no
    matrix: exp_avg and exp_avg_sq of the shape, and no instability, as in the authors' code.
    betas: of the momentum, of the squared gradients and of the instability. eps: added to the squared gradients and to
    the instability. Nothing is corrected for bias: the first update is about (1 - b1) / (b1 sqrt(1 - b3)) long, 11 with
    the defaults, so warm up. Take lr 0.5 to 0.9 times AdamW's.
    weight_decay, which the paper does not have, comes before the update, as in the authors' code. Differs from that
    code: tensors of more than two dimensions are no matrices, where it factors the last two dimensions; the RMS of
    parameters that it stores, but never reads, is not kept.

    Raises: ValueError: if lr < 0, a beta lies outside [0, 1), an eps <= 0, clip_threshold <= 0, or weight_decay < 0.
    """

    splits_rows = True

    def __init__(
        self,
        params: Params,
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps[0]", hp.eps[0], 0, math.inf, open_low=True)
        within(self, "eps[1]", hp.eps[1], 0, math.inf, open_low=True)
        within(self, "clip_threshold", hp.clip_threshold, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        confidence = factors_spec(shape, RESIDUAL) if len(shape) == 2 else {}
        return {"exp_avg": Spec(shape, moment="signed")} | squares_spec(shape) | confidence

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 2, counted from the gradient's.
        (beta1, beta2, beta3), (eps1, eps2), rows = hp.betas, hp.eps, hp.rows
        u = over_root_of_squares(grad, state, beta2, eps1, rows)  # ll. 2-5: r, c, v, u
        u = clipped(u, hp.clip_threshold, rows)  # l. 6
        m = state["exp_avg"].mul_(beta1).add_((1 - beta1) * u)  # l. 7
        if f"{RESIDUAL}_row" not in state:
            return m
        instability = (u - m).square()  # l. 8: U
        update_factors(state, instability + eps2, beta3, rows, RESIDUAL)  # ll. 9-10: R, C
        return over_root(m, state, rows, RESIDUAL)  # ll. 11-12: m / sqrt(S)
