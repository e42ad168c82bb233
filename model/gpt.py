"""GPT-2 (Radford et al. 2019): a decoder-only transformer with pre-norm blocks and learned positions.

Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn, ..., ln_f), linear weights lie (out, in). Only parameters are
state: there are no buffers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPTConfig
from model.loss import cross_entropy

INIT_STD = 0.02


class LayerNorm(nn.LayerNorm):
    """torch's, for parameters narrower than the input too: cut across ranks they may travel in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        weight, bias = (
            None if p is None else p.to(torch.promote_types(p.dtype, x.dtype)) for p in (self.weight, self.bias)
        )
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    """Causal multi-head self-attention; one matrix makes queries, keys and values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        C, D = config.n_embd, config.n_embd // config.n_head
        self.n_head, self.dropout = config.n_head, config.dropout
        self.scale = 1 / math.sqrt(D) / (layer + 1 if config.scale_attn_by_inverse_layer_idx else 1)
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias)
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.q_norm = LayerNorm(D, bias=config.bias) if config.qk_norm else nn.Identity()
        self.k_norm = LayerNorm(D, bias=config.bias) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head) for part in self.c_attn(x).split(C, 2)
        )  # (B, T, H, D)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout, is_causal=True, scale=self.scale
        )  # (B, H, T, D)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout, self.approximate = config.dropout, "tanh" if config.gelu == "tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)), self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class GPT(nn.Module):
    """GPT-2 with the options of its config, freshly initialised from torch's global generator."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.wte.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), residual projections 1/sqrt(2 n_layer) of that, biases 0, gains 1."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=residual_std if name.endswith("c_proj.weight") else INIT_STD)

    def roles(self) -> dict[str, str]:
        """What each parameter is, by name: "embedding" (a tied head too), "matrix", "head" or "vector"."""
        return {name: _role(name, parameter) for name, parameter in self.named_parameters()}

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab_size) for tokens (B, T) int64; with targets (B, T) the mean cross entropy, fp32 or wider.

        The loss is in nats per token, and has no second derivative on a CPU (loss.py); that of the logits has. Padded
        rows of the head take no part in either.
        """
        T, V = tokens.shape[1], self.config.vocab_size
        x = self.wte(tokens) + self.wpe.weight[:T]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x)
        logits: Tensor = self.head(self.ln_f(x))
        if targets is None:
            return logits if logits.shape[-1] == V else logits[..., :V]
        if logits.shape[-1] > V:
            logits[..., V:] = -math.inf
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 and max_new_tokens sampled ones after them; sees the last block_size tokens only.

        temperature 0 takes the likeliest token; top_k samples among the k likeliest. Dropout is off.
        """
        was_training = self.training
        self.eval()
        for _ in range(max_new_tokens):
            logits = self(tokens[:, -self.config.block_size :])[:, -1].float()  # (B, V)
            tokens = torch.cat([tokens, _sampled(logits, temperature, top_k, generator)], dim=1)
        self.train(was_training)
        return tokens


def _sampled(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token per row, (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def _role(name: str, parameter: nn.Parameter) -> str:
    module = name.split(".")[0]
    if module in ("wte", "wpe"):
        return "embedding"
    if module == "head":
        return "head"
    return "matrix" if parameter.ndim == 2 else "vector"
