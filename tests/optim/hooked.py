"""An optimizer that only tests know: whoever shares out or times work must ask it, as its settings have other names."""

import math

from torch import Tensor
from typing_extensions import override

from optim.base import Hyper, Params, RuleOptimizer, Shape, Spec


class Turning(RuleOptimizer):
    """The gradient without its length, as a method that multiplies matrices (Newton-Schulz) would scale it."""

    def __init__(self, params: Params, lr: float = 0.01, weight_decay: float = 0.0, turn_every: int = 3) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "turn_every": turn_every})

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {}

    @override
    def refresh_interval(self, hp: Hyper) -> int:
        return int(hp.turn_every)

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        return 2.0 * steps * min(shape) * math.prod(shape)

    @override
    def direction(self, grad: Tensor, param: Tensor, state: dict[str, Tensor], hp: Hyper) -> Tensor:
        return grad / grad.norm().clamp(min=1e-8)
