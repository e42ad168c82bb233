import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

from model import GPT
from model.base import INIT_STD

TINY = {"vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12}


def tiny(**options: object) -> GPT:
    torch.manual_seed(0)
    return GPT(**{**TINY, **options})  # type: ignore[arg-type]


def tokens(model: GPT, rows: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.vocab_size, (rows, model.block_size), generator=generator)


def hugging_face(model: GPT) -> GPT2LMHeadModel:
    """Their GPT-2 with our model's weights; their linear layers lie (in, out)."""
    scales = {block.attn.scale for block in model.h}
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.padded_vocab_size,
            n_layer=len(model.h),
            n_head=model.h[0].attn.n_head,
            n_embd=model.n_embd,
            n_positions=model.block_size,
            scale_attn_by_inverse_layer_idx=len(scales) > 1,
        )
    ).eval()
    ours = model.state_dict()
    weights = {}
    for name in theirs.state_dict():
        tensor = ours[name.removeprefix("transformer.").replace("lm_head", "head")]
        is_linear = ".attn.c_" in name or ".mlp.c_" in name
        weights[name] = tensor.t() if is_linear and tensor.ndim == 2 else tensor
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("inverse_layer_idx", [False, True])
def test_logits_agree_with_hugging_face(inverse_layer_idx: bool) -> None:
    model = tiny(n_layer=3, n_embd=32, scale_attn_by_inverse_layer_idx=inverse_layer_idx)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too, and far from their initial values
            parameter.normal_(std=0.3)
        ours, theirs = model(tokens(model)), hugging_face(model)(tokens(model)).logits
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, theirs[..., : model.vocab_size], rtol=1e-5, atol=1e-5)


def test_greedy_tokens_are_those_of_hugging_faces_generate() -> None:
    model = tiny(n_layer=3, n_embd=32, vocab_multiple=1, block_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    prompt = tokens(model)[:, :5]
    theirs = hugging_face(model).generate(prompt, do_sample=False, max_new_tokens=20, min_new_tokens=20, pad_token_id=0)
    assert torch.equal(model.generate(prompt, 20, temperature=0), theirs) and len(theirs[:, 5:].unique()) > 3


def test_the_exact_gelu_is_near_gpt2s_and_not_the_same() -> None:
    models = [tiny(gelu=gelu) for gelu in ("tanh", "erf")]
    with torch.no_grad():
        for parameter in (p for model in models for p in model.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    approximate, exact = (model(tokens(model)) for model in models)
    assert not torch.equal(approximate, exact)
    # The two differ by at most 5e-4 anywhere; here 64 of them meet weights of 0.3, layer after layer.
    torch.testing.assert_close(approximate, exact, rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"tied_head": False}, {"qk_norm": True}, {"vocab_multiple": 128}, {"dropout": 0.1}]
)
def test_the_loss_is_the_cross_entropy_of_the_logits(options: dict[str, object]) -> None:
    model = tiny(**options).eval()
    x, y = tokens(model), tokens(model, seed=2)
    logits = model(x)
    assert logits.shape == (3, 12, 50)
    torch.testing.assert_close(model(x, y), F.cross_entropy(logits.flatten(0, 1), y.flatten()))


