"""The loss of a model on text.

The tokens are divided into windows of block_size that do not overlap. Every token but the very first is predicted once,
from those before it in its window. Of a mixture so is each part, and all tokens count alike, whatever the part's share.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import Batch, eval_batches
from data.loader import Tokens
from evaluation.errors import EvaluationError
from model import LanguageModel
from trainer.metrics import bits_per_byte

Autocast = Callable[[], AbstractContextManager[Any]]  # the context of a forward pass


@dataclass(frozen=True)
class TextLoss:
    """The loss over all predicted tokens. nats: their sum. n_bytes: of text, so none for the ends of documents."""

    nats: float
    n_tokens: int
    n_bytes: int

    def numbers(self) -> dict[str, float | None]:
        """Returns the loss per token and per byte, and what it was measured on, by name."""
        per_token = self.nats / self.n_tokens
        return {
            "nats_per_token": per_token,
            "perplexity": math.exp(per_token) if per_token < 700 else math.inf,  # where exp overflows
            "bits_per_byte": bits_per_byte(per_token, self.n_bytes / self.n_tokens),
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
        }


@torch.no_grad()
def text_loss(
    model: LanguageModel,
    tokens: Tokens,
    byte_lengths: np.ndarray,
    *,
    n_sequences: int | None,
    micro_batch: int,
    autocast: Autocast,
) -> TextLoss:
    """Returns the loss on tokens. byte_lengths: of each id, see Tokenizer.byte_lengths.

    n_sequences: of windows, spread evenly, as the evaluation of a training run takes them; None: all, the last one of
    each part as long as its tokens last.

    Raises: DataError: if there are fewer windows. EvaluationError: if there is nothing to predict.
    """
    if all(part.n_tokens < 2 for part in tokens.parts):
        raise EvaluationError(f"{tokens.path} has {tokens.n_tokens} tokens; it takes two to predict one")
    nats, n_tokens, n_bytes = [], 0, 0
    for batch in _batches(tokens, model, n_sequences, micro_batch):
        with autocast():
            mean = model(batch.inputs, batch.targets)
        nats.append(float(mean) * batch.targets.numel())
        n_tokens += batch.targets.numel()
        n_bytes += int(byte_lengths[batch.targets.cpu().numpy()].sum())
    return TextLoss(math.fsum(nats), n_tokens, n_bytes)


def _batches(tokens: Tokens, model: LanguageModel, n_sequences: int | None, micro_batch: int) -> Iterator[Batch]:
    device, seq_len = next(model.parameters()).device, model.block_size
    if n_sequences is not None:
        yield from eval_batches(
            tokens, seq_len=seq_len, n_sequences=n_sequences, micro_batch=micro_batch, device=device
        )
        return
    first = 0
    for part in tokens.parts:
        n_windows, rest = divmod(part.n_tokens - 1, seq_len)
        places = first + np.arange(n_windows) * seq_len
        for start in range(0, n_windows, micro_batch):
            yield _batch(tokens, places[start : start + micro_batch], seq_len, device)
        if rest:
            yield _batch(tokens, np.array([first + n_windows * seq_len]), rest, device)
        first += part.n_tokens


def _batch(tokens: Tokens, places: np.ndarray, length: int, device: torch.device) -> Batch:
    windows = torch.from_numpy(tokens.read(places, length + 1)).to(device)
    return Batch(windows[:, :-1], windows[:, 1:], range(len(places)))
