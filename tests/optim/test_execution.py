"""How rules meet tensors: pieces, packs and compilation."""

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import rules
import torch
from every_option import FEWEST, slow_unless
from rules import RULES, made
from rules import parameters as made_parameters
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from optim import SGD, Adafactor, AdamW, GaussNewtonBartlett, Lion, Signum, Sophia, engine, execution
from optim.base import RuleOptimizer
from optim.factored import BLOCK, column_means
from optim.pieces import CACHED, PACK, PACKED_BELOW, TOGETHER, TOGETHER_ON_DEVICE, flat_pieces
from optim.sharding import ALL_ROWS
from optim.stacks import stacked_tensors

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


def test_full_tensors_are_the_parameters_themselves() -> None:
    params = parameters()
    states = {param: {"step": torch.zeros(())} for param in params}
    for param, (piece,) in zip(params, stacked_tensors(params, states, below=0), strict=True):
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
def test_an_eager_step_never_copies_a_long_tensor(rule: Callable[..., RuleOptimizer]) -> None:
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
    """Grows with every graph compiled; they run without code generation.

    On the way that inductor takes: torch makes constants of floats after tracing, for backends of that kind alone.
    """
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler)
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


SHAPES = [(), (5,), (1, 1), (1, 7), (7, 1), (BLOCK - 1, 3), (BLOCK, 3), (BLOCK + 1, 3), (2, 3, 4), (2, 3, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_settings_change_in_every_step_and_compile_nothing_anew(rule: str, compilations: list[Any]) -> None:
    """Every float of a group, as a schedule may; compiled code has the same arithmetic, whatever the shape."""
    ways = []
    for execution_ in ("eager", "compiled"):
        params = made_parameters(SHAPES)
        optimizer = made(rule, params, execution=execution_)
        (group,) = optimizer.param_groups
        settings = {name: value for name, value in group.items() if _has_float(value)}
        counts = []
        for n in range(4):
            group |= {name: _scaled(value, 1 - 0.01 * n) for name, value in settings.items()}
            rules.step(optimizer, n)
            counts.append(len(compilations))
        ways.append([p.detach() - start for p, start in zip(params, made_parameters(SHAPES), strict=True)])
    assert counts[1] == counts[3] > 0  # SOAP's first step moves nothing
    for a, b in zip(*ways, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _has_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, tuple) and all(isinstance(each, float) for each in value))


def _scaled(value: Any, factor: float) -> Any:
    return tuple(each * factor for each in value) if isinstance(value, tuple) else value * factor


@pytest.mark.slow
def test_column_means_compile_for_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of compilers takes longer to start than this
    compiled = torch.compile(column_means, dynamic=True, fullgraph=True)
    for rows in (BLOCK - 1, BLOCK, 2 * BLOCK + 5):
        matrix = torch.randn(rows, 9, dtype=torch.float64)
        torch.testing.assert_close(compiled(matrix, ALL_ROWS), matrix.mean(0))


# step() is one function of all rules, so that few of them show that it is left as it is where it runs compiled code.
TRAINING_STEPS = [pytest.param(rule, "eager", marks=slow_unless(FEWEST, rule)) for rule in RULES]
TRAINING_STEPS += [pytest.param(rule, "compiled") for rule in FEWEST]


@pytest.mark.parametrize(("rule", "execution_"), TRAINING_STEPS)
def test_a_compiled_training_step_is_the_same_step(rule: str, execution_: str, compilations: list[Any]) -> None:
    """Forward and backward pass, and a step() that is left as it is, also if it runs compiled code of its own."""
    torch.compiler.reset()  # variants of train are counted, over all tests

    def train(model: torch.nn.Module, optimizer: RuleOptimizer) -> None:
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    models, counts = [], []
    for run in (train, torch.compile(train)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        optimizer = made(rule, model.parameters(), execution=execution_)
        if isinstance(optimizer, Sophia):
            optimizer.update_curvature({p: torch.ones_like(p) for p in model.parameters()})
        for _ in range(4):
            run(model, optimizer)
            counts.append(len(compilations))
        models.append(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    assert counts[-1] == counts[-3]  # nothing is traced for ever
    assert counts[-1] - 2 * counts[3] in (1, 2)  # beside twice the optimizer's, the model's


def no_compiler(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C++ compiler\nand much more")


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_compiled_runs_eagerly_after_one_warning(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    found, expected = made_parameters(SHAPES), made_parameters(SHAPES)
    optimizers = made(rule, found, execution="compiled"), made(rule, expected, execution="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(4):
            for optimizer in optimizers:
                rules.step(optimizer, n)
    told = [str(warning.message) for warning in caught if "uncompiled" in str(warning.message)]
    assert len(told) == 1 and told[0].endswith("no C++ compiler") and "execution='eager'" in told[0]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_more_variants_than_torch_keeps_run_eagerly(compilations: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "VARIANTS", 2)
    shapes = [(3,), (3, 4), (3, 4, 5), (2, 3, 4, 5)]  # a variant each
    optimizer = made("adafactor", made_parameters(shapes), execution="compiled")
    with pytest.warns(UserWarning, match="optimizer steps run uncompiled"):
        rules.step(optimizer, 0)
    rules.step(optimizer, 1)
    expected = made("adafactor", made_parameters(shapes), execution="eager")
    for n in range(2):
        rules.step(expected, n)
    for a, b in zip(*(o.param_groups[0]["params"] for o in (optimizer, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_without_a_cpp_compiler_steps_run_eagerly() -> None:
    code = """
import torch, optim
param = torch.ones(8, requires_grad=True)
param.grad = torch.ones(8)
optimizer = optim.AdamW([param], lr=0.5, weight_decay=0.0, execution="compiled")
optimizer.step()
optimizer.step()
assert torch.allclose(param, torch.zeros(8), atol=1e-6), param
"""
    environment = {**os.environ, "CXX": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("optimizer steps run uncompiled") == 1 and "No working C++ compiler" in done.stderr


def test_short_matrices_of_a_shape_are_updated_together_as_each_alone() -> None:
    """Within the rounding of sums of 40 numbers, whose order torch chooses."""
    shapes = [(8, 5), (3,), (8, 5), (7, 2), (3,), (), (8, 5), (PACKED_BELOW,), ()]
    for beta1 in (None, 0.9):
        together = made_parameters(shapes)
        alone = [param.detach().clone().requires_grad_() for param in together]
        optimizer = Adafactor(together, beta1=beta1)
        others = [Adafactor([param], beta1=beta1) for param in alone]
        for _ in range(3):
            for a, b in zip(together, alone, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            optimizer.step()
            for other in others:
                other.step()
        for a, b, other in zip(together, alone, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(optimizer.state[a], other.state[b], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_a_stack_ends_in_time() -> None:
    params = made_parameters([(PACKED_BELOW - 1,)] * 40)
    for param in params:
        param.grad = torch.zeros_like(param)
    pieces = [piece for (piece,) in stacked_tensors(params, {p: {} for p in params}, below=PACKED_BELOW)]
    assert sum(piece.param.numel() for piece in pieces) == sum(param.numel() for param in params)
    assert max(piece.param.numel() for piece in pieces) < PACK + PACKED_BELOW


def test_auto_compiles_from_a_size_up(compilations: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters([(100,)])
    numbers = sum(param.numel() for param in params)
    assert engine.COMPILED_FROM > 5_000_000  # nano, and every test, stays eager
    for limit, compiles in ((numbers + 1, False), (numbers, True)):
        monkeypatch.setattr("optim.engine.COMPILED_FROM", limit)
        Lion(params).step()
        assert bool(compilations) == compiles


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ValueError, match="Lion: execution='fast' must be one of auto, eager, compiled"):
        Lion(parameters(), execution="fast")


@pytest.mark.parametrize(("device", "together", "rest"), [("cpu", TOGETHER, [1, 1]), ("meta", TOGETHER_ON_DEVICE, [2])])
def test_long_pieces_come_together_in_compiled_code(device: str, together: int, rest: list[int]) -> None:
    params = [torch.nn.Parameter(torch.zeros(PACKED_BELOW, device=device)) for _ in range(2 * together + 2)]
    for param in params:
        param.grad = param.detach()
    states: dict[torch.Tensor, dict[str, torch.Tensor]] = {param: {} for param in params}
    assert [len(each) for each in flat_pieces(params, states, compiled=True)] == [together, together, *rest]
