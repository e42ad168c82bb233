"""Draws tokens from a model: how the next one is chosen, and one after the other.

With a cache (cache.py) a token costs one pass of that token alone; without, a pass of all tokens before it. Both give
the same logits to rounding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.cache import Cache

if TYPE_CHECKING:
    from model.base import LanguageModel

LEAST_TOP_P = 1e-30  # smaller ones are 0 in fp32, and would take none
HOTTEST = 1e30  # temperatures above are as this one, which makes all tokens alike; fp32 has none above 3e38
GREEDY_BELOW = 1e-20  # temperatures below take the likeliest token; fp32 logits divided by them would overflow


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits.

    temperature: divides the logits; 0 takes the likeliest token. top_k: draws among the k likeliest; None: among all.
    top_p: among the fewest likeliest ones whose probabilities, after temperature and top_k, add up to top_p or more
    (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751); None: among all.

    Raises: ValueError: if a number is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be >= 0 and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be >= 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be > 0 and at most 1")

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns one token per sequence, (B, 1) int64, from logits (B, V)."""
        if self.temperature < GREEDY_BELOW:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns with what probability each token is drawn, (B, V), for a temperature above 0; not normalised."""
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        found = (logits / min(self.temperature, HOTTEST)).softmax(-1)
        if self.top_p is None:
            return found
        ordered, tokens = found.sort(-1, descending=True)
        of_likelier = ordered.cumsum(-1) - ordered
        return torch.zeros_like(found).scatter(-1, tokens, ordered * (of_likelier < max(self.top_p, LEAST_TOP_P)))


@torch.no_grad()
def stream(
    model: "LanguageModel",
    tokens: Tensor,
    n: int,
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yields the n tokens (B, 1) int64 that follow tokens (B, T), each drawn from the last block_size tokens.

    Dropout is off until the last one is drawn. use_cache: where the model has one. A sequence that outgrows block_size
    is computed without: its tokens move to other positions. Nor does a single token need one, so a sharded model,
    which can only be called, gives its tokens one by one.
    """
    was_training, new = model.training, tokens
    model.eval()
    cache = None
    if use_cache and has_cache(model) and n > 1:
        cache = Cache(len(model.blocks), min(tokens.shape[1] + n - 1, model.block_size))
    try:
        for _ in range(n):
            if cache is not None and tokens.shape[1] <= model.block_size:
                logits = model.forward_cached(new, cache)
            else:
                logits = model(tokens[:, -model.block_size :])[:, -1]
            new = sampling.draw(logits.float(), generator)
            tokens = torch.cat([tokens, new], dim=1)
            yield new
    finally:
        model.train(was_training)


def has_cache(model: torch.nn.Module) -> bool:
    """Whether a model has forward_cached from the class that its forward is from: else they may differ."""
    owner = next(each for each in type(model).__mro__ if "forward" in vars(each))
    return "forward_cached" in vars(owner)
