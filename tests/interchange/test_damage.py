"""Damaged files of other programs are read, or refused in one line, whatever the damage; so are files too large."""

import random
import resource
import shutil
from pathlib import Path

import nanogpt_oracle as oracle
import pytest
import torch
from safetensors.torch import load_file

from data.tokenizers import PlainBytes
from interchange import LAYOUTS, InterchangeError, Trained
from model import GPT

ARGUMENTS = oracle.arguments()
SETTINGS = ARGUMENTS | {"tied_head": True, "gelu": "erf", "scale_attn_by_inverse_layer_idx": False, "qk_norm": False}


def written(folder: Path, form: str) -> str:
    """Writes the files of a form; returns the name of its layout."""
    layout = "hf" if form.startswith("hf") else "nanogpt"
    LAYOUTS[layout].export(Trained(GPT(**SETTINGS), SETTINGS, PlainBytes(), "", {}), folder)
    if form == "hf with a pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return layout


def damage(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 3, 20])):
        at = chance.randrange(min(len(content), chance.choice([200, 2000, len(content)])))
        if chance.random() < 0.5:
            content[at] = chance.randrange(256)
        else:
            del content[at : at + chance.randrange(1, 20)]
    file.write_bytes(content)


@pytest.mark.parametrize("form", ["hf", "hf with a pickle", "nanogpt"])
def test_damage_costs_one_line_at_most(tmp_path: Path, form: str) -> None:
    layout, chance, refused = LAYOUTS[written(tmp_path / "whole", form)], random.Random(form), 0
    for _ in range(60):
        copy = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        files = ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "ckpt.pt")
        damage(chance.choice([copy / name for name in files if (copy / name).is_file()]), chance)
        try:
            layout.read(copy)
        except InterchangeError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
        shutil.rmtree(copy)
    assert refused > 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_that_cannot_be_written_leave_nothing_and_name_out(tmp_path: Path, layout: str) -> None:
    found, limits = Trained(GPT(**SETTINGS), SETTINGS, PlainBytes(), "", {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes, fewer than the weights have
    try:
        with pytest.raises(InterchangeError, match=r"out=.*/out cannot be written: .*File too large.*; choose another"):
            LAYOUTS[layout].export(found, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
