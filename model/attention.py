"""Causal self-attention; on a CPU in blocks of queries, where that is faster than torch's kernel."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256  # queries
LONGEST = 512  # tokens; beyond it the gain is small, and the probabilities, which are kept, grow


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

    torch's scaled_dot_product_attention, but for causal bfloat16 of at most LONGEST tokens on a CPU in eager mode,
    without dropout. There torch's kernel computes the masked half too, without the matrix units of the processor;
    plain products of blocks of queries, each with the keys up to its last one, are faster (docs/benchmarks.md). Their
    scores are rounded to bfloat16. No second derivative, as of torch's kernel; who asks for its math kernel
    (sdpa_kernel) gets that.
    """
    is_plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    is_allowed = torch._C._get_flash_sdp_enabled()  # one flag for all devices; sdpa_kernel sets it
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
            later = torch.full((min(BLOCK, T),) * 2, -math.inf, dtype=q.dtype).triu(1)
            outputs, probabilities = [], []
            for first in range(0, T, BLOCK):
                last = min(first + BLOCK, T)
                scores = torch.bmm(q[:, first:last], k[:, :last].mT)
                scores[..., first:] += later[: last - first, : last - first]
                p = torch.softmax(scores, -1, out=scores)
                outputs.append(torch.bmm(p, v[:, :last]))
                probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.scale = scale
        return _joined(outputs).view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        shape = grad_output.shape
        with torch.autocast("cpu", enabled=False):
            grad = grad_output.reshape(q.shape)
            dqs: list[Tensor] = []
            for n, p in reversed(list(enumerate(probabilities))):  # the last one first, which sees all keys
                own, keys = slice(n * BLOCK, n * BLOCK + p.shape[1]), slice(p.shape[2])
                dp = torch.bmm(grad[:, own], v[:, keys].mT)
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=dp)
                dqs.insert(0, torch.bmm(ds, k[:, keys]))
                dk_part, dv_part = torch.bmm(ds.mT, q[:, own]), torch.bmm(p.mT, grad[:, own])
                if p.shape[2] == k.shape[1]:
                    dk, dv = dk_part, dv_part
                else:
                    dk[:, keys] += dk_part
                    dv[:, keys] += dv_part
        return (_joined(dqs) * ctx.scale).view(shape), dk.view(shape), dv.view(shape), None


def _joined(blocks: list[Tensor]) -> Tensor:
    """The blocks of queries as one tensor."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
