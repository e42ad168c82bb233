"""tokens/s of a training step: forward, backward, clipping, AdamW.

--peer is a nanoGPT checkout: its model is measured beside ours, as published (fp32, eager, unfused AdamW, default
allocator) and with our settings. On a GPU these are the same, bf16, compiled where we are and fused: one variant; there
ours is also measured with a bf16 residual stream.
MFU, the share of the device's peak, counts operations as model/flops.py does.
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assembly.model import meta_model
from configs import RunConfig, compose
from model import GPT
from model.flops import flops_per_token, peak_flops
from scripts.benchmarking import (
    SCRIPT,
    Round,
    Rounds,
    a_count,
    a_count_or_0,
    a_path,
    in_words,
    measured,
    median_and_spread,
    module_in,
    padded,
    report,
)
from trainer import Single, environment
from trainer.allocator import tune_allocator

CASES = {"nano": (4096, 16), "micro": (4096, 8)}  # model: vocabulary and sequences per forward pass
DEFAULT_CASE = (50257, 1)
ON_GPU, NARROW = "nanoGPT's model", "ours, bf16 residual stream"


def make_round(settings: Mapping[str, Any]) -> Round:
    """Returns a function that does `steps` training steps of the variant that settings describe."""
    if settings["tuned_allocator"]:
        tune_allocator()
    device = environment.pick_device("auto")
    environment.set_precision_of_products(settings["precision"], device)
    torch.manual_seed(0)
    model = (_peers_model if settings["peer"] else _our_model)(settings).to(device)
    fused = {"fused": True} if settings["fused"] else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), **fused)
    clip = _peers_clip(model) if settings["peer"] else _our_clip(model, settings["precision"], device)
    if settings["compile"]:
        model.compile()
    tokens = torch.randint(0, settings["vocab_size"], (2, settings["batch"], settings["block_size"]), device=device)
    bf16 = settings["precision"] == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            out = model(tokens[0], tokens[1])
        loss = out[1] if settings["peer"] else out
        loss.backward()
        clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run() -> None:
        for _ in range(settings["steps"]):
            step()
        environment.synchronize(device)

    return run


def _our_clip(model: nn.Module, precision: str, device: torch.device) -> Callable[[float], Tensor]:
    strategy = Single(device=device, precision=precision, compiled=False)
    strategy.prepare(model)
    return strategy.clip_grad_norm_


def _peers_clip(model: nn.Module) -> Callable[[float], Tensor]:
    return partial(nn.utils.clip_grad_norm_, model.parameters())


def _our_model(settings: Mapping[str, Any]) -> nn.Module:
    keys = ("vocab_size", "n_layer", "n_head", "n_embd", "block_size", "gelu", "bf16_residual")
    return GPT(**{key: settings[key] for key in keys})


def _peers_model(settings: Mapping[str, Any]) -> nn.Module:
    module = module_in(Path(settings["peer"]) / "model.py")
    shape = {key: settings[key] for key in ("n_layer", "n_head", "n_embd", "block_size")}
    shape["vocab_size"] = padded(settings["vocab_size"])
    model: nn.Module = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=True))
    return model


def variants_of(arguments: argparse.Namespace, shape: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the settings of the variants of one model, by the name of their row."""
    if arguments.peer and not (Path(arguments.peer) / "model.py").is_file():
        raise ValueError(f"--peer {arguments.peer} is no nanoGPT checkout: it has no model.py")
    precision = environment.pick_precision(arguments.precision, environment.pick_device("auto"))
    same = {**shape, "benchmark": "train", "precision": precision, "compile": arguments.compile, "fused": True}
    same |= {"warmup": arguments.warmup, "steps": arguments.steps, "bf16_residual": False}
    variants = {"ours": {**same, "peer": None, "tuned_allocator": True}}
    if precision == "bf16" and torch.cuda.is_available():
        variants[NARROW] = {**variants["ours"], "bf16_residual": True}
    if arguments.peer and torch.cuda.is_available():
        variants[ON_GPU] = {**same, "peer": arguments.peer, "tuned_allocator": False}
    elif arguments.peer:
        shipped = {"precision": "fp32", "compile": False, "fused": False, "tuned_allocator": False}
        variants["nanoGPT as shipped"] = {**same, **shipped, "peer": arguments.peer}
        variants["nanoGPT, our settings"] = {**same, "peer": arguments.peer, "tuned_allocator": False}
        variants["nanoGPT, our settings and allocator"] = {**same, "peer": arguments.peer, "tuned_allocator": True}
    return variants


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports training steps."""
    rows, results, device_name = [], [], environment.device_name(environment.pick_device("auto"))
    configs = {name: _gpt(name) for name in arguments.model}
    for name, config in configs.items():
        node = config.model
        vocab_size, batch = CASES.get(name, DEFAULT_CASE)
        keys = ("n_layer", "n_head", "n_embd", "block_size")
        shape = {
            **{key: node[key] for key in keys},
            "gelu": node["gelu"],
            "vocab_size": vocab_size,
            "batch": arguments.batch or batch,
        }
        variants = variants_of(arguments, shape)
        found = {
            variant: Rounds([each / arguments.steps for each in seconds], peak_bytes)
            for variant, (seconds, peak_bytes) in measured(SCRIPT, variants, arguments.rounds).items()
        }
        flops = flops_per_token(meta_model(config, vocab_size))
        tokens = shape["batch"] * shape["block_size"]
        for variant, (seconds, peak_bytes) in found.items():
            median, spread = median_and_spread(seconds)
            settings = variants[variant]
            peak = peak_flops(device_name, torch.bfloat16 if settings["precision"] == "bf16" else torch.float32)
            rows.append(
                {
                    "model": f"{name}, {shape['batch']} x {shape['block_size']}",
                    "variant": variant,
                    "precision": settings["precision"] + (", compiled" if settings["compile"] else ""),
                    "tokens/s": f"{tokens / median:,.0f} ± {spread:.0%}",
                    "GFLOP/s": f"{tokens / median * flops / 1e9:,.0f}",
                    "MFU": "n/a" if peak is None else f"{tokens / median * flops / peak:.1%}",
                    "peak MB": f"{peak_bytes / 1e6:,.0f}",
                    "ours / this": in_words(seconds, found["ours"].seconds),
                }
            )
            facts = {"tokens": tokens, "flops": tokens * flops, "peak_flops": peak, "peak_bytes": peak_bytes}
            results.append({"model": name, "variant": variant, "settings": settings, "seconds": seconds, **facts})
    report("training step", rows, results, arguments.json)


def _gpt(name: str) -> RunConfig:
    config = compose([f"model={name}"])
    if config.model["_target_"] != "model.GPT":
        raise ValueError(f"--model {name} is no GPT; this benchmark measures GPT-2's architecture, as nanoGPT has it")
    return config


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py train`."""
    command.add_argument("--model", nargs="+", default=["nano", "gpt2_small"])
    command.add_argument("--batch", type=a_count, help="sequences per step; default: 16 for nano, 1 for GPT-2's sizes")
    command.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    command.add_argument("--compile", action="store_true")
    command.add_argument("--peer", type=a_path, help="a nanoGPT checkout")
    command.add_argument("--steps", type=a_count, default=1, help="per round")
    command.add_argument("--rounds", type=a_count, default=7)
    command.add_argument("--warmup", type=a_count_or_0, default=2, help="rounds")
