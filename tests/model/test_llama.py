import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model import Llama
from model.llama import rotated, rotations

TINY = {"vocab_size": 50, "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 12}


def tiny(**options: object) -> Llama:
    torch.manual_seed(0)
    return Llama(**{**TINY, **options})  # type: ignore[arg-type]


def tokens(model: Llama, rows: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.vocab_size, (rows, model.block_size), generator=generator)


THEIR_NAMES = (
    ("tok_embeddings", "model.embed_tokens"),
    ("layers.", "model.layers."),
    ("attention.w", "self_attn.W"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("output", "lm_head"),
    *((f"W{letter}", f"{letter}_proj") for letter in "qkvo"),
)


def hugging_face(model: Llama, *, n_kv_head: int, tied_head: bool) -> LlamaForCausalLM:
    """Their LLaMA with our weights; it turns the halves of a head, not its pairs, so rows of q and k change places."""
    ours, weights = model.state_dict(), {}
    for name, tensor in ours.items():
        if name.endswith(("wq.weight", "wk.weight")):
            tensor = tensor.view(-1, model.D // 2, 2, model.n_embd).transpose(1, 2).reshape(-1, model.n_embd)
        for our, their in THEIR_NAMES:
            name = name.replace(our, their)
        weights["model.norm.weight" if name == "norm.weight" else name] = tensor
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.padded_vocab_size,
            num_hidden_layers=len(model.layers),
            num_attention_heads=4,
            num_key_value_heads=n_kv_head,
            hidden_size=model.n_embd,
            intermediate_size=ours["layers.0.feed_forward.w1.weight"].shape[0],
            max_position_embeddings=model.block_size,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            tie_word_embeddings=tied_head,
        )
    ).eval()
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("tied_head", [False, True])
def test_logits_agree_with_hugging_face(n_kv_head: int, tied_head: bool) -> None:
    model = tiny(n_kv_head=n_kv_head, tied_head=tied_head)
    with torch.no_grad():
        for parameter in model.parameters():  # gains too, and far from their initial values
            parameter.normal_(std=0.3)
        ours = model(tokens(model))
        theirs = hugging_face(model, n_kv_head=n_kv_head, tied_head=tied_head)(tokens(model)).logits
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, theirs[..., : model.vocab_size], rtol=1e-5, atol=1e-5)


def test_scores_depend_on_distances_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = rotations(20, 8, 10000.0, q)

    def turned(x: Tensor, position: int) -> Tensor:
        at = slice(position, position + 1)
        return rotated(x.view(1, 1, 1, 8), cos[at].double(), sin[at].double()).flatten()

    assert float(turned(q, 3) @ turned(k, 1)) == pytest.approx(float(turned(q, 17) @ turned(k, 15)), rel=1e-5)
    assert float(turned(q, 3) @ turned(k, 1)) != pytest.approx(float(turned(q, 3) @ turned(k, 2)), rel=1e-2)
    assert torch.equal(turned(q, 0), q)


def test_the_first_angle_is_the_position_in_radians() -> None:
    cos, sin = rotations(4, 8, 10000.0, torch.zeros(1))
    assert float(cos[3, 0]) == pytest.approx(math.cos(3)) and float(sin[3, 0]) == pytest.approx(math.sin(3))
    assert float(sin[3, 1]) == pytest.approx(math.sin(3 * 10000 ** (-2 / 8)))


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = tiny().eval()
    x, y = tokens(model), tokens(model, seed=2)
    expected = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(model(x, y), expected)


def test_an_untrained_model_knows_nothing() -> None:
    model = tiny(n_embd=64)
    assert float(model(tokens(model), tokens(model, seed=2)).detach()) == pytest.approx(math.log(50), abs=0.1)


def test_every_parameter_has_a_role_and_there_are_no_buffers() -> None:
    model = tiny()
    roles = model.roles()
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert roles["tok_embeddings.weight"] == "embedding" and roles["output.weight"] == "head"
    assert {roles[name] for name in roles if "norm" in name} == {"vector"}
    assert {roles[name] for name in roles if ".attention.w" in name or "feed_forward" in name} == {"matrix"}
    assert not list(model.buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_head": 3}, "model.n_head=4 must be a multiple of model.n_kv_head=3"),
        ({"n_embd": 12}, "model.n_embd=12 / model.n_head=4 must be even"),
        ({"n_embd": 30}, "model.n_embd=30 must be a multiple of model.n_head=4; nearest: 28 or 32"),
        ({"n_hidden": 0}, "model.n_hidden=0 must be >= 1"),
        ({"rope_base": 0.0}, "model.rope_base=0.0 must be > 0"),
    ],
)
def test_impossible_shapes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
