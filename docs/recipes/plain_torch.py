"""SOAP and Sophia in a plain PyTorch loop: python docs/recipes/plain_torch.py, which needs nanodescent and torch alone.

Prints the loss of a small model before and after each.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanodescent.optim import SOAP, CurvaturePass, GaussNewtonBartlett, Sophia

Batch = tuple[Tensor, Tensor]


def train_with_adamw(model: nn.Module, batches: Iterator[Batch]) -> None:
    """Trains with torch's AdamW, to compare."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    for inputs, targets in batches:
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_with_soap(model: nn.Module, batches: Iterator[Batch]) -> None:
    """Trains with SOAP."""
    optimizer = SOAP(model.parameters(), lr=3e-3)
    for inputs, targets in batches:
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_with_sophia(model: nn.Module, batches: Iterator[Batch]) -> None:
    """Trains with Sophia."""
    optimizer = Sophia(model.parameters(), lr=6e-4, curvature=GaussNewtonBartlett())
    curvature = CurvaturePass(model, optimizer)
    for inputs, targets in batches:
        curvature.update((inputs, targets))
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


class Bigrams(nn.Module):
    """Logits of the next token from the current one: put your model in its place."""

    def __init__(self, vocab_size: int = 16, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits (B, T, V)."""
        logits: Tensor = self.head(F.gelu(self.embedding(inputs)))
        return logits


def alphabets(steps: int) -> Iterator[Batch]:
    """Batches of tokens that count upwards: put your data in their place."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = (torch.randint(16, (8, 1), generator=generator) + torch.arange(13)) % 16
        yield tokens[:, :-1], tokens[:, 1:]


def main() -> None:
    """Trains a new model with each."""
    for train in (train_with_adamw, train_with_soap, train_with_sophia):
        torch.manual_seed(0)
        model = Bigrams()
        (inputs, targets), losses = next(alphabets(1)), []
        for batches in (alphabets(0), alphabets(50)):
            train(model, batches)
            losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item())
        print(f"{train.__name__}: {losses[0]:.3f} -> {losses[1]:.3f}")


if __name__ == "__main__":
    main()
