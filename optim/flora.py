"""Flora: see the class."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from .adafactor import AdafactorRule
from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .noise import SEEDS, gaussians, key_of
from .projection import check_rank, project, project_back, projected_shape, rank_of

LONGEST = 4  # sides; longer matrices, such as embeddings, are not sketched


class Flora(AdafactorRule, RuleOptimizer):
    """Flora (Hao et al., ICML 2024, arXiv:2402.03293, Algorithm 2) with Adafactor: momentum in a random sketch.

    State for a matrix (m, n) with n <= m, or transposed: sketch (m, r), which is M A for the momentum M; epoch, the
    number of draws of A (n, r) before this one; exp_avg_sq_row (m), exp_avg_sq_col (n). Memory: mr + m + n numbers. A
    parameter that is no matrix, whose shorter side is below r, or whose longer side is more than 4 times as long, is
    Adafactor's with momentum. r is rank, or the shorter side divided by rank_ratio, of which one is null.
    A has independent normal entries of variance 1 / r, so that A A^T is I on average. It is never stored, but drawn in
    every step from seed, m, n and epoch alone, by a hash, so that compiled code can draw it; every kappa steps a new
    epoch begins, and the sketch becomes M A A^T A' for the new draw A'.
    What is averaged is Adafactor's update, as in the authors' code; the paper's box, which leaves the rule open, has
    the gradient. relative_step: as Adafactor's.
    exact_update: the step has the current update as it is, and only older ones come through the sketch, as in the
    authors' code; False: as in the box all come through it, whose noise is sqrt((n + 1) / r) times as large as what it
    passes on.
    Differs from the authors' code: clipping comes before the momentum, as Adafactor's does, not after; A is renewed
    before a step, as in the box, not after it, so that the update of every kappa-th step passes through the old A and
    the new, theirs through the new alone; and all parameters of a shape have the same sketch.
    seed stays as in the first step: a sketch read by the draws of another seed is noise for some steps.

    Raises: ValueError: if a setting is out of its range, or not exactly one of rank and rank_ratio is null.
    """

    splits_rows = False  # a sketch of columns, where those are longer, sums over rows

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        rank: int | None = 128,
        rank_ratio: float | None = None,
        kappa: int = 1000,
        beta1: float = 0.9,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        *,
        exact_update: bool = False,
        relative_step: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "rank": rank, "rank_ratio": rank_ratio, "kappa": kappa, "eps": eps}
        settings |= {"beta1": beta1, "beta2_decay": beta2_decay, "clip_threshold": clip_threshold}
        settings |= {"weight_decay": weight_decay, "seed": seed, "relative_step": relative_step}
        settings |= {"exact_update": exact_update}
        super().__init__(params, settings, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "beta1", hp.beta1, 0, 1)  # null would leave nothing to sketch
        check_rank(self, hp)
        within(self, "kappa", hp.kappa, 1, math.inf)
        within(self, "seed", hp.seed, 0, SEEDS)

    def sketch_rank(self, shape: Shape, hp: Hyper) -> int | None:
        """The columns of the sketch for a parameter of this shape; None if it has none."""
        rank = rank_of(shape, hp)
        return None if rank is None or max(shape) > LONGEST * min(shape) else rank

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        spec, rank = super().state_spec(shape, hp), self.sketch_rank(shape, hp)
        if rank is None:
            return spec
        del spec["exp_avg"]
        return spec | {"sketch": Spec(projected_shape(shape, rank), moment="signed"), "epoch": Spec(())}

    @override
    def is_due(self, hp: Hyper) -> bool:
        return bool(hp.t > 1 and (hp.t - 1) % int(hp.kappa) == 0)

    @override
    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        if "sketch" not in state or not self.is_due(hp):
            return
        sketch, before = state["sketch"], _drawn(grad, state, hp)
        state["epoch"].add_(1)
        change = before.mT @ _drawn(grad, state, hp)
        sketch.copy_(sketch @ change if grad.shape[0] >= grad.shape[1] else change.mT @ sketch)  # M <- M A^T A'

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        if "sketch" not in state:
            return super().direction(grad, param, state, hp)
        u, a = self.scaled_update(grad, state, hp), _drawn(grad, state, hp)
        m = state["sketch"].mul_(hp.beta1)
        older = project_back(m, a, grad.shape) if hp.exact_update else None
        m.add_((1 - hp.beta1) * project(u, a))  # M <- beta M + (1 - beta) G A
        u = project_back(m, a, grad.shape) if older is None else older + (1 - hp.beta1) * u  # M A^T
        return self.of_relative_size(u, param, hp)

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        rank = self.sketch_rank(shape, hp)
        if rank is None or steps < 1:
            return 0.0
        m, n, changes = max(shape), min(shape), (steps - 1) // int(hp.kappa)
        return steps * 4.0 * m * n * rank + changes * 2.0 * rank**2 * (m + n)


def _drawn(grad: Tensor, state: State, hp: Hyper) -> Tensor:
    """A (n, r) of the state's epoch for a matrix (m, n) with n <= m, or transposed."""
    m, n = grad.shape
    shorter, rank = (n, state["sketch"].shape[1]) if m >= n else (m, state["sketch"].shape[0])
    key = key_of(int(hp.seed), m, n, state["epoch"].to(torch.int64))
    return gaussians((shorter, rank), key, grad.dtype, grad.device) / math.sqrt(rank)
