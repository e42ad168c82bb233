"""ms of a step of many small matrices, where the work per tensor matters more than the work per number.

Compared with torch's AdamW and Adafactor, whose foreach implementations launch one kernel for all tensors. An optimizer
is an option of configs/optim or a class in a file, as for bench.py optim; all matrices have the role matrix.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from scripts.bench_optim import optimizer_node, optimizer_of
from scripts.benchmarking import SCRIPT, Round, a_count, in_words, interleaved, median_and_spread, report
from trainer import environment

PEERS = {
    f"torch {name}, foreach": {"_target_": f"torch.optim.{name}", "lr": 1e-4, "foreach": True}
    for name in ("AdamW", "Adafactor")
}


def make_round(settings: Mapping[str, Any]) -> Round:
    """Returns a function that does `steps` steps of an optimizer with fixed gradients."""
    device, side = environment.pick_device("auto"), settings["side"]
    torch.manual_seed(0)
    parameters = {f"p{n}": nn.Parameter(torch.randn(side, side, device=device)) for n in range(settings["count"])}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter) * 1e-2
    optimizer = optimizer_of(json.loads(settings["optim"]), parameters, dict.fromkeys(parameters, "matrix"))

    def run() -> None:
        for _ in range(settings["steps"]):
            optimizer.step()
        environment.synchronize(device)

    return run


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports steps."""
    nodes = PEERS | {text: optimizer_node(text) for text in arguments.optim}
    common = {"benchmark": "tensors", "count": arguments.count, "side": arguments.side, "steps": arguments.steps}
    variants = {text: {**common, "warmup": 1, "optim": json.dumps(node)} for text, node in nodes.items()}
    seconds = interleaved(SCRIPT, variants, arguments.rounds)
    rows, results = [], []
    for text, found in seconds.items():
        median, spread = median_and_spread(found)
        ratios = {f"x {text}": in_words(found, seconds[text]) for text in PEERS}
        rows.append(
            {"optimizer": text, "ms per step": f"{median / arguments.steps * 1e3:,.1f} ± {spread:.0%}"} | ratios
        )
        results.append({"optimizer": text, **common, "seconds": [each / arguments.steps for each in found]})
    report(f"step of {arguments.count} matrices, {arguments.side} x {arguments.side}", rows, results, arguments.json)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py tensors`."""
    command.add_argument("--optim", nargs="+", default=["adamw_ours", "adafactor"])
    command.add_argument("--count", type=a_count, default=1000)
    command.add_argument("--side", type=a_count, default=8)
    command.add_argument("--steps", type=a_count, default=10, help="per round")
    command.add_argument("--rounds", type=a_count, default=21)
