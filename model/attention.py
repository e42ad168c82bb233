"""Causal self-attention; on a CPU in blocks of queries, where that is faster than torch's kernel."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256  # queries
LONGEST = 512  # tokens; beyond it there is nothing to gain, and the probabilities, which are kept, grow


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Returns softmax(scale q k^T) v, (B, H, T, D); with is_causal a query sees the keys up to its own.

    torch's scaled_dot_product_attention, but for bfloat16 on a CPU in eager mode, where its kernel computes the masked
    half too, without the matrix units of the processor: there it takes blocks of queries, each with the keys up to its
    last one, as plain products (docs/benchmarks.md). Scores are then rounded to bfloat16. No second derivative, as of
    torch's kernel; who asks for its math kernel (sdpa_kernel) gets it.
    """
    is_plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    is_allowed = torch._C._get_flash_sdp_enabled()  # on all devices
    if is_plain and is_allowed and is_causal and not dropout_p and q.shape == k.shape and 1 < q.shape[2] <= LONGEST:
        y: Tensor = _Blocked.apply(q, k, v, q.shape[3] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
        return y
    how: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return F.scaled_dot_product_attention(q, k, v, **how)


class _Blocked(torch.autograd.Function):
    """Keeps the probabilities of every block, (B H, queries, keys up to the last of them)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        B, H, T, D = q.shape
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.reshape(B * H, T, D) for x in (q * scale, k, v))
            y, probabilities = torch.empty_like(q), []
            later = torch.full((min(BLOCK, T),) * 2, -math.inf, dtype=q.dtype).triu(1)
            for first in range(0, T, BLOCK):
                last = min(first + BLOCK, T)
                scores = torch.bmm(q[:, first:last], k[:, :last].mT)
                scores[..., first:] += later[: last - first, : last - first]
                p = scores.softmax(-1)
                y[:, first:last] = torch.bmm(p, v[:, :last])
                probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.scale = scale
        return y.view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        shape = grad_output.shape
        with torch.autocast("cpu", enabled=False):
            grad = grad_output.reshape(q.shape)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for n, p in enumerate(probabilities):
                own, keys = slice(n * BLOCK, n * BLOCK + p.shape[1]), slice(p.shape[2])
                dv[:, keys] += torch.bmm(p.mT, grad[:, own])
                dp = torch.bmm(grad[:, own], v[:, keys].mT)
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
                dq[:, own] = torch.bmm(ds, k[:, keys])
                dk[:, keys] += torch.bmm(ds.mT, q[:, own])
        return (dq * ctx.scale).view(shape), dk.view(shape), dv.view(shape), None
