"""An optimizer's steps with given gradients, and how far they drift from an oracle's, in float64."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from oracles import Array
from torch import Tensor

from optim.base import RuleOptimizer

STEPS = 60
SHAPES = [(7, 5), (5, 7), (6, 6), (11,), (1,), (2, 3, 4), (1, 9), (9, 1)]


class Oracle(Protocol):
    """A paper's box, for one tensor."""

    w: Array
    lr: float

    def step(self, g: Array) -> None: ...


def drift(
    make: Callable[..., RuleOptimizer],
    make_oracle: Callable[..., Oracle],
    settings: dict[str, Any],
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> float:
    """The largest distance between the two after STEPS steps, over the distance travelled.

    lr changes in every step, and gradients in size: settings that are read once, or averages of the wrong power of a
    gradient, would show. Of a tensor with rows the last has no gradient at all, and the first in every other step.
    """
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in shapes]
    means = [rng.standard_normal(shape) for shape in shapes]
    params = [torch.tensor(w, requires_grad=True) for w in start]
    optimizer = make(params, **settings)
    oracles = [make_oracle(w, **settings) for w in start]
    lr = optimizer.param_groups[0]["lr"]
    for t in range(STEPS):
        optimizer.param_groups[0]["lr"] = lr / (1 + t % 7)
        for param, oracle, mean in zip(params, oracles, means, strict=True):
            g = 10.0 ** -rng.integers(0, 4) * (mean + rng.standard_normal(mean.shape))
            if len(g) > 2:
                g[0] *= t % 2
                g[-1] = 0
            param.grad, oracle.lr = torch.tensor(g), lr / (1 + t % 7)
            oracle.step(g)
        optimizer.step()
    ends = [param.detach().numpy() for param in params]
    ways = zip(ends, oracles, start, strict=True)
    return max(np.linalg.norm(end - oracle.w) / np.linalg.norm(oracle.w - w) for end, oracle, w in ways)


def after(optimizer: torch.optim.Optimizer, param: Tensor, gradients: Iterable[Any]) -> Tensor:
    """The parameter after a step with each of the gradients."""
    for g in gradients:
        param.grad = torch.as_tensor(g).to(param.dtype, copy=True)
        optimizer.step()
    return param.detach()


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter."""
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers in float64, the same for the same arguments."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0, decades: int = 3) -> Array:
    """With a common part, scales of so many powers of ten, and in every other step a first row of zeros."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** -rng.integers(0, decades, size=steps).reshape(-1, *[1] * len(shape))
    found = scale * (rng.standard_normal(shape) + rng.standard_normal((steps, *shape)))
    found[1::2, 0] = 0
    return np.asarray(found)


def step(optimizer: torch.optim.Optimizer, param: Tensor, gradient: Array) -> None:
    """One step with this gradient."""
    param.grad = torch.tensor(gradient, dtype=param.dtype)
    optimizer.step()
