"""Adafactor: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import clipped, computed_once, over_root_of_squares, rms, squares_spec
from .rule import Rule


class AdafactorRule(Rule):
    """Adafactor's rule, for Adafactor and for rules that apply it in a space of their own."""

    splits_rows = True

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        momentum = {} if hp.beta1 is None else {"exp_avg": Spec(shape, moment="signed")}
        return squares_spec(shape) | momentum

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        # rho_t = min(lr, 1 / sqrt(t)) over lr, since the engine multiplies by lr, which a schedule may set to 0.
        return {"beta2": 1 - float(hp.t) ** hp.beta2_decay, "rho": 1 / max(1.0, hp.lr * math.sqrt(hp.t))}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        u = self.scaled_update(grad, state, hp)
        if "exp_avg" in state:
            u = state["exp_avg"].mul_(hp.beta1).add_((1 - hp.beta1) * u)
        return self.of_relative_size(u, param, hp)

    def scaled_update(self, grad: Tensor, state: State, hp: Hyper) -> Tensor:
        """The gradient over the root of its second moment, clipped; updates that in place."""
        # Lines of Algorithm 4, for vectors of Algorithm 5.
        u = over_root_of_squares(grad, state, hp.beta2, hp.eps[0], hp.rows)  # Alg. 4, ll. 4-7; Alg. 5, ll. 4-5
        return clipped(u, hp.clip_threshold, hp.rows)  # l. 8

    def of_relative_size(self, u: Tensor, param: Tensor, hp: Hyper) -> Tensor:
        """The update times the relative step size, if that is wanted."""
        if hp.relative_step:
            u = u * computed_once(hp.rho * rms(param, hp.rows).clamp(min=hp.eps[1]))  # Alg. 4, l. 3
        return u

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        if hp.beta1 is not None:
            within(self, "beta1", hp.beta1, 0, 1)
        within(self, "beta2_decay", hp.beta2_decay, -math.inf, 0)
        within(self, "eps[0]", hp.eps[0], 0, math.inf, open_low=True)
        within(self, "eps[1]", hp.eps[1], 0, math.inf, open_low=True)
        within(self, "clip_threshold", hp.clip_threshold, 0, math.inf, open_low=True)


class Adafactor(AdafactorRule, RuleOptimizer):
    """Adafactor (Shazeer & Stern, ICML 2018, arXiv:1804.04235, Algorithms 4 and 5).

    Adam's second moment of a matrix, as the product of its averages over columns and over rows; the update is clipped
    by its RMS. State for a matrix (m, n): exp_avg_sq_row (m), exp_avg_sq_col (n); otherwise exp_avg_sq of the shape;
    with beta1 also exp_avg of the shape. Memory: m + n numbers, with beta1 mn more.
    relative_step, the paper's: the step is max(eps[1], RMS(parameter)) min(lr, 1 / sqrt(t)); without, it is lr, as a
    schedule wants it. beta1: null, the paper's, for no momentum.
    weight_decay, which the paper does not have, shrinks by lr weight_decay, whatever the step size becomes of lr, as in
    torch's code. T5X's shrinks by weight_decay alone, or times a power of lr; Hugging Face's by weight_decay times the
    step size, max(eps[1], RMS(parameter)) included.
    Differs from T5X's and Hugging Face's code: momentum averages the clipped updates, before the step size multiplies
    them. From torch's: eps[0] is added to the squared gradient, the paper's way, and the relative step can be left out.

    Raises: ValueError: if lr < 0, beta1 lies outside [0, 1), beta2_decay >= 0, an eps <= 0, clip_threshold <= 0, or
    weight_decay < 0.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        beta1: float | None = None,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        *,
        relative_step: bool = True,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
            "relative_step": relative_step,
        }
        super().__init__(params, defaults, execution, state)
