from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from model import GPT, LanguageModel, Llama
from model.cache import Cache, LayerCache
from model.generation import Sampling, stream

SIZES = {"vocab_size": 50, "n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24}
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "gpt": lambda: GPT(**SIZES),
    "gpt without biases": lambda: GPT(**SIZES, bias=False, tied_head=False, gelu="erf"),
    "gpt of mistral": lambda: GPT(**SIZES, scale_attn_by_inverse_layer_idx=True, dropout=0.2),
    "gpt with qk norm": lambda: GPT(**SIZES, qk_norm=True),
    "llama": lambda: Llama(**SIZES),
    "llama with grouped queries": lambda: Llama(**SIZES, n_kv_head=2, tied_head=True),
}
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.9, top_k=20, top_p=0.95)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    found = MODELS[request.param]().eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():  # so that the likeliest token is not always the same
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=float(is_gain), std=0.02 if name.endswith("bias") else 0.3)
    return found


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_prompt", [1, 7])
def test_logits_with_a_cache_are_those_without_to_rounding(
    model: LanguageModel, n_prompt: int, dtype: torch.dtype
) -> None:
    model, x = model.to(dtype), tokens(3, 24)
    cache = Cache(len(model.blocks), 24)
    with torch.no_grad():
        expected = model(x)
        found = [model.forward_cached(x[:, :n_prompt], cache)]
        found += [model.forward_cached(x[:, n : n + 1], cache) for n in range(n_prompt, 24)]
    assert cache.length == 24 and expected.abs().max() > 1
    rounding = 64 * torch.finfo(dtype).eps * float(expected.abs().max())  # of some dozen sums, one after the other
    torch.testing.assert_close(torch.stack(found, 1), expected[:, n_prompt - 1 :], rtol=0, atol=rounding)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("n_prompt", [1, 5, 24, 30])
def test_tokens_with_a_cache_are_those_without_also_beyond_a_block(
    model: LanguageModel, n_prompt: int, sampling: Sampling
) -> None:
    found = {}
    for use_cache in (True, False):
        generator = torch.Generator().manual_seed(7)
        drawn = stream(model.double(), tokens(2, n_prompt), 30, sampling, generator=generator, use_cache=use_cache)
        found[use_cache] = torch.cat(list(drawn), 1)
    assert found[True].shape == (2, 30) and len(found[True].unique()) > 3
    assert torch.equal(found[True], found[False])


@pytest.mark.parametrize(("use_cache", "expected"), [(True, 5 + 9), (False, sum(range(5, 15)))])
def test_with_a_cache_each_token_passes_through_the_model_once(
    model: LanguageModel, use_cache: bool, expected: int
) -> None:
    passed = []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: passed.append(output.shape[1]))
    list(stream(model, tokens(1, 5), 10, GREEDY, use_cache=use_cache))
    assert sum(passed) == expected


def test_a_single_token_needs_no_cache(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "forward_cached", None)
    assert len(list(stream(model, tokens(1, 5), 1, GREEDY))) == 1


class Reversed(GPT):
    """A user's architecture, which changes what a GPT computes."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().forward(tokens, targets).flip(-1)


def test_a_model_that_changes_forward_alone_generates_without_a_cache() -> None:
    torch.manual_seed(0)
    changed = Reversed(**SIZES).eval()
    x = tokens(1, 5)
    expected = x
    for _ in range(6):
        expected = torch.cat([expected, changed(expected)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(changed.generate(x, 6, temperature=0), expected)


def test_the_model_trains_again_when_its_tokens_are_drawn_or_no_longer_wanted() -> None:
    model = GPT(**SIZES, dropout=0.5).train()
    drawn = stream(model, tokens(1, 3), 5, GREEDY)
    next(drawn)
    assert not model.training
    drawn.close()
    assert model.training
    assert len(list(stream(model, tokens(1, 3), 5, GREEDY))) == 5 and model.training


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_tokens_that_hugging_face_keeps(top_k: int | None, top_p: float) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected = logits / 0.7
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    expected = TopPLogitsWarper(top_p)(None, expected).softmax(-1)
    found = Sampling(0.7, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected)


def test_a_small_top_p_takes_the_likeliest_token() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    for top_p in (1e-6, 1e-300):
        assert torch.equal(Sampling(top_p=top_p).draw(logits)[:, 0], logits.argmax(-1))


def test_a_temperature_beyond_fp32_makes_the_tokens_that_top_k_leaves_alike() -> None:
    found = Sampling(1e300, top_k=2).probabilities(torch.tensor([[1.0, 5.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 0.5]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be >= 0"),
        ({"temperature": float("nan")}, "temperature=nan must be >= 0"),
        ({"temperature": float("inf")}, "temperature=inf must be >= 0 and finite"),
        ({"top_k": 0}, "top_k=0 must be >= 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be > 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be > 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]  # as a user may


def test_a_cache_refuses_what_it_cannot_hold() -> None:
    cache, part = LayerCache(4), torch.randn(1, 2, 3, 8)
    cache(part, part, part, is_causal=True)
    with pytest.raises(ValueError, match="takes one token at a time, got 3"):
        cache(part, part, part, is_causal=True)
    cache(*[part[:, :, :1]] * 3, is_causal=True)
    with pytest.raises(ValueError, match="a cache for 4 tokens got 5"):
        cache(*[part[:, :, :1]] * 3, is_causal=True)
