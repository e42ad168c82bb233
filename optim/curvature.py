"""Estimators of a loss's curvature diagonal, refreshed every k steps through the training path with another loss.

The loop calls update(step, batches, forward_backward) on every step, before the ordinary forward and backward pass:
    batches            this rank's micro-batches, with inputs and targets (B, T) int64 and indices, those of their
                       sequences in the global batch, -1 for one that is computed but not counted
    forward_backward   (batches, loss_fn, sequences): adds the gradient of loss_fn(model, batch)'s mean over
                       `sequences` sequences to .grad, over all ranks
An estimate's random numbers depend on (seed, step, index) alone: the same for any world size and micro-batch.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from .execution import uncompiled
from .rule import working_dtype
from .sharding import is_sharded

Batch = Any  # a NamedTuple, see the module; this package does not know whose
LossFn = Callable[[nn.Module, Any], Tensor]
PADDING = -1  # the index of a sequence that is computed but not counted


class ForwardBackward(Protocol):
    """A strategy's backward pass, as the module describes it."""

    def __call__(self, batches: Sequence[Any], loss_fn: LossFn, sequences: int) -> Tensor:
        """Adds the gradient of the mean to .grad, and returns the mean."""


class TakesCurvature(Protocol):
    """An optimizer that averages the estimates."""

    param_groups: list[dict[str, Any]]

    def update_curvature(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Takes an estimate for every parameter that has one."""


class Curvature(ABC):
    """What the estimators share: when, on which sequences, and keeping ordinary gradients apart.

    every: k, in steps. sequences: how many of the global batch to use, spread evenly over it; None: the fraction of
    it, at least one. paper_code: as the authors' published code has it, see the estimators.

    Raises: ValueError: if every or sequences is < 1, or fraction lies outside (0, 1]; from bind, if sequences exceeds
    the global batch.
    """

    rho: ClassVar[float | None] = None  # the paper's gamma for this estimator; None: to be given
    passes_per_sequence: ClassVar[int] = 1  # FLOPs of a sequence of an estimate over those of a training sequence

    def __init__(self, every: int, sequences: int | None, fraction: float, paper_code: bool) -> None:
        if every < 1:
            raise ValueError(f"{type(self).__name__}: every={every} must be >= 1")
        if sequences is not None and sequences < 1:
            raise ValueError(f"{type(self).__name__}: sequences={sequences} must be >= 1, or None for a fraction")
        if not 0 < fraction <= 1:
            raise ValueError(f"{type(self).__name__}: fraction={fraction} must be in (0, 1]")
        self.every, self.sequences, self.fraction, self.paper_code = every, sequences, fraction, paper_code
        self._optimizer: TakesCurvature | None = None
        self._parameters: list[nn.Parameter] = []
        self._seed, self._global_batch = 0, 0

    @property
    def first_step(self) -> int:
        """The 0-based step of the first estimate."""
        return self.every if self.paper_code else 0

    def passes(self, steps: int) -> int:
        """What the estimates of a run's first `steps` steps cost, in forward and backward passes of a sequence.

        Only of an estimator that is bound.
        """
        return len(range(self.first_step, steps, self.every)) * self._sequences * self.passes_per_sequence

    @property
    def _sequences(self) -> int:
        """How many an estimate uses."""
        share = max(1, round(self.fraction * self._global_batch))
        return share if self.sequences is None else self.sequences

    def bind(
        self, optimizer: TakesCurvature, parameters: Iterable[nn.Parameter], *, seed: int, global_batch: int
    ) -> None:
        """Connects the estimator with the optimizer that it feeds.

        parameters: all of the model's, whose gradients it must not leave behind. global_batch: in sequences.
        """
        if self.sequences is not None and self.sequences > global_batch:
            raise ValueError(
                f"{type(self).__name__}: sequences={self.sequences} must be at most global_batch={global_batch}"
            )
        self._optimizer, self._parameters = optimizer, list(parameters)
        self._seed, self._global_batch = seed, global_batch

    @uncompiled
    def update(self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward) -> None:
        """Refreshes the curvature if the 0-based step is due; no gradients are left behind.

        Raises: RuntimeError: if the estimator is bound to no optimizer.
        """
        if step % self.every or step < self.first_step:
            return
        if self._optimizer is None:
            raise RuntimeError(f"{type(self).__name__}: call bind(optimizer, parameters, ...) before update()")
        known = set(self._parameters)
        owned = {param: None for group in self._optimizer.param_groups for param in group["params"]}  # in their order
        self._parameters += [param for param in owned if param not in known]  # of groups added since
        self._forget_gradients()
        sequences = self._sequences
        estimates = self.estimate(step, sub_batch(batches, sequences, self._global_batch), forward_backward, sequences)
        self._optimizer.update_curvature({param: e for param, e in estimates.items() if param in owned})
        self._forget_gradients()

    @abstractmethod
    def estimate(
        self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward, sequences: int
    ) -> dict[Tensor, Tensor]:
        """One estimate for every parameter, of its shape; batches hold this rank's part of the sequences.

        May take the memory of the gradients.
        """

    def _forget_gradients(self) -> None:
        for param in self._parameters:
            param.grad = None


class GaussNewtonBartlett(Curvature):
    """Gauss-Newton-Bartlett (Liu et al. 2024, arXiv:2305.14342, Algorithm 2): Sophia-G.

    Draws labels from the model's own predictions; B times the squared gradient of the loss for them is an unbiased
    estimate of the diagonal of the Gauss-Newton matrix, B the number of tokens used.
    Paper: every 10 steps, on 240 of 480 sequences. paper_code: the gradient of the drawn labels is clipped to norm 1
    before it is squared (biases the estimate down), and there is none before the first k steps are done; that code also
    takes all sequences, fraction=1.
    """

    rho = 0.05

    def __init__(
        self, every: int = 10, sequences: int | None = None, fraction: float = 0.5, *, paper_code: bool = False
    ) -> None:
        super().__init__(every, sequences, fraction, paper_code)

    @override
    def estimate(
        self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward, sequences: int
    ) -> dict[Tensor, Tensor]:
        tokens = 0

        def drawn_label_loss(model: nn.Module, batch: Batch) -> Tensor:
            nonlocal tokens
            logits = widened(model(batch.inputs))  # (B, T, V)
            uniform = uniforms(self._seed, step, batch)
            # Row by row: the temporaries, several times the logits, would otherwise be the peak of the whole run.
            labels = torch.stack([draw_labels(*row) for row in zip(logits.detach(), uniform, strict=True)])
            tokens = sequences * labels.shape[1]
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

        forward_backward(batches, drawn_label_loss, sequences)
        if self.paper_code:
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
        return {p: widened(p.grad).square_().mul_(tokens) for p in self._parameters if p.grad is not None}


class Hutchinson(Curvature):
    """Hutchinson's estimator (Liu et al. 2024, arXiv:2305.14342, Algorithm 1): Sophia-H.

    u * (H u) with u ~ N(0, I) is an unbiased estimate of the diagonal of H, the Hessian of the mean loss with the true
    labels. It may be negative. Paper: every 10 steps, on 32 of 480 sequences. Attention runs on torch's math kernel,
    the only one with a second derivative, and the model runs uncompiled. paper_code: none before the first k steps.
    Costs three times the forward and backward pass of its sequences. Of a matrix product Y = X W forward is one product
    and backward two, dX = dY W^T and dW = X^T dY. Each of these three has two factors, and the second backward pass
    needs two products for each: six. That makes nine, where training makes three; attention's products likewise.

    Raises: also ValueError: from bind, if parameters are sharded across ranks, whose hooks break the second
    derivative's graph. RuntimeError: from update, if something in the model has no second derivative.
    """

    rho = 0.01
    passes_per_sequence = 3

    def __init__(
        self, every: int = 10, sequences: int | None = None, fraction: float = 1 / 15, *, paper_code: bool = False
    ) -> None:
        super().__init__(every, sequences, fraction, paper_code)

    @override
    def bind(
        self, optimizer: TakesCurvature, parameters: Iterable[nn.Parameter], *, seed: int, global_batch: int
    ) -> None:
        parameters = list(parameters)
        if any(is_sharded(param) for param in parameters):
            raise ValueError(
                "Hutchinson needs second derivatives, which parallel=fsdp2 does not have: use parallel=ddp, or "
                "GaussNewtonBartlett (optim=sophiag)"
            )
        super().bind(optimizer, parameters, seed=seed, global_batch=global_batch)

    @override
    def estimate(
        self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward, sequences: int
    ) -> dict[Tensor, Tensor]:
        parameters = [param for param in self._parameters if param.requires_grad]
        generator = torch.Generator().manual_seed(hashed(self._seed, step))
        probes = {p: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in parameters}
        used: set[Tensor] = set()

        def slope_along_probe(model: nn.Module, batch: Batch) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                logits = widened(model.forward(batch.inputs))  # forward, not __call__: that one may be compiled
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            known = {param: g for param, g in zip(parameters, gradients, strict=True) if g is not None}
            used.update(known)
            return sum(((g * probes[param]).sum() for param, g in known.items()), torch.zeros_like(loss))

        if not parameters:
            return {}
        try:
            forward_backward(batches, slope_along_probe, sequences)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("derivative", "differentiate twice", "double backward")):
                raise
            raise RuntimeError(
                f"Hutchinson needs second derivatives, which this model lacks ({error}); use GaussNewtonBartlett, or "
                "attention and loss made of differentiable operations, uncompiled"
            ) from error
        # The gradient of a parameter that the loss is linear in is a constant: no second derivative reaches it.
        products = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in parameters if p in used}
        return {p: widened(product).mul_(probes[p]) for p, product in products.items()}


def sub_batch(batches: Sequence[Batch], sequences: int, global_batch: int) -> list[Batch]:
    """This rank's micro-batches of `sequences` sequences of the global batch, spread evenly over it.

    They are as large as those given, and as many on every rank, since collectives need all ranks: a rank that has too
    few sequences gets one that is PADDING.
    """
    indices = [index for batch in batches for index in batch.indices]
    chosen = [
        i
        for i, index in enumerate(indices)
        if index * sequences // global_batch < (index + 1) * sequences // global_batch
    ]
    if len(chosen) == len(indices):
        return list(batches)
    inputs, targets = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets"))
    size, most = len(batches[0].indices), -(-len(indices) * sequences // global_batch)  # that any rank can have
    found = []
    for first in range(0, most, size):
        part = chosen[first : first + size]
        taken = part or [0]
        named = [indices[i] for i in part] or [PADDING]
        found.append(batches[0]._replace(inputs=inputs[taken], targets=targets[taken], indices=named))
    return found


def uniforms(seed: int, step: int, batch: Batch) -> Tensor:
    """One number in [0, 1) per token, (B, T) float64: a function of seed, step, index and position alone."""
    T = batch.inputs.shape[1]
    drawn = []
    for index in batch.indices:
        generator = torch.Generator().manual_seed(hashed(seed, step, index))
        drawn.append(torch.rand(T, generator=generator, dtype=torch.float64))
    return torch.stack(drawn).to(batch.inputs.device)


def draw_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """One label per position from softmax(logits (..., V)), by inverting its distribution at uniform (...); int64.

    Some label where logits are not finite, so that a run that diverges ends as one.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1]  # near 1: rounding
    wanted = (uniform.to(total.dtype) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    labels = torch.searchsorted(cumulative, wanted.unsqueeze(-1), right=True).squeeze(-1)
    return labels.clamp(max=logits.shape[-1] - 1)  # beyond the last if all comparisons with NaN fail


def widened(tensor: Tensor) -> Tensor:
    """In the working dtype: a softmax in bf16 is another distribution, a square another number."""
    return tensor.to(working_dtype(tensor))


def hashed(*numbers: int) -> int:
    """A 63-bit seed that differs, for all practical purposes, for every tuple of numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
