"""COAP: see the class."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from .adafactor import AdafactorRule
from .base import Hyper, Params, State, one_of, within
from .kronecker import eigen_flops, orthonormal_flops
from .moments import AdamBesideUncorrectedRoot
from .noise import SEEDS, gaussians, key_of
from .projected import ProjectedOptimizer
from .projection import upright
from .rule import Rule
from .subspace import principal, scaled

BASES: dict[str, Rule] = {"adamw": AdamBesideUncorrectedRoot(), "adafactor": AdafactorRule()}
EPS = 1e-30  # Adafactor's, and below squared norms of rows whose largest entry is 1


class COAP(ProjectedOptimizer):
    """COAP (Xiao et al., CVPR 2025, arXiv:2412.00071, Algorithm 1): a projector that follows the momentum.

    Applies to matrices (m, n) whose shorter side is at least r; every other tensor is updated by the base, without
    scale. Below n <= m; a matrix with m < n is treated as its transpose. r is rank, or n / rank_ratio; one of the two
    is null.

    State: projector P (n, r) and exp_avg M (m, r); with base "adamw" exp_avg_sq (m, r), with "adafactor"
    exp_avg_sq_row (m) and exp_avg_sq_col (r). Memory: 2mr + nr numbers, or mr + nr + m + r.

    How P changes, for the gradient G (m, n); the moments stay as they are:
        first step                             computed from a random sketch of G, drawn by seed
        every update_interval steps            a step of gradient descent of rate projector_lr on the loss
                                               mse(G P P^T, G) (1 - mean cosine of the rows of M P^T and G)
        every update_interval svd_factor ones  recomputed by a small factorisation, instead
    The rate 0.1 and the bound of 1 on the norm of that loss's gradient are from the authors' code. That gradient scales
    with the square of G: with a GPT of 4 million parameters and gradients clipped to norm 1, the entries of P, about
    0.04, move by less than 3e-9, which is their rounding error, so the step of descent changes nothing there.

    Only Adam has eps and betas[1], only Adafactor beta2_decay and clip_threshold; Adafactor's momentum has betas[0].
    bf16_products: as GaLore's.

    Differs from the authors' code: the cosines of a matrix with m < n are those of its transpose, too; the largest
    entry of a column of a recomputed P is positive; a matrix with n = r has a P; decay comes before the update;
    Adafactor's step is lr, not lr times the parameter's RMS; P stays as it is if G is zero, or if its factorisation
    fails or is not finite, which is counted; tensors that are no matrices are the base's.

    Raises: ValueError: if a setting is out of its range, or not exactly one of rank and rank_ratio is null.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        base: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        beta2_decay: float = -0.8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        rank_ratio: float | None = None,
        update_interval: int = 32,
        svd_factor: int = 5,
        projector_lr: float = 0.1,
        scale: float = 1.0,
        seed: int = 0,
        bf16_products: bool = False,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "base": base, "betas": betas, "eps": eps, "beta2_decay": beta2_decay}
        settings |= {"clip_threshold": clip_threshold, "weight_decay": weight_decay, "rank": rank, "scale": scale}
        settings |= {"rank_ratio": rank_ratio, "update_interval": update_interval, "svd_factor": svd_factor}
        settings |= {"projector_lr": projector_lr, "seed": seed, "bf16_products": bf16_products}
        super().__init__(params, settings, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        one_of(self, "base", hp.base, BASES)
        within(self, "eps", hp.eps, 0, math.inf)
        within(self, "beta2_decay", hp.beta2_decay, -math.inf, 0)
        within(self, "clip_threshold", hp.clip_threshold, 0, math.inf, open_low=True)
        within(self, "svd_factor", hp.svd_factor, 1, math.inf)
        within(self, "projector_lr", hp.projector_lr, 0, math.inf)
        within(self, "seed", hp.seed, 0, SEEDS)

    @override
    def inner(self, hp: Hyper) -> Rule:
        return BASES[hp.base]

    @override
    def inner_hyper(self, hp: Hyper) -> Hyper:
        if hp.base == "adamw":
            return hp
        return hp.replaced(beta1=hp.betas[0], eps=(EPS, 0.0), relative_step=False)

    @override
    def refresh_interval(self, hp: Hyper) -> int:
        return int(hp.update_interval) * int(hp.svd_factor)

    @override
    def renewed(self, grad: Tensor, state: State, hp: Hyper) -> Tensor | None:
        projector = state["projector"]
        if (hp.t - 1) % self.refresh_interval(hp) == 0:
            if hp.t == 1:  # a random sketch
                projector = gaussians(projector.shape, key_of(int(hp.seed), *grad.shape), grad.dtype, grad.device)
            return principal(grad, projector)
        slope = loss_gradient(projector, upright(state["exp_avg"]), grad)
        return projector.sub(slope / torch.linalg.vector_norm(slope).clamp(min=1), alpha=hp.projector_lr)

    @override
    def renewal_flops(self, m: int, n: int, rank: int, hp: Hyper, steps: int) -> float:
        again = len(range(1, steps + 1, self.refresh_interval(hp)))
        slope = 8.0 * m * n * rank + rank**2 * (6 * m + 8 * n)
        products = 4.0 * m * n * rank + 4.0 * n * rank**2 + 2.0 * rank**3
        factorisations = orthonormal_flops(rank, m) + orthonormal_flops(rank, n) + eigen_flops(rank)
        return again * (products + factorisations) + (self.renewals(hp, steps) - again) * slope


def loss_gradient(projector: Tensor, moment: Tensor, grad: Tensor) -> Tensor:
    """The derivative of COAP's loss by P (n, r), for the projected momentum M (m, r) and the gradient G (m, n).

    With Y = G P and S = P^T P, the mean squared error is (tr(S Y^T Y) - 2 |Y|^2 + |G|^2) / mn, of derivative
    2 (G^T Y (S - 2 I) + P Y^T Y) / mn. Of a row with u = g / |g| and x = m / |P m|, the cosine c is u^T P x, of
    derivative u x^T - c P x x^T.
    """
    m, n = grad.shape
    image, squares = grad @ projector, projector.mT @ projector  # Y, S
    energy = image.mT @ image
    error = ((squares * energy).sum() - 2 * energy.trace() + grad.square().sum()).clamp(min=0) / (m * n)
    shifted = squares - 2 * torch.eye(len(squares), dtype=grad.dtype, device=grad.device)
    error_slope = (grad.mT @ image @ shifted + projector @ energy) * (2 / (m * n))
    units, rows = scaled(grad, 1), scaled(moment, 1)
    units = units / units.square().sum(1, keepdim=True).clamp(min=EPS).sqrt()  # u
    rows = rows / ((rows @ squares) * rows).sum(1, keepdim=True).clamp(min=EPS).sqrt()  # x
    cosines = (rows * (units @ projector)).sum(1, keepdim=True)
    cosine_slope = (units.mT @ rows - projector @ (rows.mT @ (cosines * rows))) / m
    return (1 - cosines.mean()) * error_slope - error * cosine_slope
