"""The cross entropy's kernels for CUDA devices, in Triton, which torch for CUDA installs.

Torch's own operations make fp32 copies of all logits, and what its compiler makes of them reads and writes rows of odd
lengths number by number. These read the logits twice, in their dtype, and write the gradient once, in that dtype.
They read and write rows up to P, the padded length, and not to V: Triton moves several numbers at once only where it
knows the length to be a multiple of 16, as a padded vocabulary's is. With any other P the results are the same.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 4096, 4  # logits that a program reads at once, and its warps: the fastest of six pairs on an H200
FAR_BELOW = tl.constexpr(-3.0e38)  # of missing columns; not -inf, so that the difference of two is 0


@triton.jit  # type: ignore[untyped-decorator]
def _losses(logits, targets, losses, normalizers, stride, V, P, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * stride
    largest, total = FAR_BELOW, 0.0
    for first in range(0, V, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(row + column, mask=column < P, other=0.0).to(tl.float32)  # P, not V: see above
        x = tl.where(column < V, x, FAR_BELOW)
        higher = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), 0)
        largest = higher
    normalizer = largest + tl.log(total)
    target = tl.load(targets + n)
    at_target = tl.load(row + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
    tl.store(normalizers + n, normalizer)
    tl.store(losses + n, normalizer - at_target)


@triton.jit  # type: ignore[untyped-decorator]
def _gradients(logits, targets, normalizers, scales, gradient, stride, V, P, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = tl.load(logits + n * stride + column, mask=column < P, other=0.0).to(tl.float32)
    p = tl.exp(x - tl.load(normalizers + n))
    is_target = column == tl.load(targets + n)
    slope = tl.where(column < V, (p - is_target.to(tl.float32)) * tl.load(scales + n), 0.0)
    tl.store(gradient + n * P + column, slope.to(gradient.dtype.element_ty), mask=column < P)


@torch.library.custom_op("nanodescent::row_losses", mutates_args=())
def row_losses(logits: Tensor, targets: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """-log softmax(logits[:, :V])[targets] of every row, and the logarithm of the sum of its exponentials, (N,) fp32.

    logits: (N, P), rows contiguous, in fp32 or narrower. A target (N,) outside [0, V) makes its loss NaN.
    """
    N, P = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    losses, normalizers = (logits.new_empty(N, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # unannotated
        _losses[(N,)](
            logits, targets.contiguous(), losses, normalizers, logits.stride(0), V, P, COLUMNS, num_warps=WARPS
        )
    return losses, normalizers


@row_losses.register_fake
def _(logits: Tensor, targets: Tensor, V: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits), dtype=torch.float32), logits.new_empty(len(logits), dtype=torch.float32)


@torch.library.custom_op("nanodescent::gradient_of_row_losses", mutates_args=())
def gradient_of_row_losses(logits: Tensor, targets: Tensor, normalizers: Tensor, scales: Tensor, V: int) -> Tensor:
    """(softmax - one-hot) scales[:, None], (N, P) in the dtype of the logits, with 0 from column V on."""
    N, P = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # unannotated
        _gradients[(N, triton.cdiv(P, COLUMNS))](
            logits,
            targets.contiguous(),
            normalizers,
            scales.contiguous(),
            gradient,
            logits.stride(0),
            V,
            P,
            COLUMNS,
            num_warps=WARPS,
        )
    return gradient


@gradient_of_row_losses.register_fake
def _(logits: Tensor, targets: Tensor, normalizers: Tensor, scales: Tensor, V: int) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    logits, targets, ctx.V = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, output[1])


def _backward(ctx: Any, scales: Tensor, of_normalizers: None) -> tuple[Tensor, None, None]:
    logits, targets, normalizers = ctx.saved_tensors
    return gradient_of_row_losses(logits, targets, normalizers, scales, ctx.V), None, None


row_losses.register_autograd(_backward, setup_context=_save)
