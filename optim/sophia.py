"""Sophia: see the class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, Shape, Spec, State, within
from .curvature import Curvature
from .curvature_average import CurvatureOptimizer, curvature_spec
from .gauss_newton import GaussNewtonBartlett
from .groups import plain

WIN_RATE = (0.1, 0.5)


class Sophia(CurvatureOptimizer):
    """Sophia (Liu et al., ICLR 2024, arXiv:2305.14342, Algorithm 3).

    Momentum over an average of a curvature diagonal, clipped to [-1, 1] per coordinate; the estimator makes it
    Sophia-G (GaussNewtonBartlett) or Sophia-H (Hutchinson). State for a parameter: exp_avg and hessian, both of its
    shape, and estimates, how many hessian has averaged. Memory: 2 numbers per parameter.
    hessian holds the average of the estimates themselves, the batch size B of Gauss-Newton-Bartlett included, so rho
    (the paper's gamma) is a number of the optimizer alone; null for the estimator's, the paper's: 0.05 for
    Gauss-Newton-Bartlett, 0.01 for Hutchinson.
    A parameter that has no estimate yet, because it was added or got its first gradient after the last one, gathers
    momentum and does not move: in the box, too, an estimate precedes the first update. An estimate with a number that
    is not finite is skipped for all parameters, and counted.
    Differs from the authors' code: the curvature is refreshed before the update of steps 1, k + 1, ... as the box has
    it, not after those of steps k, 2k, ...; eps bounds the denominator from below and is not added to it. The
    estimator's paper_code brings the former back; without an estimate, momentum's sign is then the update, as there.

    Raises: ValueError: if lr < 0, rho <= 0, eps <= 0, weight_decay < 0, a beta lies outside [0, 1), or curvature is no
    estimator.
    RuntimeError: from step(), if there was no estimate of the curvature by the time there should be one.
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        rho: float | None = None,
        eps: float = 1e-12,
        weight_decay: float = 0.2,
        *,
        curvature: Curvature | None = None,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        if curvature is None:
            curvature = GaussNewtonBartlett()
        if not isinstance(curvature, Curvature):
            raise ValueError(
                f"Sophia: curvature={curvature!r} must be an estimator: GaussNewtonBartlett(every=10) for Sophia-G, "
                "Hutchinson(every=10) for Sophia-H"
            )
        self.curvature = curvature
        rho = curvature.rho if rho is None else rho
        defaults = {"lr": lr, "betas": betas, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        within(self, "rho", hp.rho, 0, math.inf, open_low=True)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        return {"exp_avg": Spec(shape, moment="signed"), **curvature_spec(shape)}

    @override
    def moves(self, hp: Hyper) -> bool:
        # With lr 0 no estimate is needed: torch's checkpoint tools take such a step to bring the state into being.
        has_curvature = any(group["curvature_updates"] for group in self.param_groups)
        if hp.lr > 0 and hp.t > self.curvature.first_step and not has_curvature:
            raise RuntimeError(
                f"Sophia took {hp.t - 1} steps and never got curvature: make CurvaturePass(model, optimizer) once, and "
                "call its update(batch) on every step before step()"
            )
        return True

    @override
    def gate(self, state: State) -> Tensor | None:
        return None if self.curvature.paper_code else state["estimates"]

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 3.
        m, h = state["exp_avg"], state["hessian"]
        m.lerp_(grad, 1 - hp.betas[0])  # l. 6
        update: Tensor = (m / (h * hp.rho).clamp(min=hp.eps)).clamp(-1, 1)  # l. 12
        return update

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also win_rate, the share of coordinates that are not clipped, overall and by role."""
        counts: dict[str, list[Tensor]] = {}  # by role: unclipped, all
        for group in self.param_groups:
            for param in (param for param in group["params"] if param in self.state):
                m, h = self.numbers(param, "exp_avg"), self.numbers(param, "hessian")
                unclipped = (m.abs() < plain(group["rho"]) * h).sum()
                count = torch.stack([unclipped, torch.tensor(m.numel(), device=m.device)])
                counts.setdefault(group.get("role", "all"), []).append(count)
        sums = {f"win_rate/{role}": self.total(torch.stack(found).sum(0)) for role, found in counts.items()}
        if sums:
            sums["win_rate"] = torch.stack(list(sums.values())).sum(0)
        found = {name: count[0] / count[1].clamp(min=1) for name, count in sums.items()}
        return super().diagnostics() | found

    @override
    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        # The paper's advice: tune rho until the win rate lies between 0.1 and 0.5.
        rate, rhos = diagnostics.get("win_rate"), sorted({plain(group["rho"]) for group in self.param_groups})
        found = super().hints(diagnostics)
        if rate is not None and not WIN_RATE[0] <= rate <= WIN_RATE[1]:
            way = "below 0.1: too many coordinates are clipped, raise" if rate < WIN_RATE[0] else "above 0.5: lower"
            found.append(f"Sophia: win_rate={rate:.3f} is {way} rho={', '.join(map(str, rhos))}")
        return found
