"""Where a run computes: the strategy owns the device, the precision and everything that crosses ranks.

The loop calls a strategy and never asks which one it is. Single is one process on one device.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Rows(Protocol):
    """What a strategy needs of a micro-batch; data.Batch is one."""

    @property
    def rows(self) -> Sequence[int]:
        """Index of each row in the global batch."""


LossFn = Callable[[nn.Module, Any], Tensor]  # the mean over the micro-batch, 0-dim


class Single:
    """One process on one device.

    precision: "bf16" runs the forward pass under autocast, parameters stay fp32; "fp32" does not.
    """

    rank = 0
    world_size = 1

    def __init__(self, *, device: torch.device, precision: str, compiled: bool) -> None:
        self.device, self.precision, self.compiled = device, precision, compiled
        self.sequences_computed = 0  # by forward_backward, on all ranks
        self._model: nn.Module = nn.Identity()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> None:
        """Moves the model to the device, in place; its parameters are the ones to optimize afterwards."""
        self._model = model.to(self.device)
        if self.compiled:
            model.compile()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def forward_backward(self, batches: Iterable[Rows], loss_fn: LossFn, sequences: int) -> Tensor:
        """Adds to .grad the gradient of loss_fn's mean over `sequences` rows, and returns that mean.

        batches: this rank's part of those rows. loss_fn gives the mean over one micro-batch; each counts by its rows,
        so how the rows are cut does not matter. Returns a detached 0-dim fp32 tensor on the device.
        """
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with self.autocast():
                loss = loss_fn(self._model, batch) * (len(batch.rows) / sequences)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            total += loss.detach()
        self.sequences_computed += sequences
        return total

    def clip_grad_norm_(self, max_norm: float | None) -> Tensor:
        """Scales all gradients so that their global norm is at most max_norm (None: leaves them); the norm before."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Rows], loss_fn: LossFn) -> float:
        """loss_fn's mean over all rows, in evaluation mode; the model goes back to training mode."""
        self._model.eval()
        total, rows = 0.0, 0
        for batch in batches:
            with self.autocast():
                loss = loss_fn(self._model, batch)
            total += float(loss) * len(batch.rows)
            rows += len(batch.rows)
        self._model.train()
        return total / rows

    def synchronize(self) -> None:
        """Waits until the device has done everything it was given, for clocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
