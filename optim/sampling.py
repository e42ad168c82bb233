"""Which sequences an estimate of the curvature uses, and the random numbers that it draws."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = Any  # a NamedTuple, see curvature.py; this package does not know whose
Inputs = Tensor | Mapping[str, Tensor]  # with a row for every sequence
PADDING = -1  # the index of a sequence that is computed but not counted


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
    inputs, targets = (_joined([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets"))
    size, most = len(batches[0].indices), -(-len(indices) * sequences // global_batch)  # that any rank can have
    found = []
    for first in range(0, most, size):
        part = chosen[first : first + size]
        taken = part or [0]
        named = [indices[i] for i in part] or [PADDING]
        found.append(batches[0]._replace(inputs=_rows(inputs, taken), targets=_rows(targets, taken), indices=named))
    return found


def _joined(parts: Sequence[Inputs]) -> Inputs:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return torch.cat(tensors)
    mappings = [part for part in parts if not isinstance(part, Tensor)]
    return {name: torch.cat([mapping[name] for mapping in mappings]) for name in mappings[0]}


def _rows(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    if isinstance(inputs, Tensor):  # row by row: a list of indices would be copied to the device, which waits for it
        return torch.stack([inputs[row] for row in rows])
    return {name: torch.stack([tensor[row] for row in rows]) for name, tensor in inputs.items()}


def uniforms(seed: int, step: int, batch: Batch, dtype: torch.dtype) -> Tensor:
    """One number from 0 to 1 per token, (B, T): a function of seed, step, index and position alone.

    Drawn in float64 in [0, 1), then rounded on the host: not every device has float64.
    """
    T = batch.targets.shape[1]
    drawn = []
    for index in batch.indices:
        generator = torch.Generator().manual_seed(hashed(seed, step, index))
        drawn.append(torch.rand(T, generator=generator, dtype=torch.float64))
    return to_device(torch.stack(drawn).to(dtype), batch.targets.device)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """A copy on the device of what is in host memory; waits for neither."""
    if device.type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=device.type != "mps")  # MPS may read memory that is not pinned too late


def draw_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """One label per position from softmax(logits (..., V)), by inverting its distribution at uniform (...); int64.

    Some label where logits are not finite, so that a run that diverges ends as one.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1]  # near 1: rounding
    wanted = (uniform.to(total.dtype) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    labels = torch.searchsorted(cumulative, wanted.unsqueeze(-1), right=True).squeeze(-1)
    return labels.clamp(max=logits.shape[-1] - 1)  # beyond the last if all comparisons with NaN fail


def hashed(*numbers: int) -> int:
    """A 63-bit seed that differs, for all practical purposes, for every tuple of numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
