"""The estimators against exact diagonals, on a GPT small enough to write its Hessian out."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data import Batch
from model import GPT
from optim import GaussNewtonBartlett, Hutchinson
from optim.curvature import Curvature
from optim.sampling import draw_labels, sub_batch, uniforms
from trainer.parallel import Single

G, T, V = 6, 3, 5


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(vocab_size=V, n_layer=1, n_head=1, n_embd=3, block_size=T, vocab_multiple=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model


def batches(micro_batch: int, indices: Sequence[int] = range(G)) -> list[Batch]:
    tokens = torch.randint(0, V, (2, G, T), generator=torch.Generator().manual_seed(7))
    split = [indices[i : i + micro_batch] for i in range(0, len(indices), micro_batch)]
    return [Batch(tokens[0, list(part)], tokens[1, list(part)], part) for part in split]


class Collector:
    """An optimizer that keeps what it is given."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": list(model.parameters())}]
        self.estimates: list[Tensor] = []
        self._model = model

    def update_curvature(self, estimates: dict[Tensor, Tensor]) -> None:
        self.estimates.append(torch.cat([estimates[p].flatten() for p in self._model.parameters()]))


def estimates(
    curvature: Curvature, steps: int, micro_batch: int = G, model: GPT | None = None, seed: int = 5
) -> Tensor:
    """One estimate per step, (steps, parameters)."""
    model = model or gpt()
    strategy = Single(device=torch.device("cpu"), precision="fp32", compiled=False)
    strategy.prepare(model)
    collector = Collector(model)
    curvature.bind(collector, model.parameters(), seed=seed, global_batch=G)
    for step in range(steps):
        curvature.update(step, batches(micro_batch), strategy.forward_backward)
        assert all(p.grad is None for p in model.parameters())
    return torch.stack(collector.estimates)


def mean_loss(model: GPT, indices: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The mean loss as a function of all parameters in one vector."""
    (batch,) = batches(G, indices)
    names = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([n for _, _, n in names])
        weights = {name: piece.view(shape) for (name, shape, _), piece in zip(names, pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            logits = torch.func.functional_call(model, weights, (batch.inputs,))
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    return loss


def exact_hessian_diagonal(model: GPT, indices: Sequence[int]) -> Tensor:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.autograd.functional.hessian(mean_loss(model, indices), vector).diagonal()


def exact_gauss_newton_diagonal(model: GPT, indices: Sequence[int]) -> Tensor:
    """diag of (1/B) sum_b J_b^T (diag(p_b) - p_b p_b^T) J_b, J_b the Jacobian of token b's logits."""
    (batch,) = batches(G, indices)
    logits = model(batch.inputs).flatten(0, 1)  # (B, V)
    jacobian = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(logits[b, v], list(model.parameters()), retain_graph=True)]
            )
            for b in range(len(logits))
            for v in range(V)
        ]
    ).view(len(logits), V, -1)
    p = logits.detach().softmax(-1)
    first = torch.einsum("bv,bvn->bn", p, jacobian**2)
    second = torch.einsum("bv,bvn->bn", p, jacobian) ** 2
    return (first - second).mean(0)


def assert_unbiased(found: Tensor, exact: Tensor) -> None:
    """The mean lies within its standard error of the exact value: 4.5 of them hold for all of some hundred numbers."""
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    # And the check has teeth: the means are known to within a fraction of the diagonal's scale.
    assert error.norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(("sequences", "indices"), [(None, range(G)), (3, [1, 3, 5])])
def test_gauss_newton_bartlett_is_unbiased(sequences: int | None, indices: Sequence[int]) -> None:
    found = estimates(GaussNewtonBartlett(every=1, sequences=sequences, fraction=1), 800)
    assert_unbiased(found, exact_gauss_newton_diagonal(gpt(), indices))


@pytest.mark.parametrize(("sequences", "indices"), [(None, range(G)), (2, [2, 5])])
def test_hutchinson_is_unbiased(sequences: int | None, indices: Sequence[int]) -> None:
    found = estimates(Hutchinson(every=1, sequences=sequences, fraction=1), 800)
    assert_unbiased(found, exact_hessian_diagonal(gpt(), indices))


