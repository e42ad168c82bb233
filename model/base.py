"""LanguageModel, the interface of every architecture; a new one is a file beside this one and its YAMLs.

An option of the group model names the class and its arguments (`_target_: model.GPT`). The run adds vocab_size, the
number of token ids of the data, unless the option sets it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.cache import Cache
from model.generation import Sampling, stream
from model.loss import cross_entropy

INIT_STD = 0.02


class LanguageModel(nn.Module, ABC):
    """A decoder-only transformer, initialised from torch's global generator; it has no buffers.

    vocab_size counts real token ids; embedding and head have padded_vocab_size rows, a multiple of vocab_multiple, for
    which matrix kernels are faster. block_size: the longest sequence, in tokens. bf16_residual: whether the residual
    stream is bfloat16 in runs of precision=bf16, where otherwise only what is added to it is; norms still sum in fp32.

    Raises: ValueError: if a number is out of range.
    """

    role_of: ClassVar[Mapping[str, str]]  # by module: "embedding" or "head"; the others have matrices and vectors
    residual: ClassVar[tuple[str, ...]]  # ends of the names of weights that write to the residual stream

    def __init__(
        self, *, vocab_size: int | None, block_size: int, n_embd: int, vocab_multiple: int, bf16_residual: bool
    ) -> None:
        super().__init__()
        if vocab_size is None:
            raise ValueError("model.vocab_size is missing: pass the number of token ids of the data")
        require_positive(vocab_size=vocab_size, block_size=block_size, vocab_multiple=vocab_multiple)
        self.vocab_size, self.block_size, self.n_embd = vocab_size, block_size, n_embd
        self.padded_vocab_size = -(-vocab_size // vocab_multiple) * vocab_multiple
        self.bf16_residual = bf16_residual

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are alike, in order: each is sharded, compiled and recomputed by itself."""

    def roles(self) -> dict[str, str]:
        """Returns the role of each parameter, by name: "embedding" (also a tied head), "matrix", "head" or "vector"."""
        return {
            name: self.role_of.get(name.split(".")[0], "matrix" if parameter.ndim == 2 else "vector")
            for name, parameter in self.named_parameters()
        }

    def forward_flops_per_token(self, seq_len: int | None = None) -> int:
        """Returns the FLOPs per token of the forward pass, as flops.py counts. seq_len: None means block_size."""
        T, C = seq_len or self.block_size, self.n_embd
        in_blocks = sum(p.numel() for block in self.blocks for p in block.parameters() if p.ndim == 2)
        scores_and_values = len(self.blocks) * 2 * T * C
        return 2 * (in_blocks + C * self.padded_vocab_size + scores_and_values)

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), residual projections 1/sqrt(2 n_layer) of that, biases 0, gains 1."""
        residual_std = INIT_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=residual_std if name.endswith(self.residual) else INIT_STD)

    @abstractmethod
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Returns logits (B, T, vocab_size) for tokens (B, T) int64, or with targets (B, T) the mean cross entropy.

        The loss is in nats per token, fp32 or wider; it need not have a second derivative (loss.py), while the logits
        have one. Padded rows of the head affect neither.
        """

    def stream(self, x: Tensor) -> Tensor:
        """Returns embedded tokens (B, T, C) as the blocks add to them; see bf16_residual."""
        device = x.device.type
        is_narrowed = self.bf16_residual and torch.is_autocast_enabled(device)
        return x.to(torch.get_autocast_dtype(device)) if is_narrowed else x

    def logits_or_loss(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """Returns what forward() does, from the head's output (B, T, padded_vocab_size), which may change in place."""
        V = self.vocab_size
        if targets is None:
            return logits if logits.shape[-1] == V else logits[..., :V]
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), V)

    def forward_cached(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Returns the logits (B, vocab_size) of what follows tokens (B, T), which follow those in the cache.

        The logits are those of forward(), to rounding. An architecture that does not define it generates without.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward_cached")

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns tokens (B, T) int64 followed by max_new_tokens sampled ones; see generation.py."""
        sampling = Sampling(temperature, top_k, top_p)
        return torch.cat([tokens, *stream(self, tokens, max_new_tokens, sampling, generator=generator)], dim=1)


def require_positive(**sizes: int) -> None:
    """Checks that all sizes are at least 1. Raises: ValueError: if one is not."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"model.{name}={size} must be >= 1")


def require_multiple(n_embd: int, n_head: int) -> None:
    """Checks that n_embd is a multiple of n_head. Raises: ValueError: if it is not."""
    if n_embd % n_head:
        below = n_embd // n_head * n_head
        nearest = " or ".join(str(n) for n in (below, below + n_head) if n)
        raise ValueError(f"model.n_embd={n_embd} must be a multiple of model.n_head={n_head}; nearest: {nearest}")


def widened(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Returns the parameter in a dtype as wide as that of its input x: a sharded one may be gathered in bf16."""
    return None if parameter is None else parameter.to(torch.promote_types(parameter.dtype, x.dtype))
