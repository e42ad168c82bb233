"""GPT-2 (Radford et al. 2019): a decoder-only transformer with pre-norm blocks and learned positions.

Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn, ..., ln_f), linear weights lie (out, in).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from model.attention import attention
from model.base import LanguageModel, require_multiple, require_positive, widened
from model.cache import Attend, Cache
from model.embedding import Embedding


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, also for parameters in a narrower dtype than the input."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, widened(self.weight, x), widened(self.bias, x), self.eps)


class Attention(nn.Module):
    """Causal multi-head self-attention; one matrix computes queries, keys and values. (B, T, C) to (B, T, C)."""

    def __init__(
        self, n_embd: int, n_head: int, *, bias: bool, dropout: float, qk_norm: bool, divide_scores_by: int
    ) -> None:
        super().__init__()
        C, D = n_embd, n_embd // n_head
        self.n_head, self.dropout = n_head, dropout
        self.scale = 1 / math.sqrt(D) / divide_scores_by
        self.c_attn = nn.Linear(C, 3 * C, bias=bias)
        self.c_proj = nn.Linear(C, C, bias=bias)
        self.q_norm = LayerNorm(D, bias=bias) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(D, bias=bias) if qk_norm else nn.Identity()

    @override
    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head) for part in self.c_attn(x).split(C, 2)
        )  # (B, T, H, D)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        dropout = self.dropout if self.training else 0.0
        y = attend(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout, is_causal=True, scale=self.scale
        )  # (B, H, T, D)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers around a GELU. (B, T, C) to (B, T, C)."""

    def __init__(self, n_embd: int, *, bias: bool, dropout: float, gelu: str) -> None:
        super().__init__()
        self.dropout, self.approximate = dropout, "tanh" if gelu == "tanh" else "none"
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream. (B, T, C) to (B, T, C)."""

    def __init__(self, n_embd: int, attn: Attention, mlp: MLP, *, bias: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(n_embd, bias=bias)
        self.attn = attn
        self.ln_2 = LayerNorm(n_embd, bias=bias)
        self.mlp = mlp

    @override
    def forward(self, x: Tensor, attend: Attend = attention) -> Tensor:
        x = x + self.attn(self.ln_1(x), attend)
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class GPT(LanguageModel):
    """GPT-2, with options for what papers vary.

    bias: of linear layers and layer norms. tied_head: the head is the token embedding.
    scale_attn_by_inverse_layer_idx: layer i's scores are divided by i + 1, as in Mistral's GPT-2. gelu: "tanh", GPT-2's
    approximation, or "erf", the exact one, nanoGPT's, 2.5 times faster on a CPU. qk_norm: layer norm of queries and
    keys (Dehghani et al. 2023, arXiv:2302.05442).

    Raises: ValueError: if the numbers do not fit together.
    """

    role_of: ClassVar = {"wte": "embedding", "wpe": "embedding", "head": "head"}
    residual: ClassVar = ("c_proj.weight",)

    def __init__(
        self,
        *,
        n_layer: int,
        n_head: int,
        n_embd: int,
        block_size: int,
        vocab_size: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        tied_head: bool = True,
        scale_attn_by_inverse_layer_idx: bool = False,
        gelu: str = "tanh",
        qk_norm: bool = False,
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
        _check(n_layer, n_head, n_embd, dropout, gelu)
        self.dropout = dropout
        self.wte = Embedding(self.padded_vocab_size, n_embd, is_tied=tied_head)
        self.wpe = nn.Embedding(block_size, n_embd)
        of_attention: dict[str, Any] = {"bias": bias, "dropout": dropout, "qk_norm": qk_norm}

        def block(layer: int) -> Block:
            divisor = layer + 1 if scale_attn_by_inverse_layer_idx else 1
            attn = Attention(n_embd, n_head, divide_scores_by=divisor, **of_attention)
            return Block(n_embd, attn, MLP(n_embd, bias=bias, dropout=dropout, gelu=gelu), bias=bias)

        self.h = nn.ModuleList(map(block, range(n_layer)))  # one by one: a foreign configuration may ask for any number
        self.ln_f = LayerNorm(n_embd, bias=bias)
        self.head = nn.Linear(n_embd, self.padded_vocab_size, bias=False)
        if tied_head:
            self.head.weight = self.wte.weight
        self.reset_parameters()

    @property
    @override
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.h)

    @override
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.stream(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return self.logits_or_loss(self.head(self.ln_f(x)), targets)

    @override
    def forward_cached(self, tokens: Tensor, cache: Cache) -> Tensor:
        start = cache.length
        x = self.stream(self.wte(tokens) + self.wpe.weight[start : start + tokens.shape[1]])
        for block, attend in zip(self.h, cache.layers, strict=True):
            x = block(x, attend)
        return self.logits_or_loss(self.head(self.ln_f(x[:, -1])), None)


def _check(n_layer: int, n_head: int, n_embd: int, dropout: float, gelu: str) -> None:
    require_positive(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    if not 0 <= dropout < 1:
        raise ValueError(f"model.dropout={dropout} must lie in [0, 1)")
    if gelu not in ("tanh", "erf"):
        raise ValueError(f"model.gelu={gelu!r} must be tanh or erf")
    require_multiple(n_embd, n_head)
