"""Stored tensors that cannot be weights are refused by name, in every form of the files."""

from collections.abc import Callable
from pathlib import Path

import nanogpt_oracle as oracle
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_damage import SETTINGS, written
from torch import Tensor

from data.tokenizers import PlainBytes
from interchange import LAYOUTS, InterchangeError
from interchange.fitting import load
from model import GPT

FILES = {"hf": "model.safetensors", "hf with a pickle": "pytorch_model.bin", "nanogpt": "ckpt.pt"}
PICKLES = ["hf with a pickle", "nanogpt"]


def changed(folder: Path, form: str, change: Callable[[dict[str, Tensor]], object]) -> GPT:
    """Writes the files of a form, changes the stored tensors in place, and returns a model with them."""
    layout, file = written(folder, form), folder / FILES[form]
    if file.suffix == ".safetensors":
        stored = load_file(file)
        change(stored)
        save_file(stored, file)
    else:
        found = torch.load(file, weights_only=True)
        change(found["model"] if form == "nanogpt" else found)
        torch.save(found, file)
    model = GPT(**SETTINGS)
    load(LAYOUTS[layout].read(folder), model, SETTINGS | {"_target_": "model.GPT"}, PlainBytes(), "start_from=it")
    return model


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point_are_refused(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    name = "transformer.h.1.ln_1.weight"
    said = f"{name} must be a dense tensor of floating-point numbers, not Tensor, strided, {str(dtype)[6:]}"
    with pytest.raises(InterchangeError, match=said):
        changed(tmp_path / "a", form, lambda stored: stored.update({name: stored[name].to(dtype)}))


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.eye(16).to_sparse(), "sparse_coo"), (torch.empty(16, 16, device="meta"), "on meta")],
)
def test_tensors_that_are_not_dense_or_have_no_numbers_are_refused(
    tmp_path: Path, form: str, tensor: Tensor, kind: str
) -> None:
    with pytest.raises(InterchangeError, match=f"transformer.wpe.weight must be a dense tensor of .*{kind}"):
        changed(tmp_path / "a", form, lambda stored: stored.update({"transformer.wpe.weight": tensor}))


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("name", ["wpe.weight", "ln_f.weight", "h.0.attn.c_attn.weight"])
@pytest.mark.parametrize("shape", [(), (5,), (5, 2, 2)])
def test_another_number_of_dimensions_is_refused(tmp_path: Path, form: str, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InterchangeError, match=f"the weight {name} has the shape .* and should be .*; save it again"):
        changed(tmp_path / "a", form, lambda stored: stored.update({f"transformer.{name}": torch.ones(shape)}))


@pytest.mark.parametrize(
    ("form", "again"),
    [*((form, "ln_f.weight") for form in FILES), ("nanogpt", "_orig_mod.transformer.ln_f.weight")],
)
def test_a_weight_under_two_names_is_refused(tmp_path: Path, form: str, again: str) -> None:
    with pytest.raises(InterchangeError, match=r"has the weight ln_f.weight twice") as caught:
        changed(tmp_path / "a", form, lambda stored: stored.update({again: torch.zeros(16)}))
    assert again in str(caught.value)


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_types_become_fp32(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    value = torch.linspace(0, 3, 16).to(dtype)
    model = changed(tmp_path / "a", form, lambda stored: stored.update({"transformer.ln_f.weight": value}))
    found = dict(model.named_parameters())["ln_f.weight"]
    assert found.dtype == torch.float32 and found.tolist() == value.float().tolist()


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_what_is_no_file_of_weights_is_said_with_what_to_do(tmp_path: Path, form: str, damage: str) -> None:
    layout, file = written(tmp_path / "a", form), tmp_path / "a" / FILES[form]
    file.write_bytes({"empty": b"", "text": b"hello", "truncated": file.read_bytes()[:-2000]}[damage])
    writer = "safetensors" if form == "hf" else "torch.save"
    said = f"{FILES[form]} cannot be read: it is no file of {writer}, or a part of one .*; copy, download or save it"
    with pytest.raises(InterchangeError, match=said) as caught:
        LAYOUTS[layout].read(tmp_path / "a")
    assert "\n" not in str(caught.value) and ("it is empty" in str(caught.value)) == (damage == "empty")


def test_values_that_are_no_tensors_are_refused_by_name(tmp_path: Path) -> None:
    content = oracle.checkpoint(oracle.arguments(), {}) | {"model": {"transformer.wte.weight": [1.0]}}
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(InterchangeError, match=r"must hold tensors by name, not transformer.wte.weight, a list"):
        LAYOUTS["nanogpt"].read(tmp_path)
