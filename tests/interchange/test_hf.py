"""Hugging Face's GPT-2, read and written; transformers is the oracle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.tokenizers import BPE, BytePairs, PlainBytes, Tokenizer
from data.tokenizers_of_others import CharacterIds, Numbers
from interchange import LAYOUTS, InterchangeError, Trained
from interchange.fitting import load
from model import GPT

HF = LAYOUTS["hf"]
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16}
OPTIONS = {
    "dropout": 0.0,
    "bias": True,
    "tied_head": True,
    "scale_attn_by_inverse_layer_idx": False,
    "gelu": "tanh",
    "qk_norm": False,
    "vocab_multiple": 64,
}
TEXT = "def f(x):\n    return  x + 1  # naïve, 12345\n\n日本 <|endoftext|>s"


def settings(**changed: Any) -> dict[str, Any]:
    return SIZES | OPTIONS | {"block_size": 32, "vocab_size": 257} | changed


def trained(tokenizer: Tokenizer | None = None, **changed: Any) -> Trained:
    """A model with random weights, the vectors random too."""
    used = settings(**changed)
    model = GPT(**used).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return Trained(model, used, tokenizer or PlainBytes(), "# A card\n", {"step": 3})


def theirs(**changed: Any) -> Any:
    """A random GPT-2 of transformers'."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    found = GPT2LMHeadModel(GPT2Config(**SIZES, n_positions=32, vocab_size=257, **changed)).eval()
    for parameter in found.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return found


def loaded(folder: Path, **changed: Any) -> GPT:
    used = settings(**changed)
    model = GPT(**used).eval()
    load(HF.read(folder), model, used | {"_target_": "model.GPT"}, PlainBytes(), "start_from=it")
    return model


def pairs() -> BytePairs:
    """A vocabulary with merges, learnt from this file."""
    found = BPE(400).fit(lambda n_bytes: iter([Path(__file__).read_text()]))
    assert isinstance(found, BytePairs)
    return found


TOKENS = torch.arange(40).reshape(2, 20) * 6


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"tied_head": False}),
        ({"activation_function": "gelu"}, {"gelu": "erf"}),
        ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_logits_are_transformers(tmp_path: Path, options: dict[str, Any], changed: dict[str, Any]) -> None:
    model = theirs(**options)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tmp_path, **changed)(TOKENS), model(TOKENS).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["parts", "pickle", "without a prefix"])
