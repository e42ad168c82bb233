"""SM3: see the class."""

from functools import reduce

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import column_maxima


class SM3(RuleOptimizer):
    """SM3 (Anil et al., NeurIPS 2019, arXiv:1901.11150, Algorithm SM3-II): AdaGrad with an accumulator per slice.

    The sum of a number's squared gradients is bounded by the least accumulator of its slices: its row and its column.
    It never forgets, so lr lies far above Adam's (the paper's are 0.1 to 0.3) and needs a warm-up; the paper keeps it
    constant from there on.
    State for a parameter of shape (m, n, ...): accumulator_0 (m), accumulator_1 (n), ...; with momentum exp_avg of its
    shape. Memory: m + n numbers of a matrix, with momentum mn more. Of vectors every number is a slice: AdaGrad.
    momentum averages the updates, as in the paper's experiments and the authors' code; 0: none.
    weight_decay, which the paper does not have, is decoupled; at such an lr 1e-3 is as much as 0.1 of AdamW.
    Differs from the paper: nu is at least the smallest normal number, which makes 0 / 0 the 0 that the paper wants.

    Raises: ValueError: if lr < 0, weight_decay < 0, or momentum lies outside [0, 1).
    """

    splits_rows = True

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "momentum", hp.momentum, 0, 1)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        momentum = {"exp_avg": Spec(shape, moment="signed")} if hp.momentum else {}
        if len(shape) < 2:
            return {"accumulator_0": Spec(shape), **momentum}
        return {f"accumulator_{axis}": Spec((n,), by_row=axis == 0) for axis, n in enumerate(shape)} | momentum

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm SM3-II.
        mu = [state[f"accumulator_{axis}"] for axis in range(grad.ndim)]
        along = [each[(...,) + (None,) * (grad.ndim - 1 - axis)] for axis, each in enumerate(mu)]
        nu = reduce(torch.minimum, along) + grad.square()  # l. 7
        update = grad * nu.clamp(min=torch.finfo(nu.dtype).tiny).rsqrt()  # l. 8
        if grad.ndim == 1:
            mu[0].copy_(nu)
        else:
            mu[0].copy_(nu.flatten(1).amax(1))  # l. 9
            slices = hp.rows.max(column_maxima(nu))  # (n, ...)
            for axis in range(slices.ndim):
                others = [each for each in range(slices.ndim) if each != axis]
                mu[axis + 1].copy_(slices.amax(others) if others else slices)
        if "exp_avg" in state:
            update = state["exp_avg"].mul_(hp.momentum).add_((1 - hp.momentum) * update)
        return update
