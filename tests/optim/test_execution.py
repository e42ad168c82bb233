"""How rules meet tensors: pieces, packs and compilation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optim import SGD, AdamW, GaussNewtonBartlett, Lion, Signum, Sophia, execution
from optim.base import Optimizer
from optim.execution import CACHED, PACK, PACKED_BELOW, TOGETHER, flat_pieces, whole_tensors

SIZES = [(3,), (PACKED_BELOW,), (2, 5), (1,), (CACHED + 1, 2), (PACKED_BELOW - 1,), ()]


def parameters(sizes: list[tuple[int, ...]] = SIZES) -> list[Tensor]:
    torch.manual_seed(0)
    found = [torch.randn(size, requires_grad=True) for size in sizes]
    found.append(torch.randn(PACKED_BELOW // 64, 80).t().requires_grad_())  # long and not contiguous
    for param in found:
        param.grad = torch.randn_like(param, memory_format=torch.contiguous_format)
    return found


@torch.no_grad()
@pytest.mark.parametrize("compiled", [True, False])
def test_pieces_hold_every_number_once_and_are_written_back(compiled: bool) -> None:
    params = parameters(SIZES * (TOGETHER // 2))
    before = [param.detach().clone() for param in params]
    states = {param: {"step": torch.zeros(()), "x": torch.zeros(param.shape)} for param in params}
    counts = set()
    for pieces in flat_pieces(params, states, compiled=compiled):
        counts.add(len(pieces))
        for piece in pieces:
            assert piece.param.shape == piece.grad.shape == piece.state["x"].shape == (piece.param.numel(),)
            assert list(piece.state) == ["x"]
            assert compiled or piece.param.numel() <= max(CACHED, PACK + PACKED_BELOW)
            piece.param.add_(piece.grad)
            piece.state["x"].add_(piece.grad)
    assert counts == ({1, TOGETHER} if compiled else {1})  # no third number, which would be compiled anew
    for param, old in zip(params, before, strict=True):
        assert param.grad is not None
        assert torch.equal(param.detach(), old + param.grad)
        assert torch.equal(states[param]["x"], param.grad)


def test_packs_are_of_one_dtype_and_end_in_time() -> None:
    params = [
        torch.zeros(PACKED_BELOW - 1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16) for _ in range(40)
    ]
    for param in params:
        param.grad = torch.zeros_like(param)
    pieces = [piece for (piece,) in flat_pieces(params, {param: {} for param in params}, compiled=False)]
    assert sum(piece.param.numel() for piece in pieces) == sum(param.numel() for param in params)
    assert max(piece.param.numel() for piece in pieces) < PACK + PACKED_BELOW
    assert len(pieces) == 6


def test_whole_tensors_are_the_parameters_themselves() -> None:
    params = parameters()
    states = {param: {"step": torch.zeros(())} for param in params}
    for param, (piece,) in zip(params, whole_tensors(params, states), strict=True):
        assert piece.param.data_ptr() == param.data_ptr() and piece.param.shape == param.shape and piece.state == {}


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation allocates, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in taken:
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("rule", [SGD, AdamW, Lion, Signum, Sophia])
def test_an_eager_step_never_copies_a_long_tensor(rule: Callable[..., Optimizer]) -> None:
    extra = {"curvature": GaussNewtonBartlett()} if rule is Sophia else {}
    param = torch.zeros(3 * PACK, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = rule([param], execution="eager", **extra)
    optimizer.init_state()
    if isinstance(optimizer, Sophia):
        optimizer.update_curvature({param: torch.ones_like(param)})
    with Largest() as largest:
        optimizer.step()
    assert 0 < largest.numbers <= CACHED


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every graph compiled; they run without code generation."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend=backend))
    return graphs


def test_a_new_lr_and_another_decay_compile_nothing_anew(compilations: list[Any]) -> None:
    params = parameters()
    groups = [{"params": params[:4], "weight_decay": 0.1}, {"params": params[4:], "weight_decay": 0.0}]
    optimizer = AdamW(groups, execution="compiled")
    optimizer.step()
    first = len(compilations)
    assert 1 <= first <= 4  # views of vectors and of matrices, packs
    for lr in (0.5, 0.25, 0.0, 1e-9):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    assert len(compilations) == first


def test_auto_compiles_from_a_size_up(compilations: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters([(100,)])
    numbers = sum(param.numel() for param in params)
    for limit, compiles in ((numbers + 1, False), (numbers, True)):
        monkeypatch.setattr("optim.base.COMPILED_FROM", limit)
        Lion(params).step()
        assert bool(compilations) == compiles
    assert execution.COMPILED_FROM > 5_000_000  # nano, and every test, stays eager


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ValueError, match="Lion: execution='fast' must be one of auto, eager, compiled"):
        Lion(parameters(), execution="fast")
