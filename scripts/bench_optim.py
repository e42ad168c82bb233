"""ms and bytes of an optimizer's step, beside torch's fused AdamW and the floor that memory traffic sets.

An optimizer is an option of configs/optim, with overrides after a colon (soap:roles.matrix.one_sided=true), or a class
in anyone's file (sophia.py:SophiaG), which gets its default settings. The floor is the time to read parameter, gradient
and state once and to write parameter and state once, at the bandwidth of an in-place addition measured beside it.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from configs import compose
from model import GPT, GPTConfig
from optim import Sophia
from optim.build import OptimizerSet, build
from optim.memory import state_bytes
from scripts.benchmarking import SCRIPT, Round, interleaved, median_and_spread, module_in, report
from trainer import environment
from trainer.allocator import tune_allocator

BASELINE = {"_target_": "torch.optim.AdamW", "lr": 1e-4, "fused": True}
TRAFFIC_BYTES = 3 << 28  # of an addition of two tensors of 256 MiB: two reads, one write
VOCAB_SIZE = {"nano": 4096, "micro": 4096}
DEFAULT_VOCAB_SIZE = 50257


def make_round(settings: Mapping[str, Any]) -> Round:
    """`steps` steps of an optimizer with fixed gradients, or as many additions for the bandwidth."""
    if settings["tuned_allocator"]:
        tune_allocator()
    device = environment.pick_device("auto")
    torch.manual_seed(0)
    step = _addition(device) if settings["optim"] is None else _optimizer_step(settings, device)

    def run() -> None:
        for _ in range(settings["steps"]):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _addition(device: torch.device) -> Round:
    a, b = (torch.ones(TRAFFIC_BYTES // 12, device=device) for _ in range(2))
    return lambda: (a.add_(b), None)[1]


def _optimizer_step(settings: Mapping[str, Any], device: torch.device) -> Round:
    model = GPT(GPTConfig(**settings["shape"])).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    node = json.loads(settings["optim"])
    if "file" in node:
        optimizer = _class_in(node["file"], node["class"])(model.parameters())
        step: Round = optimizer.step
        return step
    ours = build(node, dict(model.named_parameters()), model.roles(), seed=0, global_batch=1 << 20)
    _give_curvature(ours)
    return ours.step


def _give_curvature(optimizer: OptimizerSet) -> None:
    """Stands for a first estimate, without which Sophia refuses to step."""
    for member in optimizer.members:
        if isinstance(member, Sophia):
            member.update_curvature({p: p.grad.square() for p in optimizer.names if p.grad is not None})


def _class_in(file: str, name: str) -> Any:
    if not Path(file).is_file():
        raise ValueError(f"--optim {file}:{name}: there is no Python file {file}")
    module = module_in(Path(file))
    if not hasattr(module, name):
        raise ValueError(f"--optim {file}:{name}: the file has no class {name}")
    return getattr(module, name)


def optimizer_node(text: str) -> dict[str, Any]:
    """What --optim names: a node for optim.build, or {"file", "class"}."""
    name, _, rest = text.partition(":")
    if name.endswith(".py"):
        _class_in(name, rest)
        return {"file": str(Path(name).resolve()), "class": rest}
    overrides = [f"optim.{override}" for override in rest.split(",") if override]
    node: Any = OmegaConf.to_container(compose([f"optim={name}", *overrides]).optim, resolve=True)
    return dict(node)


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports steps."""
    nodes = {"torch AdamW, fused": BASELINE} | {text: optimizer_node(text) for text in arguments.optim}
    rows, results = [], []
    for name in arguments.model:
        node = compose([f"model={name}"]).model
        shape = {**node, "vocab_size": VOCAB_SIZE.get(name, DEFAULT_VOCAB_SIZE)}
        with torch.device("meta"):
            model = GPT(GPTConfig(**shape))
        common = {
            "benchmark": "optim",
            "shape": shape,
            "warmup": arguments.warmup,
            "steps": arguments.steps,
            "tuned_allocator": not arguments.default_allocator,
        }
        variants = {text: {**common, "optim": json.dumps(found)} for text, found in nodes.items()}
        seconds = interleaved(SCRIPT, {"addition": {**common, "optim": None}, **variants}, arguments.rounds)
        bandwidth = arguments.steps * TRAFFIC_BYTES / median_and_spread(seconds.pop("addition"))[0]
        baseline = median_and_spread(seconds["torch AdamW, fused"])[0]
        for text, found in seconds.items():
            row, result = _figures(model, nodes[text], [each / arguments.steps for each in found], bandwidth)
            ratio = f"{median_and_spread(found)[0] / baseline:.2f}"
            rows.append({"model": name, "optimizer": text, **row, "x fused AdamW": ratio})
            results.append({"model": name, "optimizer": text, **result})
    report("optimizer step", rows, results, arguments.json)


def _figures(
    model: GPT, node: Mapping[str, Any], seconds: list[float], bandwidth: float
) -> tuple[dict[str, str], dict[str, Any]]:
    """A row for people and the same for machines. seconds: per step, of every round; bandwidth: bytes per second."""
    parameters = dict(model.named_parameters())
    n_parameters = sum(p.numel() for p in parameters.values())
    state = None if "file" in node else state_bytes(node, parameters, model.roles())
    floor = None if state is None else (3 * 4 * n_parameters + 2 * state) / bandwidth
    median, spread = median_and_spread(seconds)
    row = {
        "state MB (B/param)": "n/a" if state is None else f"{state / 1e6:,.1f} ({state / n_parameters:.2f})",
        "ms per step": f"{median * 1e3:,.1f} ± {spread:.0%}",
        "floor ms": "n/a" if floor is None else f"{floor * 1e3:,.1f}",
    }
    return row, {"state_bytes": state, "floor_seconds": floor, "seconds": seconds}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `bench.py optim`."""
    command.add_argument("--optim", nargs="+", default=["adamw_ours", "sophiag"], help="see the top of bench_optim.py")
    command.add_argument("--model", nargs="+", default=["gpt2_small"])
    command.add_argument("--steps", type=int, default=10, help="per round: a refresh every 10 steps is then in each")
    command.add_argument("--rounds", type=int, default=7)
    command.add_argument("--warmup", type=int, default=1, help="rounds")
    command.add_argument("--default-allocator", action="store_true")
