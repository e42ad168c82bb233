"""GaLore: see the class."""

import math

from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, State, within
from .kronecker import eigen, eigen_flops
from .moments import AdamBesideUncorrectedRoot
from .projected import ProjectedOptimizer
from .projection import with_signs
from .rule import Rule

ADAM = AdamBesideUncorrectedRoot()


class GaLore(ProjectedOptimizer):
    """GaLore (Zhao et al., ICML 2024, arXiv:2403.03507, Algorithm 2): Adam in the top singular space of a gradient.

    State for a matrix (m, n) with n <= m, or transposed: projector (n, r), of the first r right singular vectors of the
    gradient of every update_interval-th step; exp_avg and exp_avg_sq (m, r). Memory: 2mr + nr numbers. A parameter that
    is no matrix, or whose shorter side is below r, is Adam's, without scale. r is rank, or the shorter side divided by
    rank_ratio, of which one is null. scale multiplies the updates of projected matrices alone, so that their step is
    about lr scale.
    When the projector changes the moments stay as they are, though their basis is another: as in the authors' code.
    Differs from the paper: eps is added to the uncorrected root, and weight decay, which the paper does not have, comes
    after the update, both as in the authors' code. Differs from the authors' code: of each singular vector, whose sign
    a factorisation is free to choose, the entry of largest magnitude is positive, so that results do not depend on the
    LAPACK build; the vectors are eigenvectors of the Gram matrix in float64, which is nearer to them than an SVD in
    float32; matrices that are shorter than the rank are not projected; and a gradient of zeros, or whose factorisation
    fails or is not finite, leaves the projector, the latter counted. If the first step was skipped, so that there is no
    gradient, the projector is the first columns of the identity until the next renewal.
    bf16_products: gradients and updates are projected in bfloat16, the precision of the authors' training. It takes
    half the time where the hardware has it.
    Where the gradient's rank is below r, the remaining vectors are arbitrary, and the projected gradient has rounding
    errors there, which eps should exceed.

    Raises: ValueError: if a setting is out of its range, or not exactly one of rank and rank_ratio is null.
    """

    decays_after_update = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        rank_ratio: float | None = None,
        update_interval: int = 200,
        scale: float = 0.25,
        bf16_products: bool = False,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank}
        settings |= {"rank_ratio": rank_ratio, "update_interval": update_interval, "scale": scale}
        settings |= {"bf16_products": bf16_products}
        super().__init__(params, settings, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf)

    @override
    def inner(self, hp: Hyper) -> Rule:
        return ADAM

    @override
    def renewed(self, grad: Tensor, state: State, hp: Hyper) -> Tensor | None:
        wide = grad.double()
        found = eigen(wide.mT @ wide)  # V S^2 V^T, of the paper's U S V^T
        if found is None:
            return None
        rank = state["projector"].shape[1]
        return with_signs(found[1][:, -rank:].flip(1)).to(grad.dtype)

    @override
    def renewal_flops(self, m: int, n: int, rank: int, hp: Hyper, steps: int) -> float:
        return self.renewals(hp, steps) * (2.0 * m * n * n + eigen_flops(n))
