"""Shampoo: the paper's box and today's in float64, what survives failures, and what its users watch."""

from itertools import product
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import Array
from torch import Tensor

from optim import Shampoo

GPT = [(24, 8), (8, 8), (32, 8), (8, 32), (11, 8), (8,)]  # the weights of a tiny one
PAPER: dict[str, Any] = {
    "betas": (0.0, 0.9),
    "precondition_frequency": 1,
    "grafting": None,
    "sum_statistics": True,
    "eps": 1e-4,
}
SETTINGS: list[dict[str, Any]] = [
    PAPER,
    {"weight_decay": 0.1},
    {"grafting": "sgd", "precondition_frequency": 3, "exponent": 0.4, "eps": 1e-6},
    {"grafting": None, "betas": (0.5, 0.9), "precondition_frequency": 4, "eps": 1e-3, "weight_decay": 0.3},
    {"eigensolver": "qr", "precondition_frequency": 5, "weight_decay": 0.1},  # the first factors have full rank
    {"max_precond_dim": 10, "graft_eps": 1e-3, "precondition_frequency": 2},
]


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> Array:
    """Of full rank, with a common part and scales that differ from step to step."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** -rng.integers(0, 2, size=steps).reshape(-1, *[1] * len(shape))
    return np.asarray(scale * (rng.standard_normal(shape) + rng.standard_normal((steps, *shape))))


def started(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Shampoo, Tensor]:
    param = torch.tensor(np.random.default_rng(7).standard_normal(shape), dtype=dtype, requires_grad=True)
    matrix = torch.zeros(2, 2, dtype=dtype, requires_grad=True)  # Shampoo wants one
    return Shampoo([param, matrix], **{"lr": 0.03} | settings), param


def step(optimizer: Shampoo, param: Tensor, gradient: Array) -> None:
    param.grad = torch.tensor(gradient, dtype=param.dtype)
    optimizer.step()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        *product([(6, 6), (7,), *GPT], SETTINGS),
        ((8, 8), PAPER | {"eigensolver": "qr"}),
        ((13, 13), {"eigensolver": "qr", "grafting": None, "precondition_frequency": 4, "betas": (0.5, 0.9)}),
    ],
)
def test_it_follows_the_papers_box(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    optimizer, param = started(shape, **settings)
    start = param.detach().numpy().copy()
    oracle = oracles.Shampoo(start, lr=0.03, **settings)
    for t, g in enumerate(gradients(shape, 60), start=1):
        optimizer.param_groups[0]["lr"] = oracle.lr = 0.03 / (1 + t % 7)
        step(optimizer, param, g)
        oracle.step(g)
    travelled = np.linalg.norm(oracle.w - start)
    assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-6 * travelled


@pytest.mark.parametrize(("dims", "exponent"), [(8192, 1 / 4), (4, 1 / 2)])
def test_the_exponent_follows_from_the_sides_with_a_factor(dims: int, exponent: float) -> None:
    optimizer, param = started((6, 4), precondition_frequency=1, max_precond_dim=dims, eps=1e-6)
    g = gradients((6, 4), 1)[0]
    step(optimizer, param, g)
    root = optimizer.state[param]["root_right"].numpy()
    values = np.linalg.eigvalsh(g.T @ g)
    powers = (values + 1e-6 * values.max())[::-1] ** -exponent
    np.testing.assert_allclose(np.linalg.eigvalsh(root), powers)
    assert ("root_left" in optimizer.state[param]) == (dims > 6)


@pytest.mark.parametrize(
    ("shape", "grafting", "numbers"),
    [((6, 4), "adam", 48 + 2 * 52), ((6, 4), "sgd", 24 + 2 * 52), ((6, 4), None, 24 + 2 * 52), ((6,), None, 12)],
)
def test_state_has_a_second_moment_only_where_it_is_read(
    shape: tuple[int, ...], grafting: str | None, numbers: int
) -> None:
    optimizer, param = started(shape, grafting=grafting)
    optimizer.init_state()
    assert sum(t.numel() for t in optimizer.state[param].values() if t.ndim) == numbers


def test_a_root_that_cannot_be_had_leaves_the_last_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("failed to converge")

    optimizer, param = started((6, 5), precondition_frequency=3)
    gs = gradients((6, 5), 8)
    for g in gs[:4]:
        step(optimizer, param, g)
    before = {name: optimizer.state[param][name].clone() for name in ("root_left", "root_right")}
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    for g in gs[4:]:
        step(optimizer, param, g)
    assert all(torch.equal(optimizer.state[param][name], root) for name, root in before.items())
    found = {name: float(value) for name, value in optimizer.diagnostics().items()}
    assert (found["kept_roots"], optimizer._refreshes.count) == (2, 2)
    assert "2 roots could not be refreshed" in optimizer.hints(found)[0]
    assert param.isfinite().all()


@pytest.mark.parametrize("eigensolver", ["eigh", "qr"])
def test_a_gradient_that_is_not_finite_leaves_the_roots(eigensolver: str) -> None:
    optimizer, param = started((6, 5), precondition_frequency=2, eigensolver=eigensolver)
    for t, g in enumerate(gradients((6, 5), 9)):
        step(optimizer, param, g * (np.nan if t == 5 else 1))
    assert all(state.isfinite().all() for name, state in optimizer.state[param].items() if name[:4] in ("root", "basi"))
    assert optimizer.diagnostics()["kept_roots"] == 2 * 2  # refreshes at steps 6 and 8, two sides


@pytest.mark.parametrize("shape", [(6, 6), (9, 4)])
def test_without_grafting_the_first_step_has_its_roots(shape: tuple[int, int]) -> None:
    """The paper has a root in every step; u v^T is what the roots of one gradient make of it."""
    optimizer, param = started(shape, grafting=None, betas=(0.0, 0.9), eps=1e-12, lr=1.0)
    before, g = param.detach().numpy().copy(), gradients(shape, 1)[0]
    step(optimizer, param, g)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    np.testing.assert_allclose(before - param.detach().numpy(), u @ vt, atol=1e-4)  # eps ** (1/2) of the smallest


@pytest.mark.parametrize("grafting", [None, "adam", "sgd"])
def test_a_first_step_that_is_not_taken_leaves_no_root_and_the_graft_or_nothing_moves(grafting: str | None) -> None:
    optimizer, param = started((4, 3), grafting=grafting, precondition_frequency=3, betas=(0.0, 0.9))
    optimizer.found_inf = torch.ones(())
    step(optimizer, param, np.full((4, 3), np.nan))
    optimizer.found_inf = None
    before, g = param.detach().clone(), gradients((4, 3), 1)[0]
    step(optimizer, param, g)
    way = (before - param.detach()) / 0.03
    if grafting == "sgd":
        torch.testing.assert_close(way, torch.tensor(g))
    else:
        assert bool(way.any()) == (grafting is not None)
    step(optimizer, param, g)
    assert optimizer.state[param]["root_left"].any() and param.isfinite().all()


@pytest.mark.parametrize("grafting", ["adam", "sgd", None])
def test_the_scale_of_gradients_changes_no_direction(grafting: str | None) -> None:
    """eps is a fraction of the largest eigenvalue, so that it means the same for every matrix of a model."""
    ways = []
    for scale in (1.0, 1e-6):
        optimizer, param = started((6, 4), grafting=grafting, graft_eps=0.0, precondition_frequency=2, eps=1e-3)
        before = param.detach().clone()
        for g in gradients((6, 4), 6):
            step(optimizer, param, scale * g)
        ways.append(param.detach() - before)
    torch.testing.assert_close(ways[1] * (ways[0].norm() / ways[1].norm()), ways[0], rtol=1e-6, atol=1e-9)


def test_a_matrix_without_gradient_stays() -> None:
    optimizer, param = started((4, 3), precondition_frequency=1)
    before = param.detach().clone()
    for _ in range(3):
        step(optimizer, param, np.zeros((4, 3)))
    assert torch.equal(param.detach(), before)
    assert optimizer.diagnostics()["kept_roots"] == 0  # nothing has failed


@pytest.mark.parametrize("eigensolver", ["eigh", "qr"])
def test_float32_stays_near_float64(eigensolver: str) -> None:
    ways = []
    for dtype in (torch.float32, torch.float64):
        optimizer, param = started((16, 16), dtype, eps=1e-6, eigensolver=eigensolver)
        before = param.detach().clone()
        for g in gradients((16, 16), 40):
            step(optimizer, param, g)
        ways.append((param.detach() - before).double())
    assert (ways[0] - ways[1]).norm() < 1e-3 * ways[1].norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0 must be in \[0, 1\)"),
        ({"eps": -1e-8}, "eps=-1e-08 must be >= 0"),
        ({"graft_eps": -1e-8}, "graft_eps=-1e-08 must be >= 0"),
        ({"precondition_frequency": 0}, "precondition_frequency=0 must be >= 1"),
        ({"max_precond_dim": 0}, "max_precond_dim=0 must be >= 1"),
        ({"max_precond_dim": 1}, r"none of the 2 parameters is a matrix with a side <= max_precond_dim=1 .*\(2, 3\)"),
        ({"exponent": 0.0}, "exponent=0.0 must be > 0"),
        ({"grafting": "adagrad"}, "grafting='adagrad' must be one of None, adam, sgd"),
        ({"eigensolver": "lu"}, "eigensolver='lu' must be one of eigh, qr"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Shampoo: {message}"):
        Shampoo([torch.zeros(2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)], **settings)


def test_a_model_of_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Shampoo: none of the 1 parameters is a matrix .* give them to AdamW"):
        Shampoo([torch.zeros(3, requires_grad=True)])
