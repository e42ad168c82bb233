import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import ranks
import torch
import world
from torch import Tensor, nn

from optim import GaussNewtonBartlett, Hutchinson, Sophia
from optim.curvature import Curvature
from optim.ensemble import OptimizerSet

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
    with pytest.raises(
        ValueError, match=r"Sophia: curvature='gnb' must be an estimator: GaussNewtonBartlett\(every=10\)"
    ):
        Sophia([torch.zeros(1, requires_grad=True)], curvature="gnb")  # type: ignore[arg-type]
    param = torch.zeros(1, requires_grad=True)
    optimizer = Sophia([param])
    assert isinstance(optimizer.curvature, GaussNewtonBartlett) and optimizer.param_groups[0]["rho"] == 0.05
    param.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="Sophia took 0 steps and never got curvature: make CurvaturePass"):
        optimizer.step()


def weights(*sizes: int) -> list[Tensor]:
    return [torch.full((n,), 2.0, requires_grad=True) for n in sizes]


def moved(optimizer: Sophia, *params: Tensor) -> list[bool]:
    """Which of the params a step moves, with gradients of 1 for all."""
    before = [param.detach().clone() for param in params]
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.requires_grad:
                param.grad = torch.ones_like(param)
    optimizer.step()
    return [not torch.equal(param.detach(), old) for param, old in zip(params, before, strict=True)]


@pytest.mark.parametrize(("curvature", "rho"), [(GaussNewtonBartlett, 0.05), (Hutchinson, 0.01)])
def test_rho_is_the_papers_for_the_estimator_unless_given(curvature: Callable[..., Curvature], rho: float) -> None:
    assert Sophia(weights(1), curvature=curvature()).param_groups[0]["rho"] == rho
    assert Sophia(weights(1), rho=0.3, curvature=curvature()).param_groups[0]["rho"] == 0.3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_estimate_that_is_not_finite_is_skipped_for_all_parameters_and_counted(bad: float) -> None:
    a, b = weights(3, 2)
    optimizer = sophia([a, b])
    optimizer.update_curvature({a: torch.ones(3), b: torch.ones(2)})
    moved(optimizer)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.update_curvature({a: torch.tensor([1.0, bad, 1.0]), b: torch.full((2,), 7.0)})
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][name], tensor) for i, state in before.items() for name, tensor in state.items())
    assert optimizer.diagnostics()["skipped_estimates"] == 1
    assert optimizer.hints({"skipped_estimates": 1.0}) == [
        "Sophia: 1 estimates of the curvature were not finite and were skipped"
    ]
    assert moved(optimizer, a, b) == [True, True]
    optimizer.update_curvature({a: torch.ones(3), b: torch.full((2,), 7.0)})
    torch.testing.assert_close(optimizer.state[b]["hessian"], torch.full((2,), 0.2 * 0.8 + 0.2 * 7))


def test_skipped_estimates_and_waiting_parameters_survive_a_resume() -> None:
    def made() -> tuple[list[nn.Parameter], Sophia, OptimizerSet]:
        params = [nn.Parameter(param) for param in weights(3, 2)]
        optimizer = sophia(params)
        return params, optimizer, OptimizerSet([optimizer], dict(zip(params, "ab", strict=True)))

    (a, b), optimizer, together = made()
    optimizer.update_curvature({a: torch.ones(3)})
    optimizer.update_curvature({a: torch.full((3,), torch.nan), b: torch.ones(2)})
    moved(optimizer)
    (c, d), second, other = made()
    tensors, rest = together.save_state()
    other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(rest)))
    assert second.diagnostics()["skipped_estimates"] == 1
    assert moved(second, c, d) == moved(optimizer, a, b) == [True, False]
    third = sophia(weights(3, 2))
    third.load_state_dict(optimizer.state_dict())
    third.update_curvature({p: torch.full_like(p, torch.nan) for p in third.param_groups[0]["params"]})
    assert third.diagnostics()["skipped_estimates"] == 2


