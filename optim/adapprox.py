"""Adapprox: see the class."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from .base import Hyper, Params, RuleOptimizer, Shape, Spec, State, within
from .factored import SQUARES, clipped
from .moments import move_average
from .subspace import low_rank, low_rank_flops

BASIS, COORDINATES, RANK = f"{SQUARES}_basis", f"{SQUARES}_coordinates", "rank"


class Adapprox(RuleOptimizer):
    """Adapprox (Zhao et al., 2024, arXiv:2403.14958, Algorithm 3).

    RMSprop, clipped like Adafactor, whose second moment of a matrix is kept as Q U^T of low rank, found anew in every
    step by randomised subspace iteration; the momentum, if there is one, averages the clipped directions.
    State for a matrix (m, n), with k = max_rank_fraction min(m, n), at least 1: exp_avg_sq_basis (m, k), Q, with
    orthonormal columns; exp_avg_sq_coordinates (n, k), U; rank. Otherwise exp_avg_sq of the shape. With beta1 also
    exp_avg of the shape; null for none. Memory: k(m + n) numbers, with beta1 mn more.
    The rank adapts, but not the memory: shapes of state are known beforehand, so columns beyond the rank are zeros;
    unused_bytes() says how much that is. Every rank_interval steps the rank becomes the smallest whose error,
    |V - Q U^T| / |V|, is at most rank_threshold; k if none is. A threshold below 1e-3 is float32's rounding.
    Differs from the paper: that searches from rank 1 in larger steps, so its rank may be higher than it need be. Here
    all ranks are seen at once: columns depend on those before them alone, and so the first ones are what fewer would
    have been. For the same reason there is no oversampling, which changes no column that is kept. What Q U^T has below
    zero is taken as zero. The optional guidance by cosine similarity is left out. Nothing is corrected for bias.
    seed: the random numbers are those of seed, step and shape alone.
    Memory beyond state: of a step, five copies of the largest matrix.

    Raises: ValueError: if lr < 0, a beta lies outside [0, 1), eps <= 0, clip_threshold <= 0, weight_decay < 0,
    max_rank_fraction lies outside (0, 1], rank_threshold outside [0, 1), rank_interval or iterations < 1, or seed < 0.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 3e-4,
        beta1: float | None = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        max_rank_fraction: float = 0.25,
        rank_threshold: float = 1e-2,
        rank_interval: int = 10,
        iterations: int = 5,
        seed: int = 0,
        *,
        execution: str = "auto",
        state: str = "fp32",
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "clip_threshold": clip_threshold}
        defaults |= {"weight_decay": weight_decay, "max_rank_fraction": max_rank_fraction}
        defaults |= {"rank_threshold": rank_threshold, "rank_interval": rank_interval}
        super().__init__(params, defaults | {"iterations": iterations, "seed": seed}, execution, state)

    @override
    def check(self, hp: Hyper) -> None:
        super().check(hp)
        if hp.beta1 is not None:
            within(self, "beta1", hp.beta1, 0, 1)
        within(self, "beta2", hp.beta2, 0, 1)
        within(self, "max_rank_fraction", hp.max_rank_fraction, 0, 1, open_low=True, closed_high=True)
        within(self, "rank_threshold", hp.rank_threshold, 0, 1)
        for name in ("eps", "clip_threshold"):
            within(self, name, getattr(hp, name), 0, math.inf, open_low=True)
        for name, low in (("rank_interval", 1), ("iterations", 1), ("seed", 0)):
            within(self, name, getattr(hp, name), low, math.inf)

    @override
    def state_spec(self, shape: Shape, hp: Hyper) -> dict[str, Spec]:
        momentum = {} if hp.beta1 is None else {"exp_avg": Spec(shape, moment="signed")}
        if len(shape) != 2:
            return {SQUARES: Spec(shape, moment="positive")} | momentum
        k = largest_rank(shape, hp.max_rank_fraction)
        # The rank is no 0-dim tensor: torch 2.13 loses what compiled code writes into one of float64 in host memory.
        return {BASIS: Spec((shape[0], k)), COORDINATES: Spec((shape[1], k)), RANK: Spec((1,))} | momentum

    @override
    def coefficients(self, hp: Hyper) -> dict[str, float]:
        return {"step": float(hp.t), "searches": float((hp.t - 1) % int(hp.rank_interval) == 0)}

    @override
    def direction(self, grad: Tensor, param: Tensor, state: State, hp: Hyper) -> Tensor:
        # Lines of Algorithm 3, counted from the gradient's. The decay of l. 6 is the engine's.
        if SQUARES in state:
            v = move_average(state[SQUARES], grad.square(), 1 - hp.beta2)
        else:
            v = (state[BASIS] @ state[COORDINATES].mT).relu_()
            v = v.mul_(hp.beta2).add_((1 - hp.beta2) * grad.square())  # l. 1
            _keep(v, state, hp)  # l. 2
        d = grad / (v.sqrt() + hp.eps)  # l. 3
        d = clipped(d, hp.clip_threshold, hp.rows)  # l. 4
        return move_average(state["exp_avg"], d, 1 - hp.beta1) if "exp_avg" in state else d  # l. 5

    @override
    def flops(self, shape: Shape, hp: Hyper, steps: int) -> float:
        if len(shape) != 2:
            return 0.0
        m, n = shape
        k = largest_rank(shape, hp.max_rank_fraction)
        return steps * (2.0 * m * n * k + low_rank_flops(m, n, k, hp.iterations))

    @override
    def diagnostics(self) -> dict[str, Tensor]:
        """Also rank, where a parameter is a matrix: the mean over matrices."""
        ranks = [state[RANK] for state in self.state.values() if RANK in state]
        total = self.total(torch.tensor([sum(map(float, ranks)), len(ranks)], dtype=torch.float64, device=self.device))
        return super().diagnostics() | ({"rank": total[0] / total[1]} if total[1] else {})

    def unused_bytes(self) -> int:
        """Bytes of state in columns beyond the rank, of all ranks that share the state; every one must call this."""
        unused = 0
        for state in self.state.values():
            for factor in (state[name] for name in (BASIS, COORDINATES) if name in state):
                unused += factor[:, int(state[RANK]) :].nbytes
        return int(self.total(torch.tensor(unused, device=self.device)))


def largest_rank(shape: Shape, fraction: float) -> int:
    """k_max of a matrix of this shape."""
    return max(1, int(min(shape) * fraction))


def _keep(v: Tensor, state: State, hp: Hyper) -> None:
    """Keeps V as factors, of a new rank where one is searched for or there is none yet."""
    k = state[BASIS].shape[1]
    q, u = low_rank(v, k, hp.iterations, hp.seed, hp.step)
    size, sizes = (torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64) for x, dim in ((v, None), (u, 0)))
    rest = size**2 - (sizes**2).cumsum(0)  # |V - Q U^T|^2 of ranks 1 to k, as Q is orthonormal
    smallest = (rest > (hp.rank_threshold * size) ** 2).sum().add(1).clamp(max=k)
    rank = state[RANK]
    rank.copy_(torch.where(rank * (1 - hp.searches) > 0, rank, smallest))
    is_kept = torch.arange(k, device=v.device) < rank
    state[BASIS].copy_(q * is_kept)
    state[COORDINATES].copy_(u * is_kept)
