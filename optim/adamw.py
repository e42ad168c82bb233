"""AdamW: see the class."""

import math

from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, within
from .moments import Adam


class AdamW(Adam, RuleOptimizer):
    """AdamW (Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101, Algorithm 2).

    State for a parameter: exp_avg and exp_avg_sq, both of its shape. Memory: 2 numbers per parameter.
    Adam's rule (moments.py) and a decay that does not enter the moments. As torch's, and unlike the paper, the decay is
    multiplied by lr itself, not by a schedule multiplier of its own.

    Raises: ValueError: if lr < 0, eps < 0, weight_decay < 0, or a beta lies outside [0, 1).
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf)
