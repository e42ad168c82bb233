"""Steps on small losses, against closed forms."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch

import optim
from inference.intervals import Interval
from report import figures
from reproduce.fields import typed
from reproduce.kinds import toy
from reproduce.kinds.toy import METHODS, Method, Point, Problem, Settings
from reproduce.mistakes import ClaimError

BY_NAME = {method.name: method for method in METHODS}
SOPHIAS = [BY_NAME["sophia"], BY_NAME["sophia_trained"]]
DECADES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)


def parabola(start: float) -> Problem:
    """x^2 / 2 from a start."""
    return Problem(
        start=torch.tensor([[[start]]], dtype=torch.float64),
        error=lambda x: x.square().sum(-1),
        gradient=lambda x: x.clone(),
        diagonal=torch.ones_like,
    )


def steps(problem: Problem, method: Method, point: Point, tolerance: float, max_steps: int = 500) -> list[int]:
    held = toy.first_held(problem, method, [point], tolerance=tolerance, max_steps=max_steps)
    return [int(each) for each in held[:, 0]]


def best(method: Method, settings: Settings, kind: str) -> list[int]:
    """The steps at each condition number, all of them reached."""
    found = [each.steps for each in toy.tuned(toy.quadratics(settings, kind), method, settings)]
    assert None not in found
    return [int(each or 0) for each in found]


def test_gradient_descent_takes_the_steps_of_its_closed_form_along_one_axis() -> None:
    lr, tolerance = 0.2, 1e-3
    expected = math.ceil(math.log(tolerance) / (2 * math.log(1 - lr)))  # (1 - lr)^(2 t) <= tolerance
    assert steps(parabola(3.0), BY_NAME["gd"], Point(lr, 1.0), tolerance) == [expected]
    one = torch.ones(1, dtype=torch.float64)
    assert toy.gradient_descent_steps(one, 9 * one, [1e-3, lr, 3.0], tolerance) == (expected, lr)


@pytest.mark.parametrize("kind", ["equal loss", "rotated"])
def test_gradient_descent_takes_the_steps_of_its_closed_form_on_quadratics(kind: str) -> None:
    settings = Settings(conditions=(1, 10, 100), dimensions=5, max_steps=400)
    h, weights, start = toy.spectrum(settings, kind)
    lrs = [point.lr for point in BY_NAME["gd"].grid(settings.grid_points)]
    expected = [
        toy.gradient_descent_steps(*each, lrs, settings.tolerance)[0]
        for each in zip(h, weights * start**2, strict=True)
    ]
    assert best(BY_NAME["gd"], settings, kind) == expected


def test_gradient_descent_slows_down_in_proportion_to_the_condition_number() -> None:
    settings = Settings(conditions=(1e2, 1e6))
    h, weights, start = toy.spectrum(settings, "equal loss")
    parts, lrs = weights * start**2, [point.lr for point in BY_NAME["gd"].grid(settings.grid_points)]
    few, many = (toy.gradient_descent_steps(h[k], parts[k], lrs, settings.tolerance)[0] for k in (0, 1))
    # Any lr < 2 leaves (1 - 2 / 1e6)^(2 t) of the flattest axis's part, which must come below the whole bound.
    share = float(parts[1, -1] / parts[1].sum())
    assert many >= math.log(share / settings.tolerance) / (-2 * math.log(1 - 2e-6)) > 1e5
    assert 5e3 < many / few < 2e4


@pytest.mark.parametrize("method", SOPHIAS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["equal loss", "equal distance"])
def test_sophias_steps_do_not_depend_on_the_condition_number_along_the_axes(method: Method, kind: str) -> None:
    found = best(method, Settings(conditions=DECADES), kind)
    assert max(found) <= 1.5 * min(found)


def test_signgds_steps_grow_with_the_condition_number_from_equal_loss_only() -> None:
    settings = Settings(conditions=(1e0, 1e4))
    few, many = best(BY_NAME["signgd"], settings, "equal loss")
    assert many > 10 * few
    few, many = best(BY_NAME["signgd"], settings, "equal distance")
    assert many == few  # the sign of a coordinate's gradient does not know its curvature


def test_sophia_loses_its_independence_when_the_axes_are_rotated() -> None:
    few, many = best(BY_NAME["sophia"], Settings(conditions=(1e0, 1e3), grid_points=15, max_steps=4000), "rotated")
    assert many > 10 * few


def test_a_bounce_through_the_minimum_is_no_arrival() -> None:
    problem, point = parabola(1.0), Point(0.3, 1.0)  # visits 0.7, 0.4, 0.1, -0.2, 0.1, -0.2, ...
    assert steps(problem, BY_NAME["signgd"], point, tolerance=0.21**2) == [3]
    assert steps(problem, BY_NAME["signgd"], point, tolerance=0.19**2) == [0]


def test_a_method_that_arrives_after_max_steps_has_not_arrived() -> None:
    problem, point = parabola(1.0), Point(0.1, 1.0)  # 0.5^2 after 5 steps
    assert steps(problem, BY_NAME["signgd"], point, tolerance=0.55**2, max_steps=5) == [5]
    assert steps(problem, BY_NAME["signgd"], point, tolerance=0.55**2, max_steps=4) == [0]


def test_sophia_walks_where_it_clips_and_halves_the_distance_where_it_does_not() -> None:
    visited = toy.path(parabola(5.0), BY_NAME["sophia"], Point(1.0, 0.5), 6)[:, 0]
    assert visited.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_grid_point_is_the_optimizer_with_that_learning_rate(method: Method) -> None:
    lr, share = 0.07, 0.25
    start, h = torch.tensor([3.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.01], dtype=torch.float64)
    problem = Problem(start[None, None], lambda x: (h * x * x).sum(-1), lambda x: h * x, lambda x: h.expand_as(x))
    param = torch.nn.Parameter(start.clone())
    optimizer: Any = method.make(param)
    optimizer.param_groups[0] |= {"lr": lr, "rho": lr / share}
    expected = [start]
    for t in range(25):
        param.grad = h * param.detach()
        if isinstance(optimizer, optim.Sophia) and t % optimizer.curvature.every == 0:
            optimizer.update_curvature({param: h})
        optimizer.step()
        expected.append(param.detach().clone())
    torch.testing.assert_close(toy.path(problem, method, Point(lr, share), 25), torch.stack(expected))


def test_every_method_has_as_many_points() -> None:
    sizes = {len(method.grid(33)) for method in METHODS}
    assert sizes == {33}
    assert {(min(p.lr for p in m.grid(33)), max(p.lr for p in m.grid(33))) for m in METHODS} == {(1e-3, 1e3)}


@pytest.mark.parametrize("kind", ["equal loss", "equal distance", "rotated"])
def test_quadratics_have_the_curvatures_they_are_named_for(kind: str) -> None:
    settings = Settings(conditions=(1e0, 1e3), dimensions=3)
    problem = toy.quadratics(settings, kind)
    basis = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    H = problem.gradient(basis)
    curvatures = torch.linalg.eigvalsh(H)
    torch.testing.assert_close(curvatures[:, -1] / curvatures[:, 0], torch.tensor([1e0, 1e3], dtype=torch.float64))
    torch.testing.assert_close(problem.diagonal(basis)[:, 0], torch.diagonal(H, dim1=1, dim2=2))
    if kind == "rotated":
        unrotated = toy.quadratics(settings, "equal loss")
        torch.testing.assert_close(problem.error(problem.start), unrotated.error(unrotated.start))
        assert float((H[1] - torch.diag(torch.diagonal(H[1]))).abs().max()) > 0.01


def test_the_papers_example_has_the_derivatives_minimum_and_saddle_it_should() -> None:
    problem = toy.two_dimensional()
    x = torch.tensor([[[0.3, -1.0], [1.2, 2.0], [-0.7, 5.0]]], dtype=torch.float64, requires_grad=True)
    a, b = x.unbind(-1)
    loss = 8 * (a - 1) ** 2 * (1.3 * a**2 + 2 * a + 1) + 0.5 * (b - 4) ** 2
    gradient = torch.autograd.grad(loss.sum(), x, create_graph=True)[0]
    rows = [torch.autograd.grad(gradient[..., i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
    hessian = torch.stack(rows, -2)  # (1, 3, 2, 2)
    torch.testing.assert_close(problem.error(x), loss)
    torch.testing.assert_close(problem.gradient(x), gradient)
    torch.testing.assert_close(torch.diag_embed(problem.diagonal(x)), hessian)
    ends = torch.tensor([[[1.0, 4.0], [0.0, 4.0]]], dtype=torch.float64)
    assert problem.gradient(ends).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert problem.error(ends).tolist() == [[0.0, 8.0]]
    assert (problem.diagonal(ends)[0] > 0).tolist() == [[True, True], [False, True]]


def test_newton_ends_in_the_saddle_and_sophia_in_the_minimum() -> None:
    problem = toy.two_dimensional()
    torch.testing.assert_close(toy.newton_path(problem, 20)[-1].tolist(), [0.0, 4.0])
    sophia = toy.path(problem, BY_NAME["sophia"], Point(1.0, 0.5), 60)[-1]
    torch.testing.assert_close(sophia.tolist(), [1.0, 4.0])


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(5, 5, (1.0, 0.8, 1.25)), (1, 9, (9.0, 8.0, math.inf)), (None, 9, None), (5, None, None)],
)
def test_a_growth_lies_between_the_bounds_of_whole_steps(
    first: int | None, last: int | None, expected: tuple[float, float, float] | None
) -> None:
    assert toy.growth(first, last) == (None if expected is None else Interval(*expected))


def test_the_evidence_is_complete_and_the_same_every_time() -> None:
    settings = Settings(conditions=[1, 1e4], dimensions=6, max_steps=300, grid_points=15)
    evidence = toy.heterogeneous(settings)
    assert asdict(evidence) == asdict(toy.heterogeneous(settings))
    rows = {measure.name: measure for measure in evidence.measures}
    assert rows["steps_growth_sophia"].verdict == "reproduced"
    assert rows["steps_growth_sophia"].claimed == 1
    assert rows["steps_growth_sophia"].no_effect == min(
        rows[f"steps_growth_{name}"].estimate or math.inf for name in ("gd", "signgd", "adam")
    )
    assert rows["steps_growth_rotated_sophia"].estimate is None
    assert rows["steps_growth_rotated_sophia"].note == "more than 300 steps"
    for figure in evidence.figures:
        figures.check(figure)
    assert [figure.name for figure in evidence.figures] == ["steps", "rotated_steps", "toy_paths", "toy_loss"]
    assert all(len(row) == len(table.columns) for table in evidence.tables for row in table.rows)
    assert "> 300" in {cell for table in evidence.tables for row in table.rows for cell in row}
    assert any(note.startswith("Unverified") for note in evidence.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": [1, 2]}, r"no field 'condition'; the nearest one is 'conditions' \(all: conditions, dimensions"),
        ({"conditions": [1]}, "must name two or more, ascending from 1"),
        ({"conditions": [10, 1]}, "must name two or more, ascending from 1"),
        ({"conditions": [0.1, 1]}, "must name two or more, ascending from 1"),
        ({"dimensions": 1}, "dimensions=1 must be at least 2"),
        ({"tolerance": 1.0}, r"tolerance=1.0 must lie in \(0, 1\)"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"grid_points": 10}, "grid_points=10 must be a multiple of 3, at least 6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        typed(Settings, settings, "claim.yaml", at="settings")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "x"}, "settings.seed=x must be a whole number"),
        ({"conditions": 5}, "settings.conditions=5 must be a list of numbers"),
        ({"conditions": [1, "x"]}, r"settings.conditions\[1\]=x must be a number"),
        ({"grid_points": None}, "settings.grid_points=null must be a whole number"),
    ],
)
def test_settings_of_another_type_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ClaimError, match=f"claim.yaml: {message}"):
        typed(Settings, settings, "claim.yaml", at="settings")
