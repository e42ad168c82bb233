"""LLaMA (Touvron et al. 2023, arXiv:2302.13971): RMS norms, rotary positions, a gated MLP, no biases.

Parameter names are those of Meta's code (tok_embeddings, layers.0.attention.wq, ..., norm, output), linear weights lie
(out, in).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from model.attention import attention
from model.base import LanguageModel, require_multiple, require_positive, widened
from model.cache import Attend, Cache
from model.embedding import Embedding


class RMSNorm(nn.Module):
    """x / RMS(x) * weight (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4). (..., C) to (..., C)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    @override
    def forward(self, x: Tensor) -> Tensor:
        weight = widened(self.weight, x)
        assert weight is not None
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps)


def rotations(T: int, D: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines (T, D / 2), fp32, of the angles m * base^(-2i/D) for position m and pair i.

    Su et al. 2021, arXiv:2104.09864, equation 15. like: a tensor on the device.
    """
    frequency = base ** (torch.arange(0, D, 2, device=like.device, dtype=torch.float32) / -D)
    angle = torch.arange(T, device=like.device, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (B, T, H, D) with its pairs (x_2i, x_2i+1) rotated (equation 34), in x's dtype."""
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, T, H, D / 2)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, D / 2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention; keys and values of n_kv_head heads serve several queries each (GQA)."""

    def __init__(self, n_embd: int, n_head: int, n_kv_head: int) -> None:
        super().__init__()
        self.D = n_embd // n_head
        self.wq = nn.Linear(n_embd, n_head * self.D, bias=False)
        self.wk = nn.Linear(n_embd, n_kv_head * self.D, bias=False)
        self.wv = nn.Linear(n_embd, n_kv_head * self.D, bias=False)
        self.wo = nn.Linear(n_head * self.D, n_embd, bias=False)

    @override
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend = attention) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.D)) for w in (self.wq, self.wk, self.wv))  # (B, T, H, D)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = attend(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape != k.shape
        )  # (B, H, T, D)
        out: Tensor = self.wo(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202, equation 6). (B, T, C) to (B, T, C)."""

    def __init__(self, n_embd: int, n_hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(n_embd, n_hidden, bias=False)  # gate
        self.w3 = nn.Linear(n_embd, n_hidden, bias=False)
        self.w2 = nn.Linear(n_hidden, n_embd, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y


class Block(nn.Module):
    """Attention and feed-forward network, each behind a norm and added to the residual stream."""

    def __init__(self, n_embd: int, attention: Attention, feed_forward: FeedForward, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(n_embd, norm_eps)
        self.attention = attention
        self.ffn_norm = RMSNorm(n_embd, norm_eps)
        self.feed_forward = feed_forward

    @override
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend = attention) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        y: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return y


class Llama(LanguageModel):
    """LLaMA's architecture, with grouped queries and a tied head as later versions have them.

    n_kv_head: heads of keys and values; null: as many as n_head. n_hidden: width of the MLP; null: 8/3 n_embd, rounded
    up to a multiple of 64. rope_base: theta of the rotary positions.
    Differs from Meta's code: weights start as N(0, 0.02), those that write to the residual stream 1/sqrt(2 n_layer) of
    that, as GPT-2's, since the paper does not say how.

    Raises: ValueError: if the numbers do not fit together.
    """

    role_of: ClassVar = {"tok_embeddings": "embedding", "output": "head"}
    residual: ClassVar = ("wo.weight", "w2.weight")

    def __init__(
        self,
        *,
        n_layer: int,
        n_head: int,
        n_embd: int,
        block_size: int,
        vocab_size: int | None = None,
        n_kv_head: int | None = None,
        n_hidden: int | None = None,
        tied_head: bool = False,
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
        vocab_multiple: int = 64,
        bf16_residual: bool = False,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            block_size=block_size,
            n_embd=n_embd,
            vocab_multiple=vocab_multiple,
            bf16_residual=bf16_residual,
        )
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        n_hidden = -(-8 * n_embd // 3 // 64) * 64 if n_hidden is None else n_hidden
        _check(n_layer, n_head, n_kv_head, n_embd, n_hidden, rope_base, norm_eps)
        self.D, self.rope_base = n_embd // n_head, rope_base
        self.tok_embeddings = Embedding(self.padded_vocab_size, n_embd, is_tied=tied_head)
        self.layers = nn.ModuleList(
            Block(n_embd, Attention(n_embd, n_head, n_kv_head), FeedForward(n_embd, n_hidden), norm_eps)
            for _ in range(n_layer)
        )
        self.norm = RMSNorm(n_embd, norm_eps)
        self.output = nn.Linear(n_embd, self.padded_vocab_size, bias=False)
        if tied_head:
            self.output.weight = self.tok_embeddings.weight
        self.reset_parameters()

    @property
    @override
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    @override
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.stream(self.tok_embeddings(tokens))
        cos, sin = rotations(tokens.shape[1], self.D, self.rope_base, x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.logits_or_loss(self.output(self.norm(x)), targets)

    @override
    def forward_cached(self, tokens: Tensor, cache: Cache) -> Tensor:
        start = cache.length
        x = self.stream(self.tok_embeddings(tokens))
        cos, sin = (each[start:] for each in rotations(start + tokens.shape[1], self.D, self.rope_base, x))
        for layer, attend in zip(self.layers, cache.layers, strict=True):
            x = layer(x, cos, sin, attend)
        return self.logits_or_loss(self.output(self.norm(x[:, -1])), None)


def _check(
    n_layer: int, n_head: int, n_kv_head: int, n_embd: int, n_hidden: int, rope_base: float, norm_eps: float
) -> None:
    require_positive(n_layer=n_layer, n_head=n_head, n_kv_head=n_kv_head, n_embd=n_embd, n_hidden=n_hidden)
    require_multiple(n_embd, n_head)
    if n_embd // n_head % 2:
        raise ValueError(f"model.n_embd={n_embd} / model.n_head={n_head} must be even: rotary positions rotate pairs")
    if n_head % n_kv_head:
        raise ValueError(f"model.n_head={n_head} must be a multiple of model.n_kv_head={n_kv_head}")
    for name, value in (("rope_base", rope_base), ("norm_eps", norm_eps)):
        if not value > 0:
            raise ValueError(f"model.{name}={value} must be > 0")
