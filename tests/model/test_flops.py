from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs import compose
from model import GPT, GPTConfig
from model.flops import flops_per_token, forward_flops_per_token, parameter_count, peak_flops

SHAPES = [
    GPTConfig(50, 2, 2, 16, 12),
    GPTConfig(64, 3, 4, 32, 16, bias=False, tied_head=False),
    GPTConfig(100, 1, 2, 16, 8, qk_norm=True, vocab_multiple=1),
]
# Layers, heads, width and the parameters that their papers and Hugging Face's configurations give (V = 50257).
PUBLISHED = {
    "gpt2_small": (12, 12, 768, 124_439_808),
    "gpt2_medium": (24, 16, 1024, 354_823_168),
    "gpt2_large": (36, 20, 1280, 774_030_080),
    "gpt2_xl": (48, 25, 1600, 1_557_611_200),
}


def from_yaml(name: str) -> GPTConfig:
    settings = {**compose([f"model={name}"]).model, "vocab_size": 50257, "vocab_multiple": 1}
    return GPTConfig(**settings)


@pytest.mark.parametrize("config", SHAPES)
def test_the_count_is_that_of_the_model(config: GPTConfig) -> None:
    assert parameter_count(config) == sum(p.numel() for p in GPT(config).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_gpt2s_sizes_have_their_published_counts(name: str) -> None:
    config = from_yaml(name)
    assert (config.n_layer, config.n_head, config.n_embd, parameter_count(config)) == PUBLISHED[name]


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[2] / "configs/model").glob("*.yaml")])
def test_every_option_tells_its_parameter_count(name: str) -> None:
    vocab_size = 4096 if name in ("pico", "nano", "micro") else 50257
    settings = {**compose([f"model={name}"]).model, "vocab_size": vocab_size, "vocab_multiple": 1}
    told = (Path(__file__).parents[2] / f"configs/model/{name}.yaml").read_text().splitlines()[0]
    assert f"{parameter_count(GPTConfig(**settings)):,} parameters with a vocabulary of {vocab_size:,}" in told


@pytest.mark.parametrize("config", SHAPES)
def test_operations_are_those_that_torch_counts(config: GPTConfig) -> None:
    model = GPT(config)
    x = torch.randint(0, config.vocab_size, (2, config.block_size))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(x, x)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert forward.get_total_flops() == forward_flops_per_token(config) * x.numel()
    assert forward.get_total_flops() + backward.get_total_flops() == flops_per_token(config) * x.numel()


def test_shorter_sequences_need_less_attention() -> None:
    config = SHAPES[0]
    assert flops_per_token(config, 6) == flops_per_token(config) - 3 * 2 * 2 * 2 * 6 * 16


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
