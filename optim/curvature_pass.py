"""CurvaturePass: see the class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .curvature import LossFn
from .ensemble import curvature_of
from .execution import uncompiled
from .sampling import PADDING
from .sharding import is_sharded, largest, place, total, unwrapped
from .user_batches import Logits, LogitsFn, Sequences, lengthened, logits_of, read


class CurvaturePass:
    """The extra pass of Sophia for any training loop: call update(batch) on every step, before optimizer.step().

    model: maps a batch to logits (B, T, V), which it returns, or has in .logits or ["logits"], as Hugging Face's models
    do, or as the first of a tuple. optimizer: Sophia, also one that accelerate or Lightning has wrapped. seed: of the
    labels or directions that the estimator draws. logits: (model, inputs, targets) -> logits, for a model that is
    called in another way; nanoGPT's: lambda model, inputs, targets: model(inputs, targets)[0].
    The optimizer's state says which step it is, so that nothing of this object needs to be saved.
    Several ranks (DDP, FSDP2, any loop where torch.distributed is initialized): every rank calls update, with as many
    sequences of its own; the estimate is that of all of them together.

    Raises: ValueError: if the optimizer takes no curvature.
    """

    def __init__(self, model: nn.Module, optimizer: Any, *, seed: int = 0, logits: LogitsFn = logits_of) -> None:
        while curvature_of(optimizer) is None and hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        estimator = curvature_of(optimizer)
        if estimator is None:
            raise ValueError(
                f"CurvaturePass: {type(optimizer).__name__} takes no estimates of the curvature; make it as "
                "Sophia(parameters, curvature=GaussNewtonBartlett())"
            )
        self._model, self._group = unwrapped(model)  # DDP's own hooks would average gradients, too
        self._optimizer, self._estimator, self._logits, self._seed = optimizer, estimator, logits, seed
        self._last_step: int | None = None
        self._counted = self._positions = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        found: list[dict[str, Any]] = self._optimizer.param_groups
        return found

    @uncompiled
    def update(self, *batches: Any) -> None:
        """Estimates the curvature if the coming step is due, once; leaves all gradients as they are.

        batches: the step's micro-batches on this rank, on the model's device, each of them
            a pair (inputs, targets) of tensors, targets (B, T) int64: position t of the inputs predicts target t
            or a mapping with input_ids and labels (B, T), as Hugging Face's models take it: position t predicts label
            t + 1, or input id t + 1 if there are no labels
        Negative targets and labels do not count. Shorter micro-batches are padded on the right. Under autocast, call
        this inside its context.

        Raises: ValueError: if there is no batch, one is none of these, the model does not return logits for it, or
        ranks have unequal numbers of sequences.
        """
        step = max((int(state["step"]) for state in self._optimizer.state.values() if "step" in state), default=0)
        if step == self._last_step or not self._estimator.is_due(step):
            return
        if not batches:
            raise ValueError("CurvaturePass: update() got no batch; give it those of the coming step, update(batch)")
        self._last_step = step
        own, first, all_sequences = self._placed([read(batch) for batch in batches])
        numbered = []
        for batch in own:
            numbered.append(batch._replace(indices=range(first, first + len(batch.targets))))
            first += len(batch.targets)
        gradients = [(param, param.grad) for param in self._model.parameters()]
        try:
            self._estimator.bind(self, self._model.parameters(), seed=self._seed, global_batch=all_sequences)
            self._estimator.update(step, numbered, self._forward_backward)
        finally:
            for param, gradient in gradients:
                param.grad = gradient

    def update_curvature(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Hands the estimator's results to the optimizer, as those of the mean over the positions that count.

        The estimator saw a mean over all positions, in which the others are constants; curvature is linear in the loss.
        Without any position that counts it is not finite, which the optimizer skips.
        """
        factor = self._positions / (self._counted or float("nan"))
        self._optimizer.update_curvature({param: each.mul_(factor) for param, each in estimates.items()})

    def _placed(self, batches: Sequence[Sequences]) -> tuple[list[Sequences], int, int]:
        """The batches with as many positions as any rank's, the global index of the first, and sequences in all."""
        rows = sum(len(batch.targets) for batch in batches)
        longest = max(batch.targets.shape[1] for batch in batches)
        facts = torch.tensor([longest, rows, -rows], device=batches[0].targets.device)
        longest, most, least = largest(facts, self._group).tolist()
        if most != -least:
            raise ValueError(
                f"CurvaturePass: ranks gave {-least} to {most} sequences, and this one {rows}; give as many on every "
                "rank (drop_last=True)"
            )
        rank, ranks = place(self._group)
        return [lengthened(batch, longest) for batch in batches], rank * rows, ranks * rows

    def _forward_backward(self, batches: Sequence[Sequences], loss_fn: LossFn, sequences: int) -> Tensor:
        """What curvature.py asks of a strategy; also notes how many positions there were, and how many counted."""
        _, ranks = place(self._group)
        positions, counted = 0, torch.zeros((), dtype=torch.int64, device=batches[0].targets.device)
        mean = torch.zeros((), device=counted.device)
        for batch in batches:
            real = sum(index != PADDING for index in batch.indices)
            positions += real * batch.targets.shape[1]
            counted += (batch.targets[:real] >= 0).sum()
            model: Any = Logits(self._model, self._logits, batch.targets)
            loss = loss_fn(model, batch._replace(targets=batch.targets.clamp(min=0))) * (real / sequences)
            (loss * ranks).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            mean += loss.detach()
        for param in self._model.parameters():
            if param.grad is not None and not is_sharded(param):  # fully_shard's hooks have averaged those already
                total(param.grad, self._group).div_(ranks)
        counts = total(torch.stack([counted, torch.full_like(counted, positions)]), self._group)
        self._counted, self._positions = counts.tolist()
        return total(mean, self._group)
