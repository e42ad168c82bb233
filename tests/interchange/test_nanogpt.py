"""nanoGPT's ckpt.pt, read and written; the oracle is its forward pass in plain torch."""

import pickle
from pathlib import Path
from typing import Any

import nanogpt_oracle as oracle
import pytest
import torch
from torch import Tensor

from data.tokenizers import PlainBytes
from data.tokenizers_of_others import CharacterIds
from interchange import LAYOUTS, InterchangeError, Trained
from interchange.fitting import load
from model import GPT

NANOGPT = LAYOUTS["nanogpt"]
TOKENS = torch.arange(26).reshape(2, 13) * 9


def ours(args: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The settings of the same model here."""
    usual = {"tied_head": True, "scale_attn_by_inverse_layer_idx": False, "gelu": "erf", "qk_norm": False}
    return args | usual | {"vocab_multiple": 64} | changed


def loaded(path: Path, settings: dict[str, Any]) -> GPT:
    model = GPT(**settings).eval()
    load(NANOGPT.read(path), model, settings | {"_target_": "model.GPT"}, PlainBytes(), "start_from=it")
    return model


def saved(folder: Path, args: dict[str, Any], state: dict[str, Tensor], **more: Any) -> Path:
    torch.save(oracle.checkpoint(args, state, **more), folder / "ckpt.pt")
    return folder / "ckpt.pt"


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_nanogpts_and_come_back_as_they_were(tmp_path: Path, bias: bool) -> None:
    args = oracle.arguments(bias=bias)
    state = oracle.state_dict(args)
    settings = ours(args)
    model = loaded(saved(tmp_path, args, state), settings)
    expected = oracle.logits(state, args, TOKENS)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-6, rtol=1e-6)
    NANOGPT.export(Trained(model, settings, PlainBytes(), "", {"step": 7, "val/loss": 2.5}), tmp_path / "back")
    found = torch.load(tmp_path / "back" / "ckpt.pt", weights_only=True)
    assert found["model_args"] == args and (found["iter_num"], found["best_val_loss"]) == (7, 2.5)
    assert found["model"].keys() == state.keys()
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in state.items())


def test_a_compiled_models_prefix_stored_masks_and_padded_rows_are_left_out(tmp_path: Path) -> None:
    args = oracle.arguments(vocab_size=320)  # 257, padded for speed
    state = oracle.state_dict(args)
    stored = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    stored |= {f"_orig_mod.transformer.h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    model = loaded(saved(tmp_path, args, stored), ours(args, vocab_size=257))
    expected = oracle.logits(state, args, TOKENS)[..., :257]
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-6, rtol=1e-6)


def test_a_head_of_its_own_is_read_as_untied_and_never_left_out(tmp_path: Path) -> None:
    args = oracle.arguments()
    state = oracle.state_dict(args)
    state["lm_head.weight"] = state["lm_head.weight"].flip(0)
    path = saved(tmp_path, args, state)
    with pytest.raises(InterchangeError, match=r"model.tied_head=true \(there: false\); add model.tied_head=false"):
        loaded(path, ours(args))
    model = loaded(path, ours(args, tied_head=False))
    torch.testing.assert_close(model(TOKENS), oracle.logits(state, args, TOKENS), atol=1e-6, rtol=1e-6)


def test_a_shorter_block_size_takes_the_first_positions(tmp_path: Path) -> None:
    args = oracle.arguments()
    state = oracle.state_dict(args)
    model = loaded(saved(tmp_path, args, state), ours(args, block_size=13))
    torch.testing.assert_close(model(TOKENS), oracle.logits(state, args, TOKENS), atol=1e-6, rtol=1e-6)


def test_nanogpts_own_way_of_resuming_takes_the_exported_optimizer(tmp_path: Path) -> None:
    settings = ours(oracle.arguments())
    NANOGPT.export(Trained(GPT(**settings), settings, PlainBytes(), "", {"step": 7}), tmp_path / "out")
    found = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in found["model"].items() if name != "lm_head.weight"}
    groups = [
        {"params": [p for p in tensors.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in tensors.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    optimizer.load_state_dict(found["optimizer"])
    for parameter in tensors.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == len(tensors)


def test_characters_go_along_where_nanogpts_sample_py_finds_them(tmp_path: Path) -> None:
    settings, tokenizer = ours(oracle.arguments()), CharacterIds([*"\nab"])
    NANOGPT.export(Trained(GPT(**settings), settings, tokenizer, "", {}), tmp_path / "out")
    name = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)["config"]["dataset"]
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert name == "nanodescent" and meta["itos"] == {0: "\n", 1: "a", 2: "b"} and meta["stoi"]["b"] == 2


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path) -> None:
    args = oracle.arguments()
    path = saved(tmp_path, args, oracle.state_dict(args), config=Trap(tmp_path / "executed"))
    with pytest.raises(InterchangeError, match=r"ckpt.pt holds more than tensors and plain values"):
        NANOGPT.read(path)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_checkpoint_of_nanogpts_is_one_line(tmp_path: Path) -> None:
    args, path = oracle.arguments(), tmp_path / "ckpt.pt"
    with pytest.raises(InterchangeError, match=r"ckpt.pt does not exist"):
        NANOGPT.check(tmp_path)
    path.write_bytes(b"no checkpoint")
    for content, said in (
        (None, "ckpt.pt"),
        ([1], "it must be a mapping"),
        ({"model": {}}, "it must have model_args and model"),
        (oracle.checkpoint(args | {"n_layer": "two"}, {}), "n_layer=two must be a whole number"),
        (oracle.checkpoint(args | {"bias": "False"}, {}), "bias=False must be true or false"),
    ):
        if content is not None:
            torch.save(content, path)
        with pytest.raises(InterchangeError, match=said) as caught:
            NANOGPT.read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_layer": 3}, "has another model: model.n_layer=3 (there: 2); add model.n_layer=2"),
        ({"gelu": "tanh"}, "model.gelu=tanh (there: erf); add model.gelu=erf"),
        ({"bias": False}, "model.bias=false (there: true); add model.bias=true"),
        ({"block_size": 32}, "model.block_size=32 (there: 16)"),
        ({"vocab_size": 300}, "has 257 token ids, the model 300"),
        ({"vocab_size": 100}, "has 257 token ids, the model 100"),
    ],
)
def test_weights_of_another_model_are_refused_with_what_makes_it_the_same(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    args = oracle.arguments()
    path = saved(tmp_path, args, oracle.state_dict(args))
    with pytest.raises(InterchangeError) as caught:
        loaded(path, ours(args, **changed))
    assert said in str(caught.value)


def test_weights_that_lack_something_or_are_not_finite_are_refused(tmp_path: Path) -> None:
    args = oracle.arguments()
    state = oracle.state_dict(args)
    name = "transformer.h.1.mlp.c_fc.weight"
    for changed, said in (
        ({name: None}, "h.1.mlp.c_fc.weight is missing"),
        ({"transformer.h.2.more": torch.ones(2)}, "h.2.more is not known"),
        ({name: torch.ones(3, 16)}, r"h.1.mlp.c_fc.weight has the shape \(3, 16\) and should be \(64, 16\)"),
        ({name: torch.full((64, 16), torch.inf)}, "h.1.mlp.c_fc.weight has numbers that are not finite"),
    ):
        stored = {key: tensor for key, tensor in (state | changed).items() if tensor is not None}
        with pytest.raises(InterchangeError, match=said):
            loaded(saved(tmp_path, args, stored), ours(args))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("gelu", "tanh"), ("tied_head", False), ("qk_norm", True), ("scale_attn_by_inverse_layer_idx", True)],
)
def test_what_nanogpt_cannot_express_is_named(setting: str, value: Any) -> None:
    settings = ours(oracle.arguments(), **{setting: value})
    with pytest.raises(InterchangeError, match=f"nanoGPT's ckpt.pt cannot express this model: model.{setting}="):
        NANOGPT.check_settings("model.GPT", settings)
    with pytest.raises(InterchangeError, match=r"model._target_=model.Llama: it is no model.GPT"):
        NANOGPT.check_settings("model.Llama", settings)
