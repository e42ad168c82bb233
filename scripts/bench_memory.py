"""Bytes of optimizer state of every option of configs/optim for every size of model, and what papers say of them.

Declared, so nothing is allocated; with --allocate also really allocated, which must be as many.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from configs import FOLDER, compose, plug_in
from model import LanguageModel
from optim.memory import allocated_bytes, state_bytes
from report import numbers
from reproduce import claims
from scripts.bench_optim import model_settings
from scripts.benchmarking import report

SIZES = ["gpt2_small", "gpt2_medium", "gpt2_large", "llama_1b", "llama_7b"]


def run(arguments: argparse.Namespace) -> None:
    """Reports MB and bytes per parameter, then papers. Raises: RuntimeError: if other bytes are allocated."""
    models = {name: _on_meta(name) for name in arguments.model}
    if unknown := sorted(set(arguments.allocate) - models.keys()):
        raise ValueError(f"--allocate {unknown[0]} is none of the models of --model: {', '.join(models)}")
    rows, results = [], []
    for option in sorted(path.stem for path in (FOLDER / "optim").glob("*.yaml")):
        node = compose([f"optim={option}"]).optim
        row = {"optimizer": option}
        for name, model in models.items():
            parameters = dict(model.named_parameters())
            state = state_bytes(node, parameters, model.roles())
            if name in arguments.allocate:
                _check_allocated(option, name, node, parameters, model.roles(), state)
            n_parameters = sum(p.numel() for p in parameters.values())
            row[f"{name}, MB (B/param)"] = f"{state / 1e6:,.1f} ({state / n_parameters:.2f})"
            results.append({"optimizer": option, "model": name, "state_bytes": state, "parameters": n_parameters})
        rows.append(row)
    report("optimizer state", rows, results, arguments.json)
    report("what papers say", list(_claimed()), [], None)


def _check_allocated(
    option: str,
    size: str,
    node: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, str],
    declared: int,
) -> None:
    if (found := allocated_bytes(node, parameters, roles)) != declared:
        raise RuntimeError(f"{option} declares {declared:,} bytes of state for {size}, and takes {found:,}")


def _claimed() -> Any:
    """A row for every part of a claim that is about bytes of state."""
    for name in claims.names():
        claim = claims.load(name, claims.scales(name)[0])
        for measure in claim.kind.state_measures(claim):
            yield {
                "claim": name,
                "part": measure.label,
                "claimed": numbers.claimed(measure),
                "here": numbers.with_unit(numbers.estimate(measure), measure.unit),
                "verdict": measure.verdict or "",
            }


def _on_meta(name: str) -> LanguageModel:
    with torch.device("meta"):
        model: LanguageModel = plug_in(model_settings(name))
        return model


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py memory`."""
    command.add_argument("--model", nargs="+", default=SIZES)
    command.add_argument("--allocate", nargs="*", default=[], help="models whose state is also allocated, to compare")