def test_padded_rows_change_neither_loss_nor_gradients() -> None:
    padded, exact = tiny(vocab_multiple=64), tiny(vocab_multiple=1)
    state = padded.state_dict()
    exact.load_state_dict(
        {name: tensor[:50] if name in ("wte.weight", "head.weight") else tensor for name, tensor in state.items()}
    )
    x, y = tokens(exact), tokens(exact, seed=2)
    losses = [model(x, y) for model in (padded, exact)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(padded.wte.weight.grad[:50], exact.wte.weight.grad)
    assert not padded.wte.weight.grad[50:].any()


def test_no_token_sees_a_later_one() -> None:
    model = tiny()
    x = tokens(model)
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_initial_weights_are_gpt2s() -> None:
    model = tiny(n_layer=8, n_embd=64, vocab_size=1000)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            std = INIT_STD / math.sqrt(16) if "c_proj" in name else INIT_STD
            # The standard error of a standard deviation is std / sqrt(2 n).
            assert abs(float(parameter.detach().std()) - std) < 5 * std / math.sqrt(2 * parameter.numel()), name


def test_the_first_loss_is_that_of_guessing() -> None:
    model = tiny(vocab_size=1000)
    assert model(tokens(model), tokens(model, seed=2)).item() == pytest.approx(math.log(1000), rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_role(tied: bool) -> None:
    model = tiny(tied_head=tied, qk_norm=True)
    roles = model.roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert {name for name, role in roles.items() if role == "embedding"} == {"wte.weight", "wpe.weight"}
    assert {name for name, role in roles.items() if role == "head"} == (set() if tied else {"head.weight"})
    assert sum(role == "matrix" for role in roles.values()) == 4 * 2
    assert all((role == "vector") == (p.ndim == 1) for p, role in zip(model.parameters(), roles.values(), strict=True))


def test_bf16_autocast_stays_near_fp32() -> None:
    model = tiny()
    x, y = tokens(model), tokens(model, seed=2)
    exact = model(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, y)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2**-8, atol=0)


def test_float64_computes_in_float64() -> None:
    model = tiny().double()
    assert model(tokens(model), tokens(model, seed=2)).dtype == torch.float64


def test_the_math_kernel_has_a_second_derivative() -> None:
    model = tiny().double()
    x, y, parameters = tokens(model), tokens(model, seed=2), list(model.parameters())
    directions = [torch.randn_like(p) for p in parameters]

    def slopes(shift: float) -> list[torch.Tensor]:
        with torch.no_grad():
            for p, u in zip(parameters, directions, strict=True):
                p += shift * u
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        return list(torch.autograd.grad(loss, parameters, create_graph=True))

    step = 1e-6  # its square times the third derivative stays below the tolerance
    slope = sum((g * u).sum() for g, u in zip(slopes(0), directions, strict=True))
    exact = torch.autograd.grad(slope, parameters)
    high, low = slopes(step), slopes(-2 * step)
    for hvp, above, below in zip(exact, high, low, strict=True):
        torch.testing.assert_close(hvp, (above - below).detach() / (2 * step), rtol=1e-4, atol=1e-7)


def test_a_model_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        model = GPT(vocab_size=50257, n_layer=48, n_head=25, n_embd=1600, block_size=1024)
    assert all(p.is_meta for p in model.parameters())


def test_compiled_and_eager_agree() -> None:
    model = tiny()
    x, y = tokens(model), tokens(model, seed=2)
    eager = model(x, y)
    model.compile(backend="aot_eager")
    torch.testing.assert_close(model(x, y), eager)
    assert all("_orig_mod" not in name for name in model.state_dict())


def test_generation_is_repeatable_and_longer_than_a_block() -> None:
    model = tiny(dropout=0.5)
    prompt = tokens(model, rows=2)[:, :3]
    runs = [model.generate(prompt, 20, top_k=5, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape == (2, 23)
    assert torch.equal(runs[0][:, :3], prompt)
    assert runs[0].max() < 50
    assert model.training


def test_temperature_zero_and_top_1_take_the_likeliest_token() -> None:
    model = tiny()
    prompt = tokens(model)[:, :5]
    likeliest = model.generate(prompt, 6, temperature=0)
    assert torch.equal(likeliest[:, 5], model(prompt)[:, -1].argmax(-1))
    assert torch.equal(likeliest, model.generate(prompt, 6, top_k=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layer": 0}, "model.n_layer=0 must be >= 1"),
        ({"vocab_size": None}, "model.vocab_size is missing"),
        ({"block_size": 0}, "model.block_size=0 must be >= 1"),
        ({"gelu": "relu"}, "model.gelu='relu' must be tanh or erf"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must lie in \[0, 1\)"),
        ({"n_head": 3}, "model.n_embd=16 must be a multiple of model.n_head=3; nearest: 15 or 18"),
    ],
)
def test_impossible_shapes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
