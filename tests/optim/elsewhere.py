"""Runs the examples of docs/optimizers.md where only nanodescent.optim is installed.

Of each it prints a line: its name, "real" or "stand-in", and a loss before and after. Where Hugging Face's Trainer
(which needs accelerate) or Lightning is not installed, a stand-in calls the optimizer as the framework does: Trainer
under a LambdaLR that it makes itself, Lightning by step(closure).
"""

import re
import sys
import types
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import nanodescent.optim

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall("```python\n(.*?)```", (ROOT / "docs" / "optimizers.md").read_text("utf-8"), re.S)
EXAMPLES = dict(zip(("plain", "trainer", "lightning"), BLOCKS, strict=True))


class Net(nn.Module):
    """Returns a loss first, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (nn.functional.mse_loss(self.linear(x), labels),)


def batches(n: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(n, 2, 4, generator=generator)
    return [{"x": x, "labels": x[:, :3] + 1} for x in xs]


def run(example: str, names: dict[str, Any]) -> dict[str, Any]:
    names |= {"nanodescent": nanodescent}
    exec(compile(EXAMPLES[example], f"docs/optimizers.md, {example}", "exec"), names)
    return names


def plain(model: Net) -> str:
    run("plain", {"model": model, "batches": batches(), "loss_of": lambda m, batch: m(**batch)[0]})
    return "real"


class TrainerStandIn:
    def __init__(self, model: Net, args: Any, train_dataset: Any, optimizers: tuple[Any, None]) -> None:
        self.model, self.data, self.optimizer = model, train_dataset, optimizers[0]
        self.scheduler = LambdaLR(self.optimizer, lambda step: 1 - step / len(self.data))

    def train(self) -> None:
        for item in self.data:
            self.model(item["x"][None], item["labels"][None])[0].backward()
            self.optimizer.step()
            self.scheduler.step()
            self.model.zero_grad()


def trainer(model: Net) -> str:
    is_real = find_spec("transformers") is not None and find_spec("accelerate") is not None
    if is_real:
        from transformers import TrainingArguments

        arguments: Any = TrainingArguments(
            "unused", num_train_epochs=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
        )
    else:
        arguments = None
        stand_in: Any = types.ModuleType("transformers")
        stand_in.Trainer = TrainerStandIn
        sys.modules["transformers"] = stand_in
    data = [{name: tensor[0] for name, tensor in batch.items()} for batch in batches(16)]
    run("trainer", {"model": model, "dataset": data, "arguments": arguments})
    return "real" if is_real else "stand-in"


def fit_with_stand_in(module: Any, data: Iterable[dict[str, Tensor]]) -> None:
    optimizer = module.configure_optimizers()
    for index, batch in enumerate(data):

        def closure(batch: dict[str, Tensor] = batch, index: int = index) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = module.training_step(batch, index)
            loss.backward()
            return loss

        optimizer.step(closure)


def lightning(model: Net) -> str:
    is_real = find_spec("lightning") is not None
    fit: Callable[[Any, Any], None] = fit_with_stand_in
    parent: Any = nn.Module
    if is_real:
        from lightning import LightningModule, Trainer

        quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        fit = Trainer(max_epochs=1, accelerator="cpu", **quiet).fit
        parent = LightningModule

    class Base(parent):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(**batch)[0]
            return loss

    data: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]  # a list is a data set
    fit(run("lightning", {"Base": Base})["Module"](), data)
    return "real" if is_real else "stand-in"


def loss(model: Net) -> float:
    return model(**batches()[0])[0].item()


if __name__ == "__main__":
    for example, train in {"plain": plain, "trainer": trainer, "lightning": lightning}.items():
        net = Net()
        before = loss(net)
        print(example, train(net), before, loss(net))
