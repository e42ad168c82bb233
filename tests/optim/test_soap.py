"""SOAP: the paper's box in float64, what survives failures, and what its users watch."""

from typing import Any

import numpy as np
import oracles
import pytest
import torch
from oracles import Array
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optim import SOAP

GPT = [(24, 8), (8, 8), (32, 8), (8, 32), (11, 8), (8,)]  # the weights of a tiny one
SETTINGS: list[dict[str, Any]] = [
    {},
    {"betas": (0.9, 0.8), "shampoo_beta": 0.7, "eps": 1e-3, "weight_decay": 0.3, "precondition_frequency": 4},
    {"one_sided": True, "precondition_frequency": 2},
    {"max_precond_dim": 10, "precondition_frequency": 3, "weight_decay": 0.1},
    {"first_step": "adam", "weight_decay": 0.1},
]


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> Array:
    """Of full rank, with a common part and scales that differ from step to step."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** -rng.integers(0, 2, size=steps).reshape(-1, *[1] * len(shape))
    return np.asarray(scale * (rng.standard_normal(shape) + rng.standard_normal((steps, *shape))))


def started(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[SOAP, Tensor]:
    param = torch.tensor(np.random.default_rng(7).standard_normal(shape), dtype=dtype, requires_grad=True)
    matrix = torch.zeros(2, 2, dtype=dtype, requires_grad=True)  # SOAP wants one
    return SOAP([param, matrix], **{"lr": 0.03, "weight_decay": 0.0} | settings), param


def step(optimizer: SOAP, param: Tensor, gradient: Array) -> None:
    param.grad = torch.tensor(gradient, dtype=param.dtype)
    optimizer.step()


def take_basis(oracle: oracles.SOAP, state: dict[str, Tensor]) -> None:
    """A tall gradient leaves part of the first basis undetermined: both sides take ours."""
    full = oracle.rotate_back(oracle.M)
    oracle.QL = state["basis_left"].numpy().T.copy() if oracle.left else oracle.QL
    oracle.QR = state["basis_right"].numpy().T.copy() if oracle.right else oracle.QR
    oracle.M = oracle.rotate(full)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", [(6, 6), (13, 13), (7,), *GPT])
def test_it_follows_the_papers_box(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    optimizer, param = started(shape, **settings)
    start = param.detach().numpy().copy()
    oracle = oracles.SOAP(start, lr=0.03, **{"weight_decay": 0.0} | settings)
    for t, g in enumerate(gradients(shape, 60), start=1):
        optimizer.param_groups[0]["lr"] = oracle.lr = 0.03 / (1 + t % 7)
        step(optimizer, param, g)
        if t == 2 and len(set(shape)) == 2:
            take_basis(oracle, optimizer.state[param])
        oracle.step(g)
    travelled = np.linalg.norm(oracle.w - start)
    assert np.linalg.norm(param.detach().numpy() - oracle.w) < 1e-6 * travelled


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_the_first_basis_is_eigenvectors_by_descending_eigenvalue(shape: tuple[int, int]) -> None:
    optimizer, param = started(shape)
    first, second = gradients(shape, 2)
    step(optimizer, param, first)
    step(optimizer, param, second)
    for side, factor in (("left", 0.05 * first @ first.T), ("right", 0.05 * first.T @ first)):
        basis = optimizer.state[param][f"basis_{side}"].numpy()
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
        expected = np.diag(np.linalg.eigvalsh(factor)[::-1])
        np.testing.assert_allclose(basis @ factor @ basis.T, expected, atol=1e-12 * expected.max())


@pytest.mark.parametrize(("first_step", "moves"), [("skip", False), ("adam", True)])
def test_the_first_step_is_skipped_or_adams(first_step: str, moves: bool) -> None:
    optimizer, param = started((4, 3), first_step=first_step, weight_decay=0.1, lr=0.5)
    before = param.detach().clone()
    step(optimizer, param, gradients((4, 3), 1)[0])
    assert param.grad is not None
    expected = (before - 0.5 * param.grad.sign()) * 0.95 if moves else before
    torch.testing.assert_close(param.detach(), expected, rtol=1e-5, atol=1e-5)  # eps keeps it off the sign


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
@pytest.mark.parametrize("settings", [{}, {"one_sided": True}, {"max_precond_dim": 5}])
def test_the_second_moment_of_adams_first_step_is_that_of_its_gradient_in_the_new_basis(
    shape: tuple[int, int], settings: dict[str, Any]
) -> None:
    """Also if a schedule changed the betas in between."""
    optimizer, param = started(shape, first_step="adam", betas=(0.9, 0.8), **settings)
    g = gradients(shape, 1)[0]
    step(optimizer, param, g)
    optimizer.param_groups[0]["betas"] = (0.7, 0.6)
    step(optimizer, param, np.zeros(shape))
    state = {name: tensor.numpy() for name, tensor in optimizer.state[param].items()}
    rotated = state["basis_left"] @ g if "basis_left" in state else g
    rotated = rotated @ state["basis_right"].T if "basis_right" in state else rotated
    np.testing.assert_allclose(state["exp_avg"], 0.7 * 0.1 * rotated, atol=1e-12)
    np.testing.assert_allclose(state["exp_avg_sq"], 0.6 * 0.2 * rotated**2, rtol=1e-9, atol=1e-12)


class Products(TorchDispatchMode):
    """Counts matrix products that make a new matrix."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_the_momentum_is_rotated_only_when_the_basis_changes() -> None:
    optimizer, param = started((6, 5), precondition_frequency=3)
    counts = []
    for g in gradients((6, 5), 9):
        with Products() as products:
            step(optimizer, param, g)
        counts.append(products.count)
    # The gradient there and the update back, two sides each; a refresh: the momentum likewise, and a product per basis.
    assert counts == [0, 10, 4, 4, 10, 4, 4, 10, 4]


