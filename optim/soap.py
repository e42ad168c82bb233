"""SOAP: see the class."""

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, Shape, Spec, State, one_of, within
from .eigenbasis import refresh_bases, rotate, rotate_back
from .kronecker import eigen_flops, orthonormal_flops
from .moments import AdamBesideUncorrectedRoot
from .preconditioner import KroneckerOptimizer, of_sides

ADAM = AdamBesideUncorrectedRoot()
FIRST_STEPS = ("skip", "adam")


class SOAP(KroneckerOptimizer):
    """SOAP (Vyas et al., ICLR 2025, arXiv:2409.11321, Algorithms 3 and 4): Adam in Shampoo's eigenbasis.

    State for a matrix (m, n): exp_avg and exp_avg_sq (m, n), both in the eigenbasis; factor_left and basis_left (m, m),
    factor_right and basis_right (n, n): L, Q_L^T, R, Q_R^T of the paper. A basis holds an eigenvector per row. Memory:
    2(mn + m^2 + n^2) numbers. A side longer than max_precond_dim has no basis; one_sided: only the shorter side has
    one, of equal sides the right.
    shampoo_beta: the factors' average, null for betas[1]. first_step: "skip" takes the first gradient for the bases
    only, as the authors do; "adam" also takes Adam's step with it. bf16_rotations: gradients, momentum and updates are
    rotated in bfloat16, the rest stays exact; on hardware with bfloat16 products a step is about half as long, and its
    direction differs by about 1 %.
    The momentum is rotated when the basis changes, not in every step. A basis whose refresh fails or is not finite is
    kept, and counted; without a first gradient, because that step was skipped, it is the identity until the next
    refresh. Differs from the paper: the moments are bias-corrected, eps is added to the root, and when
    the order of the eigenvalues changes the second moment is reordered with the basis, all as in the authors' code.
    Unlike there, parameters that are no matrix are Adam's, where the authors rotate every axis of a convolution's
    weight; and a small shift of the eigenvalues lets directions that no gradient has reached keep their vectors,
    which rounding errors would draw anew. It shows in float64: those of float32 exceed it.
    Memory beyond state: four copies of the largest matrix; of a refresh, four matrices of the longest side squared, for
    each of those that are refreshed at once (streams.py).

    Raises: ValueError: if a setting is out of its range, or no parameter is a matrix with a side to precondition.
    """

    decays_after_update = True
    kept = "kept_bases"
    read_only = (*of_sides("factor", "basis", "off_diagonal"), kept)

    def __init__(
        self,
        params: Params,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10_000,
        *,
        one_sided: bool = False,
        first_step: str = "skip",
        bf16_rotations: bool = False,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        settings = {"lr": lr, "betas": betas, "shampoo_beta": shampoo_beta, "eps": eps}
        settings |= {"weight_decay": weight_decay, "precondition_frequency": precondition_frequency}
        settings |= {"max_precond_dim": max_precond_dim, "one_sided": one_sided, "first_step": first_step}
        super().__init__(params, settings | {"bf16_rotations": bf16_rotations}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        if hp.shampoo_beta is not None:
            within(self, "shampoo_beta", hp.shampoo_beta, 0, 1)
        one_of(self, "first_step", hp.first_step, FIRST_STEPS)

    @override
    def sides(self, shape: Shape, hp: Hyper) -> dict[str, int]:
        found = super().sides(shape, hp)
        if hp.one_sided:
            found.pop("left" if len(shape) == 2 and shape[0] >= shape[1] else "right", None)
        return found

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        spec = ADAM.state_spec(shape, hp)
        for side, axis in self.sides(shape, hp).items():
            square = Spec((shape[axis], shape[axis]))
            spec |= {f"factor_{side}": square, f"basis_{side}": square._replace(is_identity=True)}
            spec[f"off_diagonal_{side}"] = Spec(())  # for diagnostics(), as the count of kept ones
        return spec | ({self.kept: Spec(())} if len(spec) > 2 else {})

    @override
    def moves(self, hp: Hyper) -> bool:
        return self._updates(hp) > 0

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return ADAM.corrections(hp, max(1, self._updates(hp)))

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Symbols of Algorithm 3.
        rotated = rotate(grad, state, hp.bf16_rotations)  # G' = Q_L^T G Q_R
        n = ADAM.direction(rotated, param, state, hp)  # M', V, N'
        return rotate_back(n, state, hp.bf16_rotations)  # N = Q_L N' Q_R^T

    @override
    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        # The box ends a step with L, R and, when due, new bases from them, which wait here for the next step to begin.
        sides = self.sides(tuple(grad.shape), hp)
        if sides and self.is_due(hp):
            with self._refreshes:
                for side, found in refresh_bases(sides, state, is_first=hp.t == 2, in_bf16=hp.bf16_rotations):
                    state[f"off_diagonal_{side}"].copy_(found.energy_left)
                    state[self.kept].add_(found.failed)
        beta = hp.betas[1] if hp.shampoo_beta is None else hp.shampoo_beta
        self.add_statistics(grad, state, hp, beta, 1 - beta)  # L, R

    @override
    def refreshes(self, hp: Hyper, steps: int) -> int:
        # The second step's, and one every precondition_frequency updates after the first update.
        every = int(hp.precondition_frequency)
        later: int = 1 + every + (hp.first_step == "skip")
        return len(range(later, steps + 1, every)) + (steps >= 2 and later > 2)

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        updates, refreshes = max(0, steps - (hp.first_step == "skip")), self.refreshes(hp, steps)
        found: float = steps * self.outer_flops(shape, hp)
        # There and back again: the gradient and its update, at a refresh the momentum.
        found += 2 * (updates + refreshes) * self.product_flops(shape, hp)
        first = min(1, refreshes)  # finds eigenvectors, the others orthonormal ones
        for n in (shape[axis] for axis in self.sides(shape, hp).values()):
            found += refreshes * 2.0 * n**3 + first * eigen_flops(n) + (refreshes - first) * orthonormal_flops(n, n)
        return found

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also off_diagonal, where a parameter has a basis:

        the share of the rotated factors' energy off their diagonals, as the last refresh found it before it renewed the
        bases, averaged over factors.
        """
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p in self.state]
        shares = [float(state[name]) for state in states for name in state if name.startswith("off_diagonal")]
        total = self.total(torch.tensor([sum(shares), len(shares)], dtype=torch.float32, device=self.device))
        found = {"off_diagonal": total[0] / total[1]} if total[1] else {}
        return super().diagnostics() | found

    def _updates(self, hp: Hyper) -> int:
        """Updates up to and including this step's, which Adam's bias corrections and the frequency count."""
        return int(hp.t - (hp.first_step == "skip"))