@pytest.mark.parametrize("curvature", [GaussNewtonBartlett, Hutchinson])
@pytest.mark.parametrize("sequences", [None, 4])
def test_micro_batches_do_not_change_an_estimate(curvature: type[Curvature], sequences: int | None) -> None:
    together = estimates(curvature(every=1, sequences=sequences, fraction=1), 3)
    for micro_batch in (1, 2, 3):
        split = estimates(curvature(every=1, sequences=sequences, fraction=1), 3, micro_batch)
        torch.testing.assert_close(split, together, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fraction", "global_batch", "n_sequences"),
    [(0.5, 480, 240), (1 / 15, 480, 32), (1 / 15, 16, 1), (0.5, 1, 1), (1, 7, 7)],
)
def test_the_fraction_follows_the_global_batch(fraction: float, global_batch: int, n_sequences: int) -> None:
    used = []

    class Counting(GaussNewtonBartlett):
        def estimate(
            self, step: int, batches: Sequence[Any], forward_backward: Any, sequences: int
        ) -> dict[Tensor, Tensor]:
            used.extend([sequences, sum(len(batch.indices) for batch in batches)])
            return {}

    curvature = Counting(fraction=fraction)
    curvature.bind(Collector(nn.Linear(1, 1)), [], seed=0, global_batch=global_batch)
    curvature._optimizer.update_curvature = lambda estimates: None  # type: ignore[union-attr,method-assign]
    tokens = torch.zeros(global_batch, 1, dtype=torch.int64)
    curvature.update(0, [Batch(tokens, tokens, range(global_batch))], lambda *a: torch.zeros(()))
    assert used == [n_sequences, n_sequences]


@pytest.mark.parametrize("curvature", [GaussNewtonBartlett, Hutchinson])
def test_every_estimate_draws_anew_and_repeatably(curvature: type[Curvature]) -> None:
    first, again, other = (estimates(curvature(every=1), 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0], other[0])


@pytest.mark.parametrize(("paper_code", "due"), [(False, 4), (True, 3)])
def test_it_is_refreshed_every_k_steps(paper_code: bool, due: int) -> None:
    assert len(estimates(GaussNewtonBartlett(every=3, paper_code=paper_code), 10)) == due  # 0, 3, 6, 9 or 3, 6, 9


def test_the_papers_code_clips_the_gradient_before_squaring() -> None:
    model = gpt()
    with torch.no_grad():
        model.wte.weight.mul_(20)
    plain = estimates(GaussNewtonBartlett(every=1, fraction=1), 2, model=model)[1]
    clipped = estimates(GaussNewtonBartlett(every=1, fraction=1, paper_code=True), 2, model=model)[0]
    norm = (plain / (G * T)).sum().sqrt()
    assert norm > 1
    torch.testing.assert_close(clipped, plain / norm**2, rtol=1e-4, atol=1e-12)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("sequences", range(1, G + 1))
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
def test_a_sub_batch_is_spread_evenly_whatever_the_micro_batch(sequences: int, micro_batch: int) -> None:
    split = sub_batch(batches(micro_batch), sequences, G)
    indices = [index for batch in split for index in batch.indices]
    assert len(indices) == sequences
    assert indices == [index for batch in sub_batch(batches(G), sequences, G) for index in batch.indices]
    gaps = [b - a for a, b in pairwise(indices)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    for batch in split:
        assert torch.equal(batch.inputs, batches(G)[0].inputs[list(batch.indices)])
        assert torch.equal(batch.targets, batches(G)[0].targets[list(batch.indices)])


def test_labels_follow_the_models_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    labels = draw_labels(logits.expand(1, 100_000, 4), uniform.unsqueeze(0))
    shares = torch.bincount(labels.flatten(), minlength=4) / 100_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=2e-5)


