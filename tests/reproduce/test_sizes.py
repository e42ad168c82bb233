"""Sizes of models, counted by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.claims import load
from reproduce.sizes import sizes


def in_blocks(layers: int, width: int) -> int:
    """GPT-2's: 12 d^2 in a layer's matrices, 9 d in their biases, 4 d in two norms; and the last norm's 2 d."""
    return layers * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(
    ("overrides", "numbers", "tokens"),
    [
        (["model=gpt2_small", "global_batch=480"], in_blocks(12, 768), 480 * 1024),  # 85M of the 124M
        (["model=gpt2_medium", "global_batch=480"], in_blocks(24, 1024), 480 * 1024),
        (["model.n_layer=3", "model.n_head=3", "model.n_embd=96", "model.block_size=128", "global_batch=32"],
         in_blocks(3, 96), 4096),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_blocks_and_tokens_those_of_a_step(
    overrides: list[str], numbers: int, tokens: int, write_claim: Callable[..., Path]
) -> None:
    claim = load("twice", "nano", ["data=synthetic", *overrides], folder=write_claim())
    assert sizes(claim) == (numbers, tokens)


def test_gpt2_smalls_blocks_are_the_papers_85_million() -> None:
    assert in_blocks(12, 768) == 85_056_000


@pytest.mark.parametrize("vocabulary", [512, 5000])
def test_neither_embedding_nor_head_counts(vocabulary: int, write_claim: Callable[..., Path]) -> None:
    own = [f"model.vocab_size={vocabulary}", "model.tie_weights=false"]
    small = ["data=synthetic", "model.n_layer=1", "model.n_head=2", "model.n_embd=16"]
    assert sizes(load("twice", "nano", [*small, own[0]], folder=write_claim()))[0] == in_blocks(1, 16)


def test_the_shipped_scale_has_the_tokens_per_parameter_that_r8_asks_for() -> None:
    for scale in ("nano", "micro", "gpu"):
        claim = load("sophia_2x", scale)
        numbers, tokens = sizes(claim)
        assert tokens * claim.fields.budget >= 10 * numbers, scale