def test_directions_without_gradient_keep_their_vectors() -> None:
    """Where the factor is zero, rounding errors must not draw the basis: runs would differ between machines."""
    optimizer, param = started((6, 6), precondition_frequency=1)
    for g in gradients((6, 6), 8):
        g[4:] = 0
        step(optimizer, param, g)
    basis = optimizer.state[param]["basis_left"]
    torch.testing.assert_close(basis[4:, :4], torch.zeros(2, 4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_failed_first_basis_leaves_adam_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    optimizer, param = started((6, 5), eps=0.0, precondition_frequency=100)
    adam = oracles.AdamW(param.detach().numpy(), lr=0.03, betas=(0.95, 0.95), eps=0.0, weight_decay=0.0)
    for t, g in enumerate(gradients((6, 5), 9)):
        step(optimizer, param, g)
        if t:
            adam.step(g)
    np.testing.assert_allclose(param.detach().numpy(), adam.w)
    found = optimizer.diagnostics()
    assert found["kept_bases"] == 2
    assert "2 bases could not be refreshed" in optimizer.hints({name: float(v) for name, v in found.items()})[0]


def test_a_gradient_that_is_not_finite_leaves_the_bases() -> None:
    optimizer, param = started((6, 5), precondition_frequency=2)
    for t, g in enumerate(gradients((6, 5), 9)):
        step(optimizer, param, g * (np.nan if t == 5 else 1))
        if t == 5:
            before = [optimizer.state[param][f"basis_{side}"].clone() for side in ("left", "right")]
    for side, basis in zip(("left", "right"), before, strict=True):
        assert torch.equal(optimizer.state[param][f"basis_{side}"], basis)
    assert optimizer.diagnostics()["kept_bases"] == 2  # those of the only refresh since, after update 6


def test_bases_stay_orthonormal_where_a_factor_has_lost_its_rank() -> None:
    """From the identity, as after a first step that was not taken, its rows are nearly all the same vector."""
    optimizer, param = started((48, 24), torch.float32, precondition_frequency=1)
    optimizer.found_inf = torch.ones(())
    step(optimizer, param, gradients((48, 24), 1)[0])
    optimizer.found_inf = None
    for t in range(6):
        left, right = gradients((48, 1), 1, seed=t)[0], gradients((1, 24), 1, seed=t + 6)[0]
        step(optimizer, param, left @ right)
        for basis in (optimizer.state[param][f"basis_{side}"] for side in ("left", "right")):
            torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), rtol=0, atol=1e-5)
    assert optimizer.diagnostics()["kept_bases"] == 0


def test_off_diagonal_energy_tells_how_far_the_basis_lags() -> None:
    fixed, param = started((5, 5), precondition_frequency=2)
    for t in range(9):
        step(fixed, param, np.diag(np.arange(1.0, 6.0)) * (1 + t % 2))
    assert fixed.diagnostics()["off_diagonal"].abs() < 1e-12
    for scale in (1.0, 1e100, 1e-100):  # fourth powers of which are no numbers
        changing, param = started((5, 5), precondition_frequency=2)
        for g in gradients((5, 5), 9):
            step(changing, param, g * scale)
        assert 1e-3 < changing.diagnostics()["off_diagonal"] < 1


def test_refreshes_are_counted_and_timed() -> None:
    optimizer, param = started((5, 5), precondition_frequency=3)
    seen = []
    for g in gradients((5, 5), 9):
        step(optimizer, param, g)
        seen.append(optimizer._refreshes.count)
    assert seen == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert 0 < optimizer.diagnostics()["seconds_per_refresh"] < 10


def test_bf16_rotations_stay_within_their_precision() -> None:
    """What the switch costs: 8 bits of each rotation. Two rotations and an average make about 1 % of the way."""
    ways = []
    for switch in (False, True):
        optimizer, param = started((48, 48), torch.float32, bf16_rotations=switch)
        before = param.detach().clone()
        for g in gradients((48, 48), 40):
            step(optimizer, param, g)
        ways.append(param.detach() - before)
    drift = (ways[0] - ways[1]).norm() / ways[0].norm()
    assert 1e-4 < drift < 0.03


def test_float32_stays_near_float64() -> None:
    ways = []
    for dtype in (torch.float32, torch.float64):
        optimizer, param = started((16, 16), dtype)
        before = param.detach().clone()
        for g in gradients((16, 16), 40):
            step(optimizer, param, g)
        ways.append((param.detach() - before).double())
    assert (ways[0] - ways[1]).norm() < 1e-3 * ways[1].norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be >= 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"shampoo_beta": -0.5}, r"shampoo_beta=-0.5 must be in \[0, 1\)"),
        ({"eps": -1e-8}, "eps=-1e-08 must be >= 0"),
        ({"precondition_frequency": 0}, "precondition_frequency=0 must be >= 1"),
        ({"max_precond_dim": 0}, "max_precond_dim=0 must be >= 1"),
        ({"max_precond_dim": 1}, r"none of the 2 parameters is a matrix with a side <= max_precond_dim=1 .*\(2, 3\)"),
        ({"first_step": "sgd"}, "first_step='sgd' must be one of skip, adam"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SOAP: {message}"):
        SOAP([torch.zeros(2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)], **settings)


def test_a_model_of_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SOAP: none of the 1 parameters is a matrix .* give them to AdamW"):
        SOAP([torch.zeros(3, requires_grad=True)])
