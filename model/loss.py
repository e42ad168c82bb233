"""The mean cross entropy of logits, without an fp32 copy of all of them, which would dominate its time."""

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

HAS_KERNELS = torch.cuda.is_available() and find_spec("triton") is not None
if HAS_KERNELS:
    from model.loss_kernels import row_losses

CHUNK = 1 << 17  # logits whose fp32 copy stays in a core's cache


def cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int | None = None) -> Tensor:
    """Returns the mean over N of -log softmax(logits (N, P)[:, :vocab_size])[targets (N,) int64], 0-dim, in nats.

    The loss is fp32 or wider. Columns from vocab_size on (None: there are none) get a gradient of 0. A second
    derivative is not promised. Which code computes it:
        CUDA, compiled or not                     kernels of its own (loss_kernels.py)
        a CPU, eager                              cache-sized chunks; the forward pass writes the gradient over the
                                                  logits, in their dtype: less time and memory (docs/benchmarks.md)
        a CPU, compiled; float64 on CUDA; others  torch's cross_entropy of the logits in fp32 or wider
    Targets must lie in [0, vocab_size), and no code here checks it. One outside makes the loss NaN in the kernels, and
    raises RuntimeError in the chunks. torch leaves -100 out of the mean; of any other one it raises an error, on CUDA
    by an assertion on the device. So -100 is no way to leave a token out.
    """
    V = vocab_size or logits.shape[1]
    if HAS_KERNELS and logits.device.type == "cuda" and logits.dtype != torch.float64:
        losses: Tensor = row_losses(logits, targets, V)[0]
        return losses.mean()
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        logits = logits if torch.is_grad_enabled() else logits.detach()  # then nothing is written
        loss: Tensor = _ChunkedCrossEntropy.apply(logits, targets, V)  # type: ignore[no-untyped-call]  # torch leaves it so
        return loss
    return F.cross_entropy(widened(logits[:, :V]), targets)


def widened(logits: Tensor) -> Tensor:
    """Returns the logits in fp32; float64 ones as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Writes the gradient of the mean, (softmax - one-hot) / N, over the logits, and saves nothing else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, V: int) -> Tensor:
        N = len(logits)
        gradient, wanted = logits.detach(), targets[:, None]  # one tensor: the gradient overwrites the logits
        real = gradient[:, :V]
        wide = widened(logits[:0]).new_empty(max(CHUNK // V, 1), V)
        largest, sums = wide.new_empty(2, N, 1)
        at_target = widened(real.gather(1, wanted))
        for first in range(0, N, len(wide)):
            part = slice(first, min(first + len(wide), N))
            chunk = wide[: part.stop - first].copy_(real[part])
            torch.amax(chunk, 1, keepdim=True, out=largest[part])
            torch.sum(chunk.sub_(largest[part]).exp_(), 1, keepdim=True, out=sums[part])
            if ctx.needs_input_grad[0]:
                real[part] = chunk.div_(sums[part] * N)
        losses = largest + sums.log() - at_target
        if ctx.needs_input_grad[0]:
            real[torch.arange(N), targets] = (torch.expm1(-losses[:, 0]) / N).to(real.dtype)  # scatter_ takes ms
            gradient[:, V:] = 0
            ctx.save_for_backward(gradient)
        loss: Tensor = losses.mean()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        is_mean = bool(grad_output == 1)  # nothing is weighted: one micro-batch, no accumulation
        return gradient if is_mean else gradient * grad_output.to(gradient.dtype), None, None
