"""nanoGPT's forward pass from the tensors of its state_dict, in plain torch, written from the description of GPT-2."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def arguments(**changed: Any) -> dict[str, Any]:
    """The model_args of a small model."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": True, "vocab_size": 257, "dropout": 0.0}
    return sizes | changed


def state_dict(args: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under nanoGPT's names, the vectors random too."""
    generator, C = torch.Generator().manual_seed(seed), args["n_embd"]
    shapes = {"wte.weight": (args["vocab_size"], C), "wpe.weight": (args["block_size"], C)}
    for i in range(args["n_layer"]):
        shapes |= {
            f"h.{i}.ln_1.weight": (C,),
            f"h.{i}.attn.c_attn.weight": (3 * C, C),
            f"h.{i}.attn.c_proj.weight": (C, C),
            f"h.{i}.ln_2.weight": (C,),
            f"h.{i}.mlp.c_fc.weight": (4 * C, C),
            f"h.{i}.mlp.c_proj.weight": (C, 4 * C),
        }
    shapes["ln_f.weight"] = (C,)
    if args["bias"]:
        shapes |= {
            f"{name.removesuffix('weight')}bias": shape[:1]
            for name, shape in shapes.items()
            if not name.startswith("w")
        }
    found = {f"transformer.{name}": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return found | {"lm_head.weight": found["transformer.wte.weight"]}


def logits(state: Mapping[str, Tensor], args: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """(B, T) to (B, T, vocab_size)."""
    w = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    B, T = tokens.shape
    C, H = args["n_embd"], args["n_head"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(()))

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for i in range(args["n_layer"]):
        q, k, v = (
            part.view(B, T, H, C // H).transpose(1, 2)
            for part in linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(C // H)).masked_fill(future, -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C), f"h.{i}.attn.c_proj")
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        x = x + linear(0.5 * y * (1 + torch.erf(y / math.sqrt(2))), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def checkpoint(args: Mapping[str, Any], state: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    """What nanoGPT's train.py saves."""
    kept = {"iter_num": 30, "best_val_loss": torch.tensor(4.5), "config": {"dataset": "own"}}
    return {"model": dict(state), "optimizer": {}, "model_args": dict(args)} | kept | more
