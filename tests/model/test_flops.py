from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs import compose, plug_in
from model import GPT, LanguageModel, Llama
from model.flops import flops_per_token, parameter_count, peak_flops

MODELS: list[Callable[[], LanguageModel]] = [
    lambda: GPT(vocab_size=50, n_layer=2, n_head=2, n_embd=16, block_size=12),
    lambda: GPT(vocab_size=64, n_layer=3, n_head=4, n_embd=32, block_size=16, bias=False, tied_head=False),
    lambda: GPT(vocab_size=100, n_layer=1, n_head=2, n_embd=16, block_size=8, qk_norm=True, vocab_multiple=1),
    lambda: Llama(vocab_size=50, n_layer=2, n_head=2, n_embd=16, block_size=12),
    lambda: Llama(
        vocab_size=64, n_layer=1, n_head=4, n_kv_head=2, n_embd=32, n_hidden=24, block_size=8, tied_head=True
    ),
]
# Layers, heads, width and the parameters that their papers and Hugging Face's configurations give (V = 50257).
PUBLISHED = {
    "gpt2_small": (12, 12, 768, 124_439_808),
    "gpt2_medium": (24, 16, 1024, 354_823_168),
    "gpt2_large": (36, 20, 1280, 774_030_080),
    "gpt2_xl": (48, 25, 1600, 1_557_611_200),
}


def from_yaml(name: str, vocab_size: int) -> LanguageModel:
    config = compose([f"model={name}", "model.vocab_multiple=1"])
    with torch.device("meta"):
        model: LanguageModel = plug_in(config.model, vocab_size=vocab_size)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_gpt2s_sizes_have_their_published_counts(name: str) -> None:
    shape = compose([f"model={name}"]).model
    found = (shape["n_layer"], shape["n_head"], shape["n_embd"], parameter_count(from_yaml(name, 50257)))
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[2] / "configs/model").glob("*.yaml")])
def test_every_option_tells_its_parameter_count(name: str) -> None:
    vocab_size = 4096 if name in ("pico", "nano", "micro", "llama_nano") else 50257
    vocab_size = 32000 if name in ("llama_1b", "llama_7b") else vocab_size
    told = (Path(__file__).parents[2] / f"configs/model/{name}.yaml").read_text().splitlines()[0]
    assert f"{parameter_count(from_yaml(name, vocab_size)):,} parameters with a vocabulary of {vocab_size:,}" in told


@pytest.mark.parametrize("build", MODELS)
def test_operations_are_those_that_torch_counts(build: Callable[[], LanguageModel]) -> None:
    model = build()
    x = torch.randint(0, model.vocab_size, (2, model.block_size))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(x, x)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert forward.get_total_flops() == model.forward_flops_per_token() * x.numel()
    assert forward.get_total_flops() + backward.get_total_flops() == flops_per_token(model) * x.numel()


def test_shorter_sequences_need_less_attention() -> None:
    model = MODELS[0]()
    assert flops_per_token(model, 6) == flops_per_token(model) - 3 * 2 * 2 * 2 * 6 * 16


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA GH200 480GB", torch.bfloat16, 989e12),
        ("Tesla T4", torch.float32, 8.1e12),
        ("NVIDIA RTX A1000 Laptop GPU", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),
        ("NVIDIA T400 4GB", torch.float32, None),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("Intel(R) Xeon(R) Processor", torch.float32, None),
    ],
)
def test_peaks_are_known_or_none(name: str, dtype: torch.dtype, peak: float | None) -> None:
    assert peak_flops(name, dtype) == peak
