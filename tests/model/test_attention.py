"""Attention in blocks beside the definition, and where it is left to torch."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import attention as module
from model.attention import attention
from model.gpt import GPT


def inputs(T: int, D: int = 16, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T)
    made = [torch.randn(2, T, 3, D, generator=generator).to(dtype) for _ in range(4)]  # (B, T, H, D), as a model has
    return [x.transpose(1, 2).requires_grad_(n < 3) for n, x in enumerate(made)]


def defined(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition in float64, line by line."""
    scores = scale * (q @ k.mT)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def passed(attend: Any, parts: list[Tensor], **how: Any) -> list[Tensor]:
    """Output and gradients of the three inputs."""
    q, k, v, grad = parts
    y = attend(q, k, v, **how)
    return [y, *torch.autograd.grad(y, (q, k, v), grad.to(y.dtype))]


def error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float(((f.double() - e).norm() / e.norm()).detach()) for f, e in zip(found, exact, strict=True)]


@pytest.mark.parametrize("T", [2, 7, 64, 256, 257, 300, 512])
def test_blocks_are_as_near_to_the_definition_as_torchs_kernel(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, scale = inputs(T), 0.3
    exact = passed(defined, [x.detach().double().requires_grad_(x.requires_grad) for x in parts], scale=scale)
    theirs = error(passed(F.scaled_dot_product_attention, parts, is_causal=True, scale=scale), exact)
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", lambda *q, **how: pytest.fail("was torch's"))
    ours = error(passed(attention, parts, is_causal=True, scale=scale), exact)
    assert all(mine <= 2 * its + 1e-3 and mine < 0.01 for mine, its in zip(ours, theirs, strict=True))


def test_no_token_sees_a_later_one() -> None:
    q, k, v, _ = inputs(300)
    before = attention(q, k, v, is_causal=True)
    with torch.no_grad():
        k[:, :, 280:] += 5
        v[:, :, 280:] = 100
    assert torch.equal(attention(q, k, v, is_causal=True)[:, :, :280], before[:, :, :280])


@pytest.mark.parametrize(
    ("T", "dtype", "how"),
    [
        (64, torch.float32, {"is_causal": True}),
        (64, torch.bfloat16, {"is_causal": True, "dropout_p": 0.5}),
        (64, torch.bfloat16, {}),
        (1, torch.bfloat16, {"is_causal": True}),
        (513, torch.bfloat16, {"is_causal": True}),
    ],
)
def test_the_rest_is_torchs(T: int, dtype: torch.dtype, how: dict[str, Any]) -> None:
    parts = inputs(T, dtype=dtype)
    torch.manual_seed(3)
    found = passed(attention, parts, **how)
    torch.manual_seed(3)
    for f, e in zip(found, passed(F.scaled_dot_product_attention, parts, **how), strict=True):
        assert torch.equal(f, e)


def test_second_derivatives_come_from_torchs_math_kernel() -> None:
    q, k, v, _ = inputs(16)
    with sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(attention(q, k, v, is_causal=True).float().square().sum(), q, create_graph=True)
    assert torch.autograd.grad(slope.float().square().sum(), k)[0].isfinite().all()
    (slope,) = torch.autograd.grad(attention(q, k, v, is_causal=True).float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.float().square().sum().backward()


def test_a_model_in_bfloat16_has_the_gradients_of_float32_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=64, n_layer=2, n_head=2, n_embd=32, block_size=320)
    tokens = torch.randint(64, (2, 321))

    def gradient(precision: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        found = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([g.flatten() for g in found])

    exact, ours = gradient(False), gradient(True)
    monkeypatch.setattr(module, "LONGEST", 0)
    theirs = gradient(True)
    assert not torch.equal(ours, theirs)
    assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm() < 0.02 * exact.norm()
