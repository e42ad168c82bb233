"""nanoGPT's checkpoint: ckpt.pt, a pickle of tensors and plain values, read without executing anything.

Its keys: model (the state_dict), model_args, iter_num, best_val_loss, config, optimizer. Names are GPT-2's behind
"transformer.", linear weights lie (out, in) as ours; the head is tied and its GELU exact. A head that differs from the
embedding, which programs derived from nanoGPT may store, is read as untied. A compiled model's names begin with
"_orig_mod.". An optimizer state with the two groups that nanoGPT's own script makes is written, empty, so
that its init_from=resume begins with new moments.
The layout: https://github.com/karpathy/nanoGPT, model.py and train.py
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from data.tokenizers_of_others import CharacterIds
from files.errors import shown
from files.writing import write_text
from interchange.layout import InterchangeError, Layout, Trained, Weights, differing
from interchange.stored import HEAD, flag, is_tied, named, unpickled

FILE, META = "ckpt.pt", "meta.pkl"
DATASET = "nanodescent"  # the folder below nanoGPT's data that its sample.py takes characters from
COMPILED, PREFIX, THEIR_HEAD = "_orig_mod.", "transformer.", "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.bias")  # the causal mask, where torch has no fused attention
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
UNKNOWN_LOSS = 1e9  # nanoGPT's own, before it has measured one
FIXED = {"tied_head": True, "gelu": "erf", "qk_norm": False, "scale_attn_by_inverse_layer_idx": False}


USAGE = """\
In a checkout of nanoGPT:
```
python sample.py --out_dir=<this folder>
```
Its script encodes text as GPT-2 does, or, if there is a data/nanodescent/meta.pkl, by the characters in that: copy the
meta.pkl of this folder there, if it has one. Ids of other tokenizers it cannot turn into text.
"""


class NanoGPT(Layout):
    """A ckpt.pt, or the folder (nanoGPT's out_dir) that has one."""

    what, usage = "nanoGPT's ckpt.pt", USAGE

    @override
    def check(self, path: Path) -> None:
        _file(path)

    @override
    def read(self, path: Path) -> Weights:
        file = _file(path)
        found = unpickled(file)
        wrong = f"{file} is no checkpoint as nanoGPT's train.py saves it"
        if not isinstance(found, dict):
            raise InterchangeError(f"{wrong}: it must be a mapping with model_args and model")
        arguments, stored = found.get("model_args"), found.get("model")
        if not isinstance(arguments, dict) or not isinstance(stored, dict):
            raise InterchangeError(f"{wrong}: it must have model_args and model, mappings both")
        settings = {key: arguments.get(key) for key in SIZES}
        for key, value in settings.items():
            if type(value) is not int or value < 1:
                raise InterchangeError(f"{file}: model_args: {key}={shown(value)} must be a whole number >= 1")
        tensors = named(stored.items(), _our_name, str(file))
        settings |= FIXED | {"tied_head": is_tied(tensors)}
        settings["bias"] = flag(arguments, "bias", True, f"{file}: model_args")
        if settings["tied_head"]:
            tensors.pop(HEAD, None)
        return Weights(settings, tensors)

    @override
    def refusals(self, settings: Mapping[str, Any]) -> list[str]:
        return differing(settings, FIXED)

    @override
    def write(self, trained: Trained, folder: Path) -> None:
        settings, tensors = trained.settings, trained.tensors()
        model = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()} | {THEIR_HEAD: tensors["wte.weight"]}
        arguments = {key: settings[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "bias", "dropout")}
        checkpoint = {
            "model": model,
            "optimizer": _new_optimizer(tensors),
            "model_args": arguments | {"vocab_size": trained.model.vocab_size},
            "iter_num": trained.result.get("step", 0),
            "best_val_loss": trained.result.get("val/loss") or UNKNOWN_LOSS,
            "config": {"dataset": DATASET},
        }
        _save(checkpoint, folder / FILE)
        if isinstance(trained.tokenizer, CharacterIds):
            itos = dict(enumerate(trained.tokenizer.characters))
            stoi = {character: id for id, character in itos.items()}
            (folder / META).write_bytes(pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": stoi}))
        write_text(folder / "README.md", trained.card)


def _file(path: Path) -> Path:
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InterchangeError(f"{file} does not exist; it must be nanoGPT's {FILE}, or the folder that has it")
    return file


def _save(checkpoint: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # on a full disk torch also fails to end the file; why is in the context
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _our_name(name: str) -> str | None:
    bare = name.removeprefix(COMPILED).removeprefix(PREFIX)
    return HEAD if bare == THEIR_HEAD else None if BUFFERS.fullmatch(bare) else bare


def _new_optimizer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of an AdamW that has done no step, in nanoGPT's groups: matrices, which decay, then vectors."""
    sizes = [sum(t.ndim >= 2 for t in tensors.values()), sum(t.ndim < 2 for t in tensors.values())]
    groups = torch.optim.AdamW([{"params": [torch.zeros(())]} for _ in sizes]).state_dict()["param_groups"]
    first = 0
    for group, size, decay in zip(groups, sizes, (0.1, 0.0), strict=True):
        group |= {"params": list(range(first, first + size)), "weight_decay": decay}
        first += size
    return {"state": {}, "param_groups": groups}
