"""Shampoo: see the class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .kronecker import Refreshes, add_outer, eigen, mirrored, per_refresh

GRAFTINGS = (None, "adam", "sgd")


class Shampoo(RuleOptimizer):
    """Shampoo (Gupta et al., ICML 2018, arXiv:1802.09568, Algorithm 1), as it is used today (arXiv:2309.06497).

    Momentum between inverse roots of the averages of g g^T and g^T g. State for a matrix (m, n): exp_avg (m, n);
    factor_left and root_left (m, m), factor_right and root_right (n, n); with grafting "adam" also exp_avg_sq (m, n).
    Memory: mn + 2(m^2 + n^2) numbers, mn more for Adam's. A side longer than max_precond_dim has no factor; a parameter
    without any, vectors among them, is Adam's (with sum_statistics: Adagrad's).
    precondition_frequency: steps between new roots; until the first the graft moves alone. Without grafting there is a
    root from the first step on. exponent: of each inverse root, null for 1 / (2 x sides with a factor), the paper's
    1/4. grafting: whose length every update gets, "adam"'s or "sgd"'s, or null for its own. graft_eps: added to Adam's
    root. sum_statistics: sums instead of averages. eps: added to the eigenvalues, as a fraction of the largest; with
    sum_statistics as it is, as in the paper (L_0 = eps I). A root whose factorisation fails or is not finite is kept,
    and counted.
    Differs from the paper, unless betas[0]=0, precondition_frequency=1, grafting=null and sum_statistics: momentum,
    averages with bias correction, rare roots and grafting, as published runs on language models have them. Parameters
    that are no matrix are Adam's, or Adagrad's, where the paper's Algorithm 2 has a factor for every axis.

    Raises: ValueError: if a setting is out of its range, or no parameter is a matrix with a side to precondition.
    """

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
        sum_statistics: bool = False,
        execution: str = "auto",
    ) -> None:
        settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "exponent": exponent}
        settings |= {"precondition_frequency": precondition_frequency, "max_precond_dim": max_precond_dim}
        settings |= {"grafting": grafting, "graft_eps": graft_eps, "sum_statistics": sum_statistics}
        super().__init__(params, settings, execution)
        self._refreshes = Refreshes()
        shapes = [(tuple(p.shape), self._hyper(group)) for group in self.param_groups for p in group["params"]]
        if shapes and not any(_sides(shape, hp) for shape, hp in shapes):
            raise ValueError(
                f"Shampoo: none of the {len(shapes)} parameters is a matrix with a side <= max_precond_dim="
                f"{max_precond_dim} (the first is {shapes[0][0]}); give them to AdamW"
            )

    def check(self, hp: Hyper) -> None:
        """See RuleOptimizer."""
        super().check(hp)
        within(self, "eps", hp.eps, 0, math.inf)
        within(self, "graft_eps", hp.graft_eps, 0, math.inf)
        within(self, "precondition_frequency", hp.precondition_frequency, 1, math.inf)
        within(self, "max_precond_dim", hp.max_precond_dim, 1, math.inf)
        if hp.exponent is not None:
            within(self, "exponent", hp.exponent, 0, math.inf, open_low=True)
        if hp.grafting not in GRAFTINGS:
            raise ValueError(f"Shampoo: grafting={hp.grafting!r} must be one of None, adam, sgd")

    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        """See RuleOptimizer. kept_roots is for diagnostics()."""
        sides, spec = _sides(shape, hp), {"exp_avg": Spec(shape)}
        if not sides or hp.grafting == "adam":
            spec["exp_avg_sq"] = Spec(shape)
        for side, axis in sides.items():
            square = Spec((shape[axis], shape[axis]))
            spec |= {f"factor_{side}": square, f"root_{side}": square}  # a root of zeros: there is none yet
        return spec | ({"kept_roots": Spec(())} if sides else {})

    def coefficients(self, hp: Hyper) -> dict[str, float]:
        """See RuleOptimizer."""
        return {
            "correction1": 1 / (1 - hp.betas[0] ** hp.t),
            "correction2": _correction(hp),
        }

    def refresh(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        """See RuleOptimizer: L, R and their roots."""
        sides, (keep, weight) = _sides(tuple(grad.shape), hp), _weights(hp)
        for side, axis in sides.items():
            add_outer(state[f"factor_{side}"], grad.transpose(0, axis), keep, weight)
        is_first = hp.t == 1 and hp.grafting is None
        if sides and (is_first or hp.t % hp.precondition_frequency == 0):
            with self._refreshes:
                for side in sides:
                    exponent = 1 / (2 * len(sides)) if hp.exponent is None else hp.exponent
                    state["kept_roots"].add_(_refresh_root(state, side, exponent, hp))

    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        """See RuleOptimizer; symbols of Algorithm 1."""
        x: Tensor = state["exp_avg"].lerp_(grad, 1 - hp.betas[0]) * hp.correction1
        graft = x
        if "exp_avg_sq" in state:
            v, square = state["exp_avg_sq"], grad.square()
            v = v.add_(square) if hp.sum_statistics else v.lerp_(square, 1 - hp.betas[1])
            graft = x / ((v * hp.correction2).sqrt() + hp.graft_eps)
        if "kept_roots" not in state:
            return graft
        d = state["root_left"] @ x if "root_left" in state else x  # L^-1/4 G R^-1/4
        d = d @ state["root_right"] if "root_right" in state else d
        if hp.grafting is None:
            return d
        size = torch.linalg.vector_norm(d)  # 0 while there is no root
        grafted: Tensor = d * (torch.linalg.vector_norm(graft) / (size + 1e-16))
        return grafted.addcmul_(graft, (size == 0).to(d.dtype))

    def diagnostics(self) -> dict[str, Tensor]:
        """Also, where a parameter has roots:

        kept_roots: how often a refresh failed and left a root as it was; seconds_per_refresh: of a parameter, in this
        process.
        """
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p in self.state]
        kept = [state["kept_roots"] for state in states if "kept_roots" in state]
        numbers = [sum(map(float, kept)), len(kept), *self._refreshes.totals]
        kept_roots, n, *refreshes = self.total(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        if not n:
            return super().diagnostics()
        return super().diagnostics() | {"kept_roots": kept_roots, "seconds_per_refresh": per_refresh(*refreshes)}

    def hints(self, diagnostics: Mapping[str, float]) -> list[str]:
        """See RuleOptimizer."""
        if kept := diagnostics.get("kept_roots"):
            return [f"Shampoo: {kept:.0f} roots could not be refreshed and were kept; look for gradients not finite"]
        return []


def _sides(shape: Shape, hp: Hyper) -> dict[str, int]:
    """The sides with a factor, and their axes."""
    axes = {"left": 0, "right": 1} if len(shape) == 2 else {}
    return {side: axis for side, axis in axes.items() if shape[axis] <= hp.max_precond_dim}


def _weights(hp: Hyper) -> tuple[float, float]:
    """Of the old statistics and of the new."""
    return (1.0, 1.0) if hp.sum_statistics else (hp.betas[1], 1 - hp.betas[1])


def _correction(hp: Hyper) -> float:
    """What makes an average of t steps, from zero, unbiased."""
    return 1.0 if hp.sum_statistics else 1 / (1 - hp.betas[1] ** hp.t)


def _refresh_root(state: State, side: str, exponent: float, hp: Hyper) -> Tensor | bool:
    """(factor + eps I)^-exponent into its root, unless the factor is zero; whether that failed."""
    found, root = eigen(mirrored(state[f"factor_{side}"])), state[f"root_{side}"]
    if found is None:
        return True
    values, vectors = found[0] * _correction(hp), found[1]
    values = values - values.min().clamp(max=0)  # rounding errors make some negative
    largest = values.max()
    values = values + hp.eps * (1.0 if hp.sum_statistics else largest)
    half = vectors * values.pow(-exponent / 2)
    fresh = half @ half.mT
    is_finite = fresh.isfinite().all()
    root.copy_(torch.where(is_finite, fresh, root))
    has_failed: Tensor = is_finite.logical_not() & (largest != 0)
    return has_failed
