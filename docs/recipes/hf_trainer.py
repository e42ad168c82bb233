"""SOAP and Sophia in Hugging Face's Trainer: python docs/recipes/hf_trainer.py.

Needs nanodescent, transformers and accelerate. Prints the loss of a small GPT-2 before and after each.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

from nanodescent.optim import SOAP, CurvatureCallback, GaussNewtonBartlett, Sophia


def train_with_soap(model: GPT2LMHeadModel, arguments: TrainingArguments, dataset: Dataset) -> None:
    """Trains with SOAP."""
    optimizer = SOAP(model.parameters(), lr=3e-3)
    trainer = Trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, None))
    trainer.train()


def train_with_sophia(model: GPT2LMHeadModel, arguments: TrainingArguments, dataset: Dataset) -> None:
    """Trains with Sophia."""
    optimizer = Sophia(model.parameters(), lr=6e-4, curvature=GaussNewtonBartlett())
    trainer = Trainer(
        model,
        arguments,
        train_dataset=dataset,
        optimizers=(optimizer, None),
        callbacks=[CurvatureCallback()],
    )
    trainer.train()


class Alphabets(Dataset):
    """Sequences of tokens that count upwards: put your data in their place."""

    def __len__(self) -> int:
        return 320

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(12) + index) % 16
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    """Trains a new model with each."""
    for train in (train_with_soap, train_with_sophia):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=32, n_layer=1, n_head=2))
        batch = default_data_collator([Alphabets()[i] for i in range(4)])
        before = model(**batch).loss.item()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                max_steps=30,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            )
            train(model, arguments, Alphabets())
        print(f"{train.__name__}: {before:.3f} -> {model.eval()(**batch).loss.item():.3f}")


if __name__ == "__main__":
    main()
