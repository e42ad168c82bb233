"""Hugging Face's GPT-2: a folder with config.json, model.safetensors or pytorch_model.bin, and a tokenizer.

transformers stores the weights of its Conv1D as (in, out), ours of nn.Linear lie (out, in); both have GPT-2's own
names. A tied head is not stored. Without biases (model.bias=false) zeros are written, which compute the same.
The layout: https://huggingface.co/docs/transformers/model_doc/gpt2
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from files.errors import ReadingError, one_line, shown
from files.reading import read_json
from files.writing import write_json, write_text
from interchange import tokenizer
from interchange.layout import InterchangeError, Layout, Trained, Weights, differing, unpickled

CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")  # each also in parts, listed by <name>.index.json
PREFIX, HEAD = "transformer.", "lm_head.weight"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which older versions stored
GELU = {"tanh": "gelu_new", "erf": "gelu"}
GELU_OF = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
NORM_EPS = 1e-5  # of model.GPT's layer norms
# Settings of transformers' GPT-2 that model.GPT does not have, and the value that it computes with.
FIXED = {"layer_norm_epsilon": NORM_EPS, "scale_attn_weights": True, "add_cross_attention": False}


USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```
"""


class HuggingFace(Layout):
    """A folder of Hugging Face's, as save_pretrained writes it."""

    what, usage = "Hugging Face's GPT-2", USAGE

    @override
    def check(self, path: Path) -> None:
        _config(path)
        _file(path)

    @override
    def read(self, path: Path) -> Weights:
        settings = _settings(_config(path), path)
        tensors = dict(_ours(_tensors(path)))
        if settings["tied_head"]:
            tensors.pop("head.weight", None)
        return Weights(settings, tensors, tokenizer.read(path))

    @override
    def refusals(self, settings: Mapping[str, Any]) -> list[str]:
        return differing(settings, {"qk_norm": False})

    @override
    def write(self, trained: Trained, folder: Path) -> None:
        tensors = dict(_theirs(trained))
        write_json(folder / CONFIG, _described(trained))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / "model.safetensors")  # which others may not read otherwise
        eot = trained.tokenizer.eot
        write_json(folder / "generation_config.json", {"bos_token_id": eot, "eos_token_id": eot})
        tokenizer.write(trained.tokenizer, folder, trained.settings["block_size"])
        write_text(folder / "README.md", trained.card)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path / CONFIG, may_be_link=True)
    except ReadingError as error:
        raise InterchangeError(str(error)) from None
    if found is None:
        raise InterchangeError(
            f"{path} has no {CONFIG}; it must be a folder as save_pretrained makes it, or "
            "`hf download openai-community/gpt2 --local-dir <folder>`"
        )
    if found.get("model_type") != "gpt2":
        raise InterchangeError(f"{path / CONFIG}: model_type={shown(found.get('model_type'))} must be gpt2")
    return found


def _settings(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Those of model.GPT. Raises: InterchangeError: if it is a GPT-2 that model.GPT cannot be."""
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise InterchangeError(f"{path / CONFIG}: {key}={shown(config[key])} must be {shown(value)} for model.GPT")
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}  # transformers' own
    found = {key: config.get(key, value) for key, value in sizes.items()}
    for key, value in found.items():
        if type(value) is not int or value < 1:
            raise InterchangeError(f"{path / CONFIG}: {key}={shown(value)} must be a whole number >= 1")
    if config.get("n_inner") not in (None, 4 * found["n_embd"]):
        raise InterchangeError(f"{path / CONFIG}: n_inner={shown(config['n_inner'])} must be 4 n_embd for model.GPT")
    activation = config.get("activation_function", "gelu_new")
    if activation not in GELU_OF:
        raise InterchangeError(
            f"{path / CONFIG}: activation_function={shown(activation)} must be one of {', '.join(GELU_OF)}"
        )
    found["block_size"] = found.pop("n_positions")
    return found | {
        "bias": True,
        "gelu": GELU_OF[activation],
        "qk_norm": False,
        "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        "tied_head": bool(config.get("tie_word_embeddings", True)),
    }


def _file(path: Path) -> Path:
    """The file with the weights, or that which lists their parts."""
    for name in FILES:
        for file in (path / name, path / f"{name}.index.json"):
            if file.is_file():
                return file
    raise InterchangeError(f"{path} has neither {FILES[0]} nor {FILES[1]}")


def _tensors(path: Path) -> dict[str, Tensor]:
    file = _file(path)
    if file.suffix != ".json":
        return _stored(file)
    try:
        parts = (read_json(file, may_be_link=True) or {}).get("weight_map")
    except ReadingError as error:
        raise InterchangeError(str(error)) from None
    names = sorted(set(parts.values()), key=str) if isinstance(parts, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InterchangeError(f"{file}: weight_map must name, for each tensor, a file of this folder")
    found: dict[str, Tensor] = {}
    for name in names:
        found |= _stored(path / name)
    return found


def _stored(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise InterchangeError(f"{file} cannot be read: {one_line(error)[:200]}") from None
    found = unpickled(file)
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise InterchangeError(f"{file} must hold tensors by name")
    return found


def _ours(stored: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stored.items():
        bare = name.removeprefix(PREFIX)
        if name == HEAD:
            yield "head.weight", tensor.float()
        elif not BUFFERS.fullmatch(bare):
            yield bare, tensor.float().t().contiguous() if bare.endswith(TRANSPOSED) else tensor.float()


def _theirs(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in trained.tensors().items():
        if name == "head.weight":
            yield HEAD, tensor
            continue
        yield f"{PREFIX}{name}", tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        if not trained.settings["bias"] and name not in ("wte.weight", "wpe.weight"):
            yield f"{PREFIX}{name.removesuffix('weight')}bias", torch.zeros(tensor.shape[0], dtype=tensor.dtype)


def _described(trained: Trained) -> dict[str, Any]:
    """What config.json holds."""
    settings, dropout, eot = trained.settings, trained.settings["dropout"], trained.tokenizer.eot
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": trained.model.vocab_size,
        "n_positions": settings["block_size"],
        "n_ctx": settings["block_size"],
        **{key: settings[key] for key in ("n_layer", "n_head", "n_embd", "scale_attn_by_inverse_layer_idx")},
        **FIXED,
        "n_inner": None,
        "activation_function": GELU[settings["gelu"]],
        "attn_pdrop": dropout,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": settings["tied_head"],
        "bos_token_id": eot,
        "eos_token_id": eot,
        "torch_dtype": "float32",
    }
