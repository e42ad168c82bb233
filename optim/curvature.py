"""Estimators of a loss's curvature diagonal, refreshed every k steps through the training path with another loss.

The loop calls update(step, batches, forward_backward) on every step, before the ordinary forward and backward pass:
    batches            this rank's micro-batches, with inputs and targets (B, T) int64 and indices, those of their
                       sequences in the global batch, -1 for one that is computed but not counted; inputs may also be
                       a mapping of tensors, each with a row for every sequence
    forward_backward   (batches, loss_fn, sequences): adds the gradient of loss_fn(model, batch)'s mean over
                       `sequences` sequences to .grad, over all ranks
Other loops make a CurvaturePass (curvature_pass.py), which takes their batches as they are.
An estimate's random numbers depend on (seed, step, index) alone: the same for any world size and micro-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from .execution import uncompiled
from .sampling import Batch, sub_batch

LossFn = Callable[[nn.Module, Any], Tensor]


class ForwardBackward(Protocol):
    """A strategy's backward pass, as the module describes it."""

    def __call__(self, batches: Sequence[Any], loss_fn: LossFn, sequences: int) -> Tensor:
        """Adds the gradient of the mean to .grad, and returns the mean."""


class TakesCurvature(Protocol):
    """An optimizer that averages the estimates."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As torch's optimizers have them."""

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

    def is_due(self, step: int) -> bool:
        """Whether there is an estimate before the 0-based step."""
        return step >= self.first_step and step % self.every == 0

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
        if not self.is_due(step):
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
