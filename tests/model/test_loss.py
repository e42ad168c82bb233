import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import loss as loss_module
from model.loss import cross_entropy


def logits_and_targets(dtype: torch.dtype, n: int = 37, v: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(n, v, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(0, v, (n,), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)]
)
@pytest.mark.parametrize("chunk", [1, 500, 1 << 20])
def test_loss_and_gradient_are_those_of_the_plain_form(
    dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    logits, targets = logits_and_targets(dtype)
    exact = logits.detach().double().requires_grad_()
    expected = 3 * F.cross_entropy(exact, targets)
    found = 3 * cross_entropy(logits * 1, targets)  # which writes over its input
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=max(1e-14, 1e-6 * (dtype != torch.float64)))
    found.backward()
    expected.backward()
    assert logits.grad is not None and exact.grad is not None
    # An entry of the gradient is rounded once to the logits' dtype, a product with the outer factor once more.
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * tolerance, atol=1e-7)


@pytest.mark.parametrize("is_compiling", [False, True])  # which then takes the plain form
def test_columns_beyond_the_vocabulary_take_no_part(is_compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    logits, targets = logits_and_targets(torch.float32)
    targets = targets.clamp(max=39)
    exact = logits.detach()[:, :40].clone().requires_grad_()
    expected = F.cross_entropy(exact, targets)
    found = cross_entropy(logits * 1, targets, 40)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    assert logits.grad is not None and exact.grad is not None
    assert not logits.grad[:, 40:].any()
    torch.testing.assert_close(logits.grad[:, :40], exact.grad)


def test_without_gradients_none_is_made() -> None:
    logits, targets = logits_and_targets(torch.float32)
    with torch.no_grad():
        found = cross_entropy(logits, targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, F.cross_entropy(logits.detach(), targets))
    torch.testing.assert_close(logits, logits_and_targets(torch.float32)[0])  # nothing is written over them


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    logits, targets = logits_and_targets(torch.float32)
    scale = torch.ones((), requires_grad=True)
    (slope,) = torch.autograd.grad(cross_entropy(logits * 1, targets) * scale, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()
