"""Bytes of optimizer state of every option of configs/optim for every size of model, without allocating it."""

import argparse

import torch

from configs import FOLDER, compose, plug_in
from model import LanguageModel
from optim.memory import state_bytes
from scripts.bench_optim import model_settings
from scripts.benchmarking import report


def run(arguments: argparse.Namespace) -> None:
    """Reports MB and bytes per parameter."""
    rows, results = [], []
    models = {name: _on_meta(name) for name in arguments.model}
    for option in sorted(path.stem for path in (FOLDER / "optim").glob("*.yaml")):
        node = compose([f"optim={option}"]).optim
        row = {"optimizer": option}
        for name, model in models.items():
            parameters = dict(model.named_parameters())
            state, n_parameters = (
                state_bytes(node, parameters, model.roles()),
                sum(p.numel() for p in parameters.values()),
            )
            row[f"{name}, MB (B/param)"] = f"{state / 1e6:,.1f} ({state / n_parameters:.2f})"
            results.append({"optimizer": option, "model": name, "state_bytes": state, "parameters": n_parameters})
        rows.append(row)
    report("optimizer state", rows, results, arguments.json)


def _on_meta(name: str) -> LanguageModel:
    with torch.device("meta"):
        model: LanguageModel = plug_in(model_settings(name))
        return model


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py memory`."""
    command.add_argument("--model", nargs="+", default=["gpt2_small", "gpt2_medium", "gpt2_large"])
