"""The key-value cache of generation: a token passes through the model once, not again with each token after it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[..., Tensor]  # attention.attention, or a LayerCache in its place


class LayerCache:
    """Causal attention of new tokens to themselves and to all before them, whose keys and values it keeps.

    A block calls it as F.scaled_dot_product_attention. The tokens of the first call may be several, those of later
    calls come one at a time. capacity: how many tokens there is memory for, in all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._keys = self._values = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **options: Any) -> Tensor:
        """Returns what F.scaled_dot_product_attention would for the new queries, (B, H, new tokens, D)."""
        start, end = self.length, self.length + k.shape[2]
        if start and end - start > 1:
            raise ValueError(f"after its first call a cache takes one token at a time, got {end - start}")
        if end > self.capacity:
            raise ValueError(f"a cache for {self.capacity} tokens got {end}")
        if not start:
            B, H, _, D = k.shape
            self._keys, self._values = (each.new_empty(B, H, self.capacity, D) for each in (k, v))
        self._keys[:, :, start:end], self._values[:, :, start:end] = k, v
        self.length = end
        keys, values = self._keys[:, :, :end], self._values[:, :, :end]  # (B, H, all tokens, D)
        return F.scaled_dot_product_attention(q, keys, values, is_causal=is_causal and not start, **options)


class Cache:
    """The keys and values of a batch of sequences, layer by layer. capacity: tokens per sequence."""

    def __init__(self, n_layer: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """How many tokens per sequence have passed through the model, which is the position of the next one."""
        return self.layers[0].length
