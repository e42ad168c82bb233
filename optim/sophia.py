"""Sophia: see the class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Hyper, Optimizer, Params, Shape, Spec, State, within
from .curvature import Curvature
from .sharding import local

WIN_RATE = (0.1, 0.5)


class Sophia(Optimizer):
    """Sophia (Liu et al., ICLR 2024, arXiv:2305.14342, Algorithm 3).

    Momentum over an average of a curvature diagonal, clipped to [-1, 1] per coordinate; the estimator makes it
    Sophia-G (GaussNewtonBartlett) or Sophia-H (Hutchinson). State for a parameter: exp_avg and hessian, both of its
    shape. Memory: 2 numbers per parameter.
    hessian holds the average of the estimates themselves, the batch size B of Gauss-Newton-Bartlett included, so rho
    (the paper's gamma) is a number of the optimizer alone.
    Differs from the authors' code: the curvature is refreshed before the update of steps 1, k + 1, ... as the box has
    it, not after those of steps k, 2k, ...; eps bounds the denominator from below and is not added to it. The
    estimator's paper_code brings the former back.

    Raises: ValueError: if lr <= 0, rho <= 0, eps <= 0, weight_decay < 0, a beta lies outside [0, 1), or curvature is no
    estimator.
    RuntimeError: from step(), if the curvature was never estimated.
    """

    elementwise = True

    def __init__(
        self,
        params: Params,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        rho: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.2,
        *,
        curvature: Curvature,
        execution: str = "auto",
    ) -> None:
        if not isinstance(curvature, Curvature):
            raise ValueError(
                f"Sophia: curvature={curvature!r} must be an estimator: GaussNewtonBartlett(every=10) for Sophia-G, "
                "Hutchinson(every=10) for Sophia-H"
            )
        self.curvature = curvature
        defaults = {"lr": lr, "betas": tuple(betas), "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "curvature_updates": 0}, execution)

    def check(self, hp: Hyper) -> None:
        """See Optimizer."""
        super().check(hp)
        within(self, "rho", hp.rho, 0, math.inf, open_low=True)
        within(self, "eps", hp.eps, 0, math.inf, open_low=True)

    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        """See Optimizer."""
        return {"exp_avg": Spec(shape), "hessian": Spec(shape)}

    def moves(self, hp: Hyper) -> bool:
        """See Optimizer.

        Raises: RuntimeError: if there was no estimate of the curvature by the time there should be one.
        """
        if hp.curvature_updates == 0 and hp.t > self.curvature.first_step:
            raise RuntimeError(
                f"Sophia took {hp.t - 1} steps and never got curvature: call curvature.update(step, batches, "
                "forward_backward) on every step before step(), as train.py does"
            )
        return True

    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        """See Optimizer; lines of Algorithm 3."""
        m, h = state["exp_avg"], state["hessian"]
        m.lerp_(grad, 1 - hp.betas[0])  # l. 6
        update: Tensor = (m / (h * hp.rho).clamp(min=hp.eps)).clamp(-1, 1)  # l. 12
        return update

    @torch.no_grad()
    def update_curvature(self, estimates: dict[Tensor, Tensor]) -> None:
        """Averages new estimates of the curvature's diagonal (by parameter, of its shape) into the state, l. 9."""
        for group in self.param_groups:
            for param in group["params"]:
                if param in estimates:
                    h = self._state_of(param, group)["hessian"]
                    h.lerp_(estimates[param].to(h.dtype), 1 - group["betas"][1])
            group["curvature_updates"] += 1

    def diagnostics(self) -> dict[str, Tensor]:
        """Also win_rate, the share of coordinates that are not clipped, overall and by role."""
        counts: dict[str, list[Tensor]] = {}  # by role: unclipped, all
        for group in self.param_groups:
            for state in (self.state[param] for param in group["params"] if param in self.state):
                m, h = local(state["exp_avg"]), local(state["hessian"])
                count = torch.stack([(m.abs() < group["rho"] * h).sum(), torch.tensor(m.numel(), device=m.device)])
                counts.setdefault(group.get("role", "all"), []).append(count)
        sums = {f"win_rate/{role}": self.total(torch.stack(found).sum(0)) for role, found in counts.items()}
        if sums:
            sums["win_rate"] = torch.stack(list(sums.values())).sum(0)
        return super().diagnostics() | {name: count[0] / count[1] for name, count in sums.items()}

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """See Optimizer; the paper's advice: tune rho until the win rate lies between 0.1 and 0.5."""
        rate, rhos = diagnostics.get("win_rate"), sorted({group["rho"] for group in self.param_groups})
        if rate is None or WIN_RATE[0] <= rate <= WIN_RATE[1]:
            return []
        way = "below 0.1: too many coordinates are clipped, raise" if rate < WIN_RATE[0] else "above 0.5: lower"
        return [f"Sophia: win_rate={rate:.3f} is {way} rho={', '.join(map(str, rhos))}"]
