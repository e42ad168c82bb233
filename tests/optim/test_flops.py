"""What optimizers say that their steps cost, beside what torch counts while they take them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hooked import Turning
from rules import RULES, made, parameters, step
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from optim import SOAP
from optim.ensemble import OptimizerSet
from optim.kronecker import BLOCKS, SMALLEST_BLOCK

SHAPES = [(8, 6), (6, 8), (BLOCKS * SMALLEST_BLOCK + 3, 5), (7,)]
# Of (m, n). Golub & Van Loan, Matrix Computations: the symmetric QR algorithm with eigenvectors, R and Q by reflections
FACTORISATIONS = {
    "eigh": lambda m, n: 9.0 * n**3,
    "geqrf": lambda m, n: 2.0 * n**2 * (m - n / 3),
    "householder_product": lambda m, n: 2.0 * n**2 * (m - n / 3),
}
# Nor does it know a product that is added in place.
IN_PLACE = {torch.ops.aten.addmm_: lambda total, a, b, **rest: 2 * a[0] * a[1] * b[1]}
STEPS = 9


def count_factorisations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """FLOPs of all factorisations from now on, which torch's counter does not know."""
    found: list[float] = []

    def counted(original: Callable[..., Any], flops: Callable[..., float], matrix: Tensor, *rest: Any) -> Any:
        found.append(flops(*matrix.shape))
        return original(matrix, *rest)

    for where, name in ((torch.linalg, "eigh"), (torch, "geqrf"), (torch.linalg, "householder_product")):
        monkeypatch.setattr(where, name, partial(counted, getattr(where, name), FACTORISATIONS[name]))
    return found


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        *((rule, {}) for rule in RULES),
        ("soap", {"precondition_frequency": 1}),
        ("soap", {"precondition_frequency": 3, "first_step": "adam"}),
        ("soap", {"precondition_frequency": 1, "first_step": "adam"}),
        ("soap", {"precondition_frequency": 4, "one_sided": True, "bf16_rotations": True}),
        ("soap", {"precondition_frequency": 3, "max_precond_dim": 8}),
        ("shampoo, alone", {"precondition_frequency": 1}),
        ("shampoo, alone", {"precondition_frequency": 4, "max_precond_dim": 7}),
        ("shampoo, qr", {"precondition_frequency": 3, "grafting": None}),
    ],
)
def test_every_step_costs_the_products_and_factorisations_that_it_does(
    rule: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    factorised, done = count_factorisations(monkeypatch), 0.0
    optimizer = made(rule, parameters(SHAPES), **settings)
    for n in range(STEPS):
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as products:
            step(optimizer, n)
        done += products.get_total_flops()
        assert optimizer.flops_of_all(n + 1) == pytest.approx(done + sum(factorised), rel=1e-12), f"step {n}"


def test_soaps_step_costs_the_products_in_its_box() -> None:
    """Algorithm 3, of a matrix (m, n): G' = Q_L^T G Q_R, N = Q_L N' Q_R^T, G G^T and G^T G: m^2 n and m n^2 each."""
    m, n = 16, 12  # short, so factors are computed in full
    soap = SOAP([torch.zeros(m, n, requires_grad=True)], precondition_frequency=10_000)
    products = 2 * (m * m * n + m * n * n)  # two operations each
    assert soap.flops_of_all(101) - soap.flops_of_all(100) == 3 * products  # L and R; there; and back


def test_a_set_adds_up_its_members_and_leaves_out_foreign_ones() -> None:
    ours = Turning([torch.zeros(4, 6, requires_grad=True), torch.zeros(3, 3, requires_grad=True)])
    foreign = torch.optim.SGD([torch.zeros(5, 5, requires_grad=True)], lr=0.1)
    assert OptimizerSet([ours, foreign], {}).flops(steps=7) == 7 * 2 * (4 * 4 * 6 + 3 * 3 * 3)
    assert OptimizerSet([foreign], {}).flops(steps=7) == 0
