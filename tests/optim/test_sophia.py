from typing import Any

import pytest
import torch

from optim import GaussNewtonBartlett, Sophia

LR, BETAS, RHO, EPS, DECAY = 3e-2, (0.9, 0.8), 0.5, 1e-3, 0.1


def sophia(params: Any, **options: Any) -> Sophia:
    settings = {"lr": LR, "betas": BETAS, "rho": RHO, "eps": EPS, "weight_decay": DECAY, **options}
    return Sophia(params, **settings, curvature=GaussNewtonBartlett(every=3))


def test_win_rate_is_the_share_of_unclipped_coordinates_by_role() -> None:
    a, b = (torch.zeros(4, requires_grad=True) for _ in range(2))
    optimizer = sophia([{"params": [a], "role": "matrix"}, {"params": [b], "role": "vector"}], betas=(0.0, 0.0))
    optimizer.update_curvature({a: torch.ones(4), b: torch.ones(4)})
    a.grad, b.grad = torch.tensor([0.1, 0.4, 0.6, -9.0]), torch.tensor([0.1, -0.2, 0.3, 0.4])
    optimizer.step()
    rates = {name: float(rate) for name, rate in optimizer.diagnostics().items()}
    assert rates == {"win_rate": 0.75, "win_rate/matrix": 0.5, "win_rate/vector": 1.0, "skipped_estimates": 0.0}


@pytest.mark.parametrize(
    ("rate", "advice"),
    [
        (0.04, ["Sophia: win_rate=0.040 is below 0.1: too many coordinates are clipped, raise rho=0.5"]),
        (0.1, []),
        (0.5, []),
        (0.75, ["Sophia: win_rate=0.750 is above 0.5: lower rho=0.5"]),
    ],
)
def test_a_win_rate_out_of_range_gets_a_hint(rate: float, advice: list[str]) -> None:
    optimizer = sophia([torch.zeros(4, requires_grad=True)])
    assert optimizer.hints({"win_rate": rate}) == advice
    assert optimizer.hints({}) == []


def test_sophia_without_curvature_raises() -> None:
    with pytest.raises(TypeError, match="curvature"):
        Sophia([torch.zeros(1, requires_grad=True)])  # type: ignore[call-arg]
    with pytest.raises(
        ValueError, match=r"Sophia: curvature=None must be an estimator: GaussNewtonBartlett\(every=10\)"
    ):
        Sophia([torch.zeros(1, requires_grad=True)], curvature=None)  # type: ignore[arg-type]
    param = torch.zeros(1, requires_grad=True)
    optimizer = sophia([param])
    param.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="Sophia took 0 steps and never got curvature: call curvature.update"):
        optimizer.step()
