"""The optimizers against their papers' boxes, written independently in NumPy (oracles.py), in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import Array
from torch import Tensor

from model import GPT
from optim import SGD, AdamW, GaussNewtonBartlett, Lion, Signum, Sophia
from optim.base import RuleOptimizer
from optim.pieces import CACHED, PACKED_BELOW

STEPS = 60
SHAPES = [(7, 5), (11,), (1,), (2, 3, 4), (PACKED_BELOW + 3,), (CACHED // 8 + 1, 9)]  # packed, in full, split
Make = Callable[..., Any]
CASES: dict[str, tuple[Make, Make, dict[str, Any]]] = {
    "adamw": (AdamW, oracles.AdamW, {"betas": (0.9, 0.8), "eps": 1e-3, "weight_decay": 0.1}),
    "sgd": (SGD, oracles.SGD, {"momentum": 0.0, "weight_decay": 0.1}),
    "sgd, momentum": (SGD, oracles.SGD, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd, nesterov": (SGD, oracles.SGD, {"momentum": 0.8, "dampening": 0.0, "nesterov": True, "weight_decay": 0.0}),
    "lion": (Lion, oracles.Lion, {"betas": (0.9, 0.7), "weight_decay": 0.1}),
    "signum": (Signum, oracles.Signum, {"momentum": 0.8, "weight_decay": 0.1}),
    "sophia": (Sophia, oracles.Sophia, {"betas": (0.9, 0.8), "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
}


def lr(t: int) -> float:
    """A schedule: settings that are read once would show."""
    return 0.03 / (1 + t % 7)


class Pair:
    """One optimizer over all tensors, and an oracle for each; curvature comes every third step."""

    def __init__(self, case: str, ours: Sequence[Tensor], theirs: Sequence[Array]) -> None:
        make, make_oracle, settings = CASES[case]
        self.ours, self.rng = list(ours), np.random.default_rng(1)
        extra = {"curvature": GaussNewtonBartlett(every=3)} if make is Sophia else {}
        self.optimizer: RuleOptimizer = make(self.ours, lr=1.0, **settings, **extra)
        self.theirs = [make_oracle(w, lr=1.0, **settings) for w in theirs]

    def step(self, t: int, ours: Sequence[Array], theirs: Sequence[Array]) -> None:
        """Step t (1-based) with each side's own gradients."""
        estimates: list[Array | None] = [None] * len(self.theirs)
        if isinstance(self.optimizer, Sophia) and t % 3 == 1:
            drawn = [np.asarray(self.rng.standard_normal(g.shape) + 0.5) for g in ours]
            self.optimizer.update_curvature({p: torch.tensor(h) for p, h in zip(self.ours, drawn, strict=True)})
            estimates = list(drawn)
        self.optimizer.param_groups[0]["lr"] = lr(t)
        for p, g in zip(self.ours, ours, strict=True):
            p.grad = torch.tensor(g)
        self.optimizer.step()
        for oracle, g, h in zip(self.theirs, theirs, estimates, strict=True):
            oracle.lr = lr(t)
            oracle.step(g, *([] if h is None else [h]))

    def drift(self, start: Sequence[Array]) -> float:
        """Largest distance between the two, over the distance travelled."""
        pairs = zip(self.ours, self.theirs, start, strict=True)
        return max(np.linalg.norm(p.detach().numpy() - o.w) / np.linalg.norm(o.w - s) for p, o, s in pairs)


@pytest.mark.parametrize("case", CASES)
def test_it_follows_the_papers_box(case: str) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in SHAPES]
    pair = Pair(case, [torch.tensor(w, requires_grad=True) for w in start], start)
    means = [rng.standard_normal(shape) for shape in SHAPES]
    for t in range(1, STEPS + 1):
        gradients = [10.0 ** -rng.integers(0, 4) * (mean + rng.standard_normal(mean.shape)) for mean in means]
        gradients[0][0] = 0  # a row without gradient, as of a token that does not occur
        pair.step(t, gradients, gradients)
    assert pair.drift(start) < 1e-9
    if case == "sophia":
        assert 0.05 < pair.optimizer.diagnostics()["win_rate"] < 0.95  # both branches of the clip were taken


@pytest.mark.parametrize("case", CASES)
def test_it_follows_the_papers_box_on_a_gpt(case: str) -> None:
    """Both sides train: each computes its gradients at its own weights."""
    torch.manual_seed(0)
    model = GPT(vocab_size=11, n_layer=2, n_head=2, n_embd=8, block_size=5).double()
    tokens = torch.randint(0, 11, (STEPS, 2, 3, 5), generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in model.named_parameters()]
    start = [p.detach().numpy().copy() for p in model.parameters()]

    def gradients(weights: Sequence[Array], t: int) -> list[Array]:
        own = {name: torch.tensor(w, requires_grad=True) for name, w in zip(names, weights, strict=True)}
        loss = torch.func.functional_call(model, own, (tokens[t - 1, 0], tokens[t - 1, 1]))
        return [g.numpy() for g in torch.autograd.grad(loss, list(own.values()))]

    pair = Pair(case, list(model.parameters()), start)
    for t in range(1, STEPS + 1):
        pair.step(
            t,
            gradients([p.detach().numpy() for p in pair.ours], t),
            gradients([oracle.w for oracle in pair.theirs], t),
        )
    assert pair.drift(start) < 1e-9


@pytest.mark.parametrize(("execution", "shapes"), [("eager", SHAPES), ("compiled", SHAPES[:4])])
def test_adamw_is_torchs(execution: str, shapes: Sequence[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers takes longer to start than this
    torch.manual_seed(0)
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    settings: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = AdamW(ours, execution=execution, **settings), torch.optim.AdamW(theirs, **settings)
    for t in range(1, STEPS + 1):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr(t)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
