"""The mean cross entropy of logits; on a CPU without an fp32 copy of all of them, which would dominate its time."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 20  # logits whose fp32 copy stays in a CPU's cache


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over N of -log softmax(logits (N, V))[targets (N,) int64], in nats, 0-dim, fp32 or wider.

    In eager mode on a CPU it works in cache-sized chunks and computes the gradient in the forward pass, in the logits'
    dtype: the same arithmetic, 1.6 times faster (docs/benchmarks.md), but without a second derivative. Compilers fuse
    the plain form.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        loss: Tensor = _ChunkedCrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]  # torch leaves it so
        return loss
    return F.cross_entropy(widened(logits), targets)


def widened(logits: Tensor) -> Tensor:
    """Returns the logits in fp32; float64 ones as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradient of the mean, (softmax - one-hot) / N, in the forward pass, and saves nothing else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        N, V = logits.shape
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=widened(logits[:0]).dtype)
        rows = max(CHUNK // V, 1)
        for first in range(0, N, rows):
            part = slice(first, first + rows)
            wide, wanted = widened(logits[part]), targets[part, None]
            largest = wide.amax(-1, keepdim=True)
            total += (largest - wide.gather(1, wanted)).sum()
            chunk = (wide - largest).exp_()
            sums = chunk.sum(-1, keepdim=True)
            total += sums.log().sum()
            if gradient is not None:
                chunk.div_(sums * N).scatter_add_(1, wanted, torch.full_like(sums, -1 / N))
                gradient[part] = chunk
        ctx.save_for_backward(gradient)
        return total / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        is_mean = bool(grad_output == 1)  # nothing is weighted: one micro-batch, no accumulation
        return gradient if is_mean else gradient * grad_output.to(gradient.dtype), None
