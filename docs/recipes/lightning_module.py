"""SOAP and Sophia in Lightning: python docs/recipes/lightning_module.py.

Needs nanodescent and lightning. Prints the loss of a small model before and after each.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from nanodescent.optim import SOAP, CurvaturePass, GaussNewtonBartlett, Sophia

Batch = tuple[Tensor, Tensor]


class WithSoap(LightningModule):
    """Trains a model with SOAP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Returns the loss."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Makes the optimizer."""
        return SOAP(self.parameters(), lr=3e-3)


class WithSophia(WithSoap):
    """Trains a model with Sophia."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Makes the optimizer."""
        optimizer = Sophia(self.parameters(), lr=6e-4, curvature=GaussNewtonBartlett())
        self.curvature = CurvaturePass(self.model, optimizer)
        return optimizer

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Estimates the curvature when that is due."""
        self.curvature.update(batch)


class Bigrams(nn.Module):
    """Logits of the next token from the current one: put your model in its place."""

    def __init__(self, vocab_size: int = 16, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits (B, T, V)."""
        logits: Tensor = self.head(F.gelu(self.embedding(inputs)))
        return logits


class Alphabets(IterableDataset[Batch]):
    """Batches of tokens that count upwards: put your data in their place."""

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        for _ in range(50):
            tokens = (torch.randint(16, (8, 1), generator=generator) + torch.arange(13)) % 16
            yield tokens[:, :-1], tokens[:, 1:]


def main() -> None:
    """Trains a new model with each."""
    for kind in (WithSoap, WithSophia):
        torch.manual_seed(0)
        module = kind(Bigrams())
        batch = next(iter(Alphabets()))
        before = module.training_step(batch, 0).item()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Alphabets(), batch_size=None))
        print(f"{kind.__name__}: {before:.3f} -> {module.training_step(batch, 0).item():.3f}")


if __name__ == "__main__":
    main()