def test_parameters_wait_for_a_first_estimate_that_is_finite() -> None:
    """With h = 0 their update would be momentum's sign, which is not Sophia's."""
    (a,) = weights(3)
    optimizer = sophia([a])
    optimizer.update_curvature({a: torch.full((3,), torch.nan)})
    assert moved(optimizer, a) == [False]
    torch.testing.assert_close(optimizer.state[a]["exp_avg"], torch.full((3,), 1 - BETAS[0]))  # momentum gathers
    optimizer.update_curvature({a: torch.full((3,), 100.0)})
    assert moved(optimizer, a) == [True]
    m, h = 1 - BETAS[0] ** 2, (1 - BETAS[1]) * 100.0
    torch.testing.assert_close(a.detach(), torch.full((3,), 2 * (1 - LR * DECAY) - LR * m / (RHO * h)))


def test_a_group_added_between_estimates_waits_for_its_first() -> None:
    a, b = weights(3, 2)
    optimizer = sophia([a])
    optimizer.update_curvature({a: torch.ones(3)})
    assert moved(optimizer, a) == [True]
    optimizer.add_param_group({"params": [b]})
    assert moved(optimizer, a, b) == [True, False]
    optimizer.update_curvature({a: torch.ones(3), b: torch.ones(2)})
    assert moved(optimizer, a, b) == [True, True]


def test_a_parameter_that_thaws_between_estimates_waits_for_its_first() -> None:
    a, b = weights(3, 2)
    optimizer = sophia([a, b])
    b.requires_grad_(False)
    optimizer.update_curvature({a: torch.ones(3)})
    assert moved(optimizer, a, b) == [True, False]
    b.requires_grad_(True)
    assert moved(optimizer, a, b) == [True, False]
    optimizer.update_curvature({a: torch.ones(3), b: torch.ones(2)})
    assert moved(optimizer, a, b) == [True, True]


def test_as_the_authors_code_has_it_momentums_sign_comes_before_the_first_estimate() -> None:
    (a,) = weights(3)
    optimizer = Sophia([a], lr=LR, weight_decay=0.0, curvature=GaussNewtonBartlett(every=3, paper_code=True))
    assert moved(optimizer, a) == [True]
    torch.testing.assert_close(a.detach(), torch.full((3,), 2.0 - LR))


def test_parameters_with_the_same_past_are_updated_together() -> None:
    """In one pack: its counts are one tensor, also after a resume, and for those that came later."""
    a, b, c = weights(3, 2, 4)
    optimizer = sophia([a, b])
    optimizer.update_curvature({a: torch.ones(3), b: torch.ones(2)})
    optimizer.add_param_group({"params": [c]})
    moved(optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.update_curvature({a: torch.ones(3), b: torch.ones(2), c: torch.ones(4)})
    counts = [optimizer.state[p]["estimates"] for p in (a, b, c)]
    assert [float(count) for count in counts] == [2.0, 2.0, 1.0]
    assert counts[0] is counts[1]
    saved = [state["estimates"] for state in optimizer.state_dict()["state"].values()]
    assert len({id(count) for count in saved}) == 3  # in a state_dict they are not: it may be loaded into


def test_no_host_waits_to_know_whether_an_estimate_is_finite() -> None:
    """On the meta device a number that a host asks for raises."""
    param = torch.zeros(3, device="meta", requires_grad=True)
    optimizer = sophia([param])
    for _ in range(3):
        optimizer.update_curvature({param: torch.empty_like(param)})
        param.grad = torch.empty_like(param)
        optimizer.step()
    assert optimizer.diagnostics()["skipped_estimates"].is_meta


@pytest.mark.parametrize("estimate", [torch.ones(1), torch.ones(3, 1)])
def test_an_estimate_of_another_shape_is_refused(estimate: Tensor) -> None:
    (a,) = weights(3)
    with pytest.raises(ValueError, match=r"Sophia: an estimate of the curvature has shape .* of shape \(3,\)"):
        sophia([a]).update_curvature({a: estimate})


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("n", "placement"), [(2, "ddp"), (2, "fsdp2"), (3, "fsdp2"), (4, "hsdp")])
def test_ranks_skip_an_estimate_together(n: int, placement: str) -> None:
    for found in world.run(n, ranks.curvature_that_is_not_finite_on_one_rank, placement):
        expected: Mapping[str, Any] = {"kept": True, "went on": True, "finite": True, "skipped": 1, "estimates": {2.0}}
        assert found == expected
