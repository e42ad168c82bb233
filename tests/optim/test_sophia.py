from typing import Any

import numpy as np
import pytest
import torch

from optim import GaussNewtonBartlett, Sophia

LR, BETAS, RHO, EPS, DECAY = 3e-2, (0.9, 0.8), 0.5, 1e-3, 0.1


def sophia(params: Any, **options: Any) -> Sophia:
    settings = {"lr": LR, "betas": BETAS, "rho": RHO, "eps": EPS, "weight_decay": DECAY, **options}
    return Sophia(params, **settings, curvature=GaussNewtonBartlett(every=3))


def oracle(theta: np.ndarray, gradients: list[np.ndarray], estimates: dict[int, np.ndarray]) -> np.ndarray:
    """Algorithm 3 of arXiv:2305.14342 in NumPy; estimates by 1-based step."""
    m, h = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        if t in estimates:
            h = BETAS[1] * h + (1 - BETAS[1]) * estimates[t]
        theta = theta - LR * DECAY * theta
        theta = theta - LR * np.clip(m / np.maximum(RHO * h, EPS), -1, 1)
    return theta


def test_it_follows_the_algorithm_box() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(7, 5))
    gradients = [rng.normal(size=(7, 5)) * 10.0 ** rng.integers(-3, 1, size=(7, 5)) for _ in range(60)]
    estimates = {t: rng.normal(size=(7, 5)) + 0.5 for t in range(1, 61, 3)}  # negative ones too
    param = torch.tensor(start, requires_grad=True)
    optimizer = sophia([param])
    for t, gradient in enumerate(gradients, 1):
        if t in estimates:
            optimizer.update_curvature({param: torch.tensor(estimates[t])})
        param.grad = torch.tensor(gradient)
        optimizer.step()
    expected = oracle(start, gradients, estimates)
    found = param.detach().numpy()
    assert np.linalg.norm(found - expected) < 1e-9 * np.linalg.norm(expected - start)
    clipped = optimizer.diagnostics()["win_rate"]
    assert 0.05 < clipped < 0.95  # both branches of the clip were taken


def test_win_rate_is_the_share_of_unclipped_coordinates_by_role() -> None:
    a, b = (torch.zeros(4, requires_grad=True) for _ in range(2))
    optimizer = sophia([{"params": [a], "role": "matrix"}, {"params": [b], "role": "vector"}], betas=(0.0, 0.0))
    optimizer.update_curvature({a: torch.ones(4), b: torch.ones(4)})
    a.grad, b.grad = torch.tensor([0.1, 0.4, 0.6, -9.0]), torch.tensor([0.1, -0.2, 0.3, 0.4])
    optimizer.step()
    rates = {name: float(rate) for name, rate in optimizer.diagnostics().items()}
    assert rates == {"win_rate": 0.75, "win_rate/matrix": 0.5, "win_rate/vector": 1.0}


def test_sophia_without_curvature_raises() -> None:
    with pytest.raises(TypeError, match="curvature"):
        Sophia([torch.zeros(1, requires_grad=True)])  # type: ignore[call-arg]
    param = torch.zeros(1, requires_grad=True)
    optimizer = sophia([param])
    param.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="Sophia took 0 steps and never got curvature: call curvature.update"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"Sophia: lr=0.0 must be > 0"),
        ({"rho": -1.0}, r"Sophia: rho=-1.0 must be > 0"),
        ({"eps": 0.0}, r"Sophia: eps=0.0 must be > 0"),
        ({"betas": (0.9, 1.0)}, r"Sophia: betas\[1\]=1.0 must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, r"Sophia: weight_decay=-0.1 must be >= 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sophia([torch.zeros(1, requires_grad=True)], **options)