def test_every_form_of_the_files_is_read(tmp_path: Path, form: str) -> None:
    model = theirs()
    if form == "parts":
        model.save_pretrained(tmp_path, max_shard_size="10KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    else:
        model.config.save_pretrained(tmp_path)
        stored = model.state_dict() | {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}
        if form == "without a prefix":  # as OpenAI's weights on the hub are
            stored = {k.removeprefix("transformer."): v for k, v in stored.items() if k != "lm_head.weight"}
        torch.save(stored, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(loaded(tmp_path)(TOKENS), model(TOKENS).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"bias": False},
        {"tied_head": False},
        {"gelu": "erf", "scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_an_exported_model_is_the_same_in_transformers_and_comes_back_bit_for_bit(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    found = trained(**changed)
    HF.export(found, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.config.vocab_size == 257  # the padding is gone
    torch.testing.assert_close(model(TOKENS).logits, found.model(TOKENS), atol=1e-6, rtol=1e-6)
    back = loaded(tmp_path / "out", **changed)
    for (name, ours), parameter in zip(back.named_parameters(), found.model.parameters(), strict=True):
        rows = 257 if name in ("wte.weight", "head.weight") else None
        assert torch.equal(ours[:rows], parameter[:rows]), name


def test_transformers_greedy_continuation_is_ours(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = trained()
    HF.export(found, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.generation_config.eos_token_id = None  # ours goes on after an end of text
    prompt = TOKENS[:1, :4]
    theirs = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=256)
    assert torch.equal(theirs, found.model.generate(prompt, 24, temperature=0))


@pytest.mark.parametrize("kind", [PlainBytes, pairs])
def test_the_exported_tokenizer_gives_our_ids_and_texts(tmp_path: Path, kind: Any) -> None:
    from transformers import AutoTokenizer

    ours = kind()
    HF.export(trained(ours, vocab_size=ours.vocab_size), tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = TEXT.replace("<|endoftext|>", "")
    assert found(text)["input_ids"] == ours.encode(text)
    assert found.decode(ours.encode(text)) == text
    assert (found.eos_token_id, len(found)) == (ours.eot, ours.vocab_size)
    assert found("a<|endoftext|>")["input_ids"] == [*ours.encode("a"), ours.eot]
    read = HF.read(tmp_path / "out").tokens
    assert read == {id: ours.token_bytes(id) for id in range(ours.eot)} | {ours.eot: b"<|endoftext|>"}


@pytest.mark.parametrize("ours", [CharacterIds(["\n", "a", "b"]), CharacterIds(["a", "\n"]), Numbers(300, 299)])
def test_a_tokenizer_that_does_not_merge_bytes_is_refused(tmp_path: Path, ours: Tokenizer) -> None:
    with pytest.raises(InterchangeError, match=rf"cannot express data.tokenizer={ours.kind}; use to=nanogpt"):
        HF.export(trained(ours, vocab_size=ours.vocab_size), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_merges_are_those_that_were_learnt(tmp_path: Path) -> None:
    """Only the tokens are kept; tokenizers, which learnt them, says which pairs they were."""
    learnt = json.loads(BPE(400).train(iter([Path(__file__).read_text()])).to_str())["model"]["merges"]
    HF.export(trained(pairs(), vocab_size=400), tmp_path / "out")
    lines = (tmp_path / "out" / "merges.txt").read_text().splitlines()[1:]
    assert [line.split(" ") for line in lines] == [list(pair) for pair in learnt]


def test_the_files_of_a_tokenizer_of_older_versions_are_the_same_vocabulary(tmp_path: Path) -> None:
    HF.export(trained(pairs(), vocab_size=400), tmp_path / "out")
    vocab = HF.read(tmp_path / "out").tokens
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert HF.read(tmp_path / "out").tokens == vocab


def test_data_with_another_tokenizer_are_refused(tmp_path: Path) -> None:
    HF.export(trained(pairs(), vocab_size=400), tmp_path / "out")
    with pytest.raises(InterchangeError, match=r"another tokenizer than the data: its token 0 is .*data/tokenizer="):
        loaded(tmp_path / "out", vocab_size=400)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "llama"}, "model_type=llama must be gpt2"),
        ({"n_inner": 17}, "n_inner=17 must be 4 n_embd"),
        ({"activation_function": "relu"}, "activation_function=relu must be one of gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 must be 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights=false must be true"),
        ({"n_layer": "many"}, "n_layer=many must be a whole number"),
        ({"activation_function": ["gelu"]}, "activation_function=['gelu'] must be one of gelu_new"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings=no must be true or false"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx=1 must be true or false"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    HF.export(trained(), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InterchangeError) as caught:
        HF.read(tmp_path / "out")
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_qk_norm_cannot_be_exported_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InterchangeError, match=r"model.qk_norm=true: it has false alone"):
        HF.check_settings("model.GPT", settings(qk_norm=True))


def test_a_failed_export_leaves_nothing_and_a_used_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("mine")
    with pytest.raises(InterchangeError, match="exists; choose a new folder"):
        HF.export(trained(), tmp_path / "used")

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("interchange.hf.write_json", full)
    with pytest.raises(InterchangeError, match="out=.*/out cannot be written: disk full; choose another folder"):
        HF.export(trained(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    HF.export(trained(), tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InterchangeError, match=file) as caught:
        HF.read(tmp_path / "out")
    assert "\n" not in str(caught.value)


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_of_a_pickle_is_executed(tmp_path: Path) -> None:
    theirs().config.save_pretrained(tmp_path)
    torch.save({"a": Trap(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InterchangeError, match=r"pytorch_model.bin holds more than tensors and plain"):
        HF.read(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("../secret.safetensors", "weight_map must name, for each tensor, a file of this folder"),
        (["part.safetensors"], "weight_map must name, for each tensor, a file of this folder"),
        ("none.safetensors", "none.safetensors cannot be read: No such file"),
    ],
)
def test_parts_that_are_no_files_of_the_folder_are_refused(tmp_path: Path, part: Any, said: str) -> None:
    HF.export(trained(), tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    index = {"weight_map": {"transformer.wte.weight": part}}
    (tmp_path / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InterchangeError, match=said):
        HF.read(tmp_path / "out")


def test_a_weight_in_two_parts_is_refused(tmp_path: Path) -> None:
    theirs().config.save_pretrained(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"transformer.wpe.weight": torch.ones(32, 16)}, tmp_path / name)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InterchangeError, match=r"has the weight wpe.weight twice \(transformer.wpe.weight\)"):
        HF.read(tmp_path)


def test_a_head_of_its_own_in_a_tied_model_is_refused(tmp_path: Path) -> None:
    theirs(tie_word_embeddings=False).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(InterchangeError, match=r"lm_head.weight differs from wte.weight, but config.json has tie_word"):
        HF.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": ["x"], "id": 1}]}, r"not \['x'\] to 1; save"),
        ({"model": {"vocab": {"a": "0"}}}, "must map texts to whole numbers, not a to 0; save"),
        ({"model": {"vocab": [["a", 1.0]]}}, r"must have a model.vocab of texts and ids, as BPE has"),
        ({"model": {"vocab": {}}, "added_tokens": {"x": 1}}, "and a list of added_tokens"),
    ],
)
def test_a_tokenizer_with_values_of_wrong_types_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    HF.export(trained(), tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InterchangeError, match=said) as caught:
        HF.read(tmp_path / "out")
    assert str(tmp_path / "out" / "tokenizer.json") in str(caught.value)
