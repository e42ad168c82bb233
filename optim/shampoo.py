"""Shampoo: see the class."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, Shape, Spec, State, one_of, within
from .kronecker import copy_finite, eigen_flops, eigen_near, mirrored, orthonormal_flops
from .moments import move_average
from .preconditioner import KroneckerOptimizer, of_sides

GRAFTINGS = (None, "adam", "sgd")
EIGENSOLVERS = ("eigh", "qr")


class Shampoo(KroneckerOptimizer):
    """Shampoo (Gupta et al., ICML 2018, arXiv:1802.09568, Algorithm 1), as it is used today (arXiv:2309.06497).

    Momentum between inverse roots of the averages of g g^T and g^T g. State for a matrix (m, n): exp_avg (m, n);
    factor_left and root_left (m, m), factor_right and root_right (n, n); with grafting "adam" also exp_avg_sq (m, n);
    with eigensolver "qr" also basis_left (m, m) and basis_right (n, n), an eigenvector per row. Memory: mn + 2(m^2 +
    n^2) numbers, mn more for Adam's, m^2 + n^2 more for the bases. A side longer than max_precond_dim has no factor; a
    parameter without any, vectors among them, is Adam's (with sum_statistics: Adagrad's).
    precondition_frequency: steps between new roots; until the first the graft moves alone. Without grafting there is a
    root from the first step on. exponent: of each inverse root, null for 1 / (2 x sides with a factor), the paper's
    1/4. grafting: whose length every update gets, "adam"'s or "sgd"'s, or null for its own. graft_eps: added to Adam's
    root. eigensolver: "eigh" finds eigenvectors anew for every root; "qr" takes one step of orthogonal iteration from
    those of the root before, as SOAP does (arXiv:2409.11321, Algorithm 4; for Shampoo: arXiv:2506.03595), which takes
    half as long, and their Rayleigh quotients as eigenvalues; the first root is eigh's. sum_statistics: sums instead of
    averages. eps: added to the eigenvalues, as a fraction of the largest; with sum_statistics as it is, as in the paper
    (L_0 = eps I). A root whose factorisation fails or is not finite is kept, and counted.
    Differs from the paper, unless betas[0]=0, precondition_frequency=1, grafting=null and sum_statistics: momentum,
    averages with bias correction, rare roots and grafting, as published runs on language models have them. Parameters
    that are no matrix are Adam's, or Adagrad's, where the paper's Algorithm 2 has a factor for every axis.

    Raises: ValueError: if a setting is out of its range, or no parameter is a matrix with a side to precondition.
    """

    kept = "kept_roots"
    read_only = (*of_sides("factor", "root", "basis"), kept)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precond_dim: int = 8192,
        exponent: float | None = None,
        grafting: str | None = "adam",
        graft_eps: float = 1e-8,
        *,
        eigensolver: str = "eigh",
        sum_statistics: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "exponent": exponent}
        settings |= {"precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim}
        settings |= {"grafting": grafting, "graft_eps": graft_eps, "eigensolver": eigensolver}
        super().__init__(params, settings | {"sum_statistics": sum_statistics}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "graft_eps", hp.graft_eps, 0, math.inf)
        if hp.exponent is not None:
            within(self, "exponent", hp.exponent, 0, math.inf, open_low=True)
        one_of(self, "grafting", hp.grafting, GRAFTINGS)
        one_of(self, "eigensolver", hp.eigensolver, EIGENSOLVERS)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        sides, spec = self.sides(shape, hp), {"exp_avg": Spec(shape, moment="signed")}
        if not sides or hp.grafting == "adam":
            spec["exp_avg_sq"] = Spec(shape, moment="positive")
        for side, axis in sides.items():
            square = Spec((shape[axis], shape[axis]))
            spec |= {f"factor_{side}": square, f"root_{side}": square}  # a root of zeros: there is none yet
            if hp.eigensolver == "qr":
                spec[f"basis_{side}"] = square._replace(is_identity=True)
        return spec | ({self.kept: Spec(())} if sides else {})

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return {"correction1": 1 / (1 - hp.betas[0] ** hp.t), "correction2": _correction(hp)}

    @override
    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        sides, beta = self.sides(tuple(grad.shape), hp), hp.betas[1]
        self.add_statistics(grad, state, hp, *((1.0, 1.0) if hp.sum_statistics else (beta, 1 - beta)))
        if sides and self.is_due(hp):
            with self._refreshes:
                for side in sides:
                    exponent = 1 / (2 * len(sides)) if hp.exponent is None else hp.exponent
                    factor, basis = mirrored(state[f"factor_{side}"]), state.get(f"basis_{side}")
                    found = eigen_near(factor, basis, is_first=self.refreshes(hp, hp.t) == 1)
                    state[self.kept].add_(found is None or _refresh_root(state[f"root_{side}"], *found, exponent, hp))

    @override
    def refreshes(self, hp: Hyper, steps: int) -> int:
        every = int(hp.precondition_frequency)
        return steps // every + (hp.grafting is None and every > 1 and steps >= 1)

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        refreshes = self.refreshes(hp, steps)
        anew = min(1, refreshes) if hp.eigensolver == "qr" else refreshes
        found = steps * (self.outer_flops(shape, hp) + self.product_flops(shape, hp))
        for n in (shape[axis] for axis in self.sides(shape, hp).values()):
            found += anew * eigen_flops(n) + refreshes * 2.0 * n**3  # of a root: half @ half^T
            found += (refreshes - anew) * (4.0 * n**3 + orthonormal_flops(n, n))  # old and new basis @ factor, rows
        return found

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Symbols of Algorithm 1.
        graft = x = move_average(state["exp_avg"], grad, 1 - hp.betas[0]).mul(hp.correction1)
        if "exp_avg_sq" in state:
            v, square = state["exp_avg_sq"], grad.square()
            v = v.add_(square) if hp.sum_statistics else move_average(v, square, 1 - hp.betas[1])
            graft = x / ((v * hp.correction2).sqrt() + hp.graft_eps)
        if self.kept not in state:
            return graft
        d = state["root_left"] @ x if "root_left" in state else x  # L^-1/4 G R^-1/4
        d = d @ state["root_right"] if "root_right" in state else d
        if hp.grafting is None:
            return d
        size: Tensor = torch.linalg.vector_norm(d)  # 0 while there is no root
        grafted: Tensor = d * (torch.linalg.vector_norm(graft) / (size + 1e-16))
        return grafted + graft * (size == 0).to(d.dtype)


def _correction(hp: Hyper) -> float:
    """What makes an average of t steps, from zero, unbiased."""
    return 1.0 if hp.sum_statistics else 1 / (1 - hp.betas[1] ** hp.t)


def _refresh_root(root: Tensor, values: Tensor, vectors: Tensor, exponent: float, hp: Hyper) -> Tensor:
    """(factor + eps I)^-exponent into root, unless the factor is zero; whether that failed."""
    values = values * _correction(hp)
    values = values - values.min().clamp(max=0)  # rounding errors make some negative
    largest = values.max()
    values = values + hp.eps * (1.0 if hp.sum_statistics else largest)
    half = vectors * values.pow(-exponent / 2)
    return copy_finite(root, half @ half.mT).logical_not().logical_and(largest != 0)
