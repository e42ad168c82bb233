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
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from files.errors import ReadingError, one_line, shown
from files.reading import read_json
from files.writing import write_json, write_text
from interchange import tokenizer
from interchange.layout import InterchangeError, Layout, Trained, Weights, differing
from interchange.stored import HEAD, flag, is_tied, named, safetensors, unpickled

CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")  # each also in parts, listed by <name>.index.json
PREFIX, THEIR_HEAD = "transformer.", "lm_head.weight"
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
        tensors = named(_stored(path), _our_name, str(path))
        if settings["tied_head"]:
            if not is_tied(tensors):
                raise InterchangeError(
                    f"{path}: {THEIR_HEAD} differs from wte.weight, but {CONFIG} has tie_word_embeddings=true; make it "
                    f"false there if the head is meant, or store no {THEIR_HEAD}"
                )
            tensors.pop(HEAD, None)
        return Weights(settings, {name: _turned(name, each) for name, each in tensors.items()}, tokenizer.read(path))

    @override
    def refusals(self, settings: Mapping[str, Any]) -> list[str]:
        return differing(settings, {"qk_norm": False})

    @override
    def write(self, trained: Trained, folder: Path) -> None:
        tensors = dict(_theirs(trained))
        write_json(folder / CONFIG, _described(trained))
        try:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # which it raises when the disk is full
            raise OSError(one_line(error)) from error
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
    if not isinstance(activation, str) or activation not in GELU_OF:
        raise InterchangeError(
            f"{path / CONFIG}: activation_function={shown(activation)} must be one of {', '.join(GELU_OF)}"
        )
    found["block_size"] = found.pop("n_positions")
    return found | {
        "bias": True,
        "gelu": GELU_OF[activation],
        "qk_norm": False,
        "scale_attn_by_inverse_layer_idx": flag(config, "scale_attn_by_inverse_layer_idx", False, str(path / CONFIG)),
        "tied_head": flag(config, "tie_word_embeddings", True, str(path / CONFIG)),
    }


def _file(path: Path) -> Path:
    """The file with the weights, or that which lists their parts."""
    for name in FILES:
        for file in (path / name, path / f"{name}.index.json"):
            if file.is_file():
                return file
    raise InterchangeError(f"{path} has neither {FILES[0]} nor {FILES[1]}")


def _stored(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields the stored names and tensors."""
    file = _file(path)
    for each in [file] if file.suffix != ".json" else _parts(file):
        found = safetensors(each) if each.suffix == ".safetensors" else unpickled(each)
        if not isinstance(found, dict):
            raise InterchangeError(f"{each} must hold tensors by name; save it again with the weights alone")
        yield from found.items()


def _parts(file: Path) -> list[Path]:
    """The files that an index lists."""
    try:
        found = (read_json(file, may_be_link=True) or {}).get("weight_map")
    except ReadingError as error:
        raise InterchangeError(str(error)) from None
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InterchangeError(f"{file}: weight_map must name, for each tensor, a file of this folder; save it again")
    return [file.parent / name for name in sorted(set(names))]


def _our_name(name: str) -> str | None:
    bare = name.removeprefix(PREFIX)
    return HEAD if name == THEIR_HEAD else None if BUFFERS.fullmatch(bare) else bare


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Linear weights as (out, in); what is no matrix stays, and fits no model."""
    return tensor.t().contiguous() if name.endswith(TRANSPOSED) and tensor.ndim == 2 else tensor


def _theirs(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in trained.tensors().items():
        if name == HEAD:
            yield THEIR_HEAD, tensor
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