def test_impossible_labels_are_never_drawn() -> None:
    logits = torch.tensor([[[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]]).expand(1, 4, 5)
    uniform = torch.tensor([[0.0, 0.4999999, 0.5, 1 - 2**-53]], dtype=torch.float64)
    assert draw_labels(logits, uniform).tolist() == [[1, 1, 3, 3]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_exist_whatever_the_logits(bad: float, dtype: torch.dtype) -> None:
    logits = torch.full((2, 3, 5), bad, dtype=dtype)
    logits[0, 0, 1:] = 0
    labels = draw_labels(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64).expand(2, 3))
    assert ((labels >= 0) & (labels < 5)).all()


@pytest.mark.parametrize("curvature", [GaussNewtonBartlett, Hutchinson])
def test_an_estimate_at_parameters_that_are_not_finite_is_not_finite_and_raises_nothing(
    curvature: type[Curvature],
) -> None:
    model = gpt()
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    assert not estimates(curvature(every=1), 1, model=model).isfinite().all()


class Partly(nn.Module):
    """A GPT, with a parameter that takes no part, and one that shifts all logits alike, which softmax does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt, self.spare, self.shift = gpt(), nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(1).double())

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.gpt(tokens) + self.shift
        return logits


@pytest.mark.parametrize("curvature", [GaussNewtonBartlett, Hutchinson])
def test_frozen_and_unused_parameters_have_no_estimate_and_the_others_theirs(curvature: type[Curvature]) -> None:
    model, found = Partly(), {}
    frozen = model.gpt.h[0].mlp.c_fc.weight.requires_grad_(False)
    collector = Collector(model)
    collector.update_curvature = found.update  # type: ignore[method-assign]
    strategy = Single(device=torch.device("cpu"), precision="fp32", compiled=False)
    strategy.prepare(model)
    estimator = curvature(every=1)
    estimator.bind(collector, model.gpt.parameters(), seed=5, global_batch=G)  # spare and shift came later
    estimator.update(0, batches(G), strategy.forward_backward)
    assert found.keys() == set(model.parameters()) - {frozen, model.spare}
    assert found[model.shift].abs() < 1e-12
    assert all(p.grad is None for p in model.parameters())


def test_noise_belongs_to_the_global_row() -> None:
    together = uniforms(1, 2, batches(G)[0], torch.float64)
    assert torch.equal(torch.cat([uniforms(1, 2, batch, torch.float64) for batch in batches(2)]), together)
    assert len({tuple(row) for row in together.tolist()}) == G


def test_noise_of_another_dtype_is_the_same_numbers_rounded() -> None:
    drawn, rounded = (uniforms(1, 2, batches(G)[0], dtype) for dtype in (torch.float64, torch.float32))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, drawn.to(torch.float32))


def test_hutchinson_refuses_what_has_no_second_derivative() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    model = gpt()
    model.ln_f.register_forward_hook(lambda module, inputs, output: Once.apply(output))
    with pytest.raises(RuntimeError, match="Hutchinson needs second derivatives, which this model lacks"):
        estimates(Hutchinson(every=1), 1, model=model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussNewtonBartlett(every=0), "GaussNewtonBartlett: every=0 must be >= 1"),
        (lambda: Hutchinson(sequences=0), "Hutchinson: sequences=0 must be >= 1, or None for a fraction"),
        (lambda: Hutchinson(fraction=0.0), r"Hutchinson: fraction=0.0 must be in \(0, 1\]"),
        (lambda: GaussNewtonBartlett(fraction=1.5), r"GaussNewtonBartlett: fraction=1.5 must be in \(0, 1\]"),
        (lambda: estimates(Hutchinson(sequences=7), 1), "Hutchinson: sequences=7 must be at most global_batch=6"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unbound_estimator_says_so() -> None:
    with pytest.raises(RuntimeError, match="call bind"):
        GaussNewtonBartlett().update(0, batches(G), lambda *a: torch.zeros(()))


@pytest.mark.parametrize("estimator", [GaussNewtonBartlett, Hutchinson])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("paper_code", [False, True])
def test_passes_are_what_torch_counts_in_the_estimates_of_some_steps(
    estimator: Callable[..., Curvature], every: int, paper_code: bool
) -> None:
    model = GPT(vocab_size=V, n_layer=2, n_head=2, n_embd=4, block_size=T)
    curvature = estimator(every=every, sequences=2, paper_code=paper_code)
    curvature.bind(Collector(model), model.parameters(), seed=1, global_batch=G)
    strategy = Single(device=torch.device("cpu"), precision="fp32", compiled=False)
    strategy.prepare(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for step in range(6):
            curvature.update(step, batches(G), strategy.forward_backward)
            of_a_sequence = 3 * model.forward_flops_per_token() * T
            assert counted.get_total_flops() == curvature.passes(step + 1) * of_a_sequence
    assert curvature.passes(0) == 0
