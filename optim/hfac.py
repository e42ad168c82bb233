"""HFac: see the class."""

import math
from typing import Any

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import clipped, column_means, computed_once, factors_spec, over_root_of_squares, squares_spec

MEANS = "exp_avg"  # of the gradient, by row and by column


class HFac(RuleOptimizer):
    """H-Fac (Nguyen et al., AISTATS 2025, arXiv:2406.09958, the algorithm of that name).

    Adafactor's clipped step of the raw gradient, plus half of a momentum of its row means and half of one of its column
    means: what these averages have beyond the present means. So no state is of the parameter's shape.
    State for a matrix (m, n): exp_avg_row and exp_avg_sq_row (m), exp_avg_col and exp_avg_sq_col (n). Memory: 2(m + n)
    numbers. Averages weigh old against new so that they are free of bias from the first step on. A row without gradient
    moves by its columns' momentum. Without a momentum of single numbers, expect noise as with betas[0]=0, and warm up.
    Where the paper leaves something open: betas[0] is corrected for bias as betas[1] is. Parameters that are no matrix
    have exp_avg and exp_avg_sq of their shape, and each number is updated as a matrix (1, 1), of which the box makes
    Adam with a look ahead, (b1 m + (1 - b1) g) / sqrt(v); the clip takes the RMS of all. No settings of the authors'
    for GPT-2 are known.

    Raises: ValueError: if lr < 0, a beta lies outside [0, 1), eps <= 0, clip_threshold <= 0, or weight_decay < 0.
    """

    splits_rows = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-30,
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
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)
        within(self, "clip_threshold", hp.clip_threshold, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        means = factors_spec(shape, MEANS) if len(shape) == 2 else {MEANS: Spec(shape, moment="signed")}
        return means | squares_spec(shape)

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        beta1, beta2 = (beta * (1 - beta ** (hp.t - 1)) / (1 - beta**hp.t) for beta in hp.betas)
        return {"beta1": beta1, "beta2": beta2}  # with hats, in the paper

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Symbols of the box; its sums over n and m, divided by n and m, are means here.
        step = clipped(over_root_of_squares(grad, state, hp.beta2, hp.eps, hp.rows), hp.clip_threshold, hp.rows)  # r, s
        if MEANS in state:
            return step + momentum(grad, state, "", hp.beta1)
        phi = momentum(grad.mean(1), state, "_row", hp.beta1)  # from u
        psi = momentum(column_means(grad, hp.rows), state, "_col", hp.beta1)  # from v
        return step + 0.5 * (computed_once(phi)[:, None] + computed_once(psi))


def momentum(mean: Tensor, state: State, place: str, beta: Any) -> Tensor:
    """beta (u - mean) / sqrt(r), after the mean was averaged into u = exp_avg<place>; r = exp_avg_sq<place>."""
    u = state[f"exp_avg{place}"].mul_(beta).add_((1 - beta) * mean)
    found: Tensor = beta * (u - mean) * state[f"exp_avg_sq{place}"].rsqrt()
    return found
