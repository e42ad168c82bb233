"""A claim about small losses with curvature that differs from axis to axis, and the steps that optimizers need on them.

Toy is about the claim of Liu et al. (arXiv:2305.14342) that Sophia's run time does not depend on the
condition number. It measures steps to a tolerance, every method at its best point of a grid of equal size, on
* the paper's two-dimensional loss, sharp and not convex along one axis, flat along the other;
* quadratics along the axes, from a start of equal loss along each (that of the paper's lower bound for SignGD), and
  from a start at equal distance along each;
* the same quadratics rotated, which a method that knows only the Hessian's diagonal cannot see through.

The whole grid runs at once: in the variable y = x / lr, a step of learning rate 1 is a step of lr in x, and an
elementwise optimizer updates every number of a tensor on its own. So one tensor (K losses, G grid points, D axes)
goes through one optimizer of learning rate 1 that is given the gradient in x.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from typing_extensions import override

import optim
from inference.intervals import Interval
from inference.verdicts import UNDECIDED, verdict
from report.results import Axis, Figure, Measure, Series, Table
from reproduce.claim import Claim, Fields
from reproduce.evidence import Evidence
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError

HOLD = 100  # steps that the error must stay small for: a bounce through the minimum does not count
LOWEST_LR, HIGHEST_LR = 1e-3, 1e3
TOY_START = (0.2, 0.0)  # where the sharp axis curves down; the paper's own start is not known
TOY_STEPS = 60  # shown
SHARES = (1 / 2, 1 / 8, 1 / 32)  # lr / rho: how much of Newton's step Sophia takes where it does not clip
Map = Callable[[Tensor], Tensor]


@dataclass
class Settings:
    """What a claim file may set.

    conditions: largest over smallest curvature, ascending. dimensions: of the quadratics. tolerance: share of its start
    that the error must fall to. max_steps: a method that takes longer is reported so. grid_points: tried per method.
    seed: of start and rotation.

    Raises: ClaimError: if a value is out of range.
    """

    conditions: list[float] = field(default_factory=lambda: [10.0**n for n in range(7)])
    dimensions: int = 16
    tolerance: float = 1e-3
    max_steps: int = 10_000
    grid_points: int = 33
    seed: int = 0

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.conditions, self.conditions[1:], strict=False))
        several = self.grid_points >= 2 * len(SHARES) and self.grid_points % len(SHARES) == 0
        wanted = {
            "conditions": (
                len(self.conditions) >= 2 and ascending and self.conditions[0] >= 1,
                "name two or more, ascending from 1",
            ),
            "dimensions": (self.dimensions >= 2, "be at least 2"),
            "tolerance": (0 < self.tolerance < 1, "lie in (0, 1)"),
            "max_steps": (self.max_steps >= 1, "be at least 1"),
            "grid_points": (several, f"be a multiple of {len(SHARES)}, at least {2 * len(SHARES)}"),
        }
        if odd := [name for name, (is_met, _) in wanted.items() if not is_met]:
            raise ClaimError(*(f"settings: {name}={getattr(self, name)} must {wanted[name][1]}" for name in odd))


@dataclass
class ToyFields(Fields):
    """Arms are none: the methods are METHODS."""

    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Problem:
    """K losses of D variables each. Functions take points (K, G, D), float64, and return as many, error (K, G)."""

    start: Tensor  # (K, 1, D)
    error: Map  # what must fall; 0 at the minimum
    gradient: Map
    diagonal: Map  # of the Hessian


@dataclass(frozen=True)
class Point:
    """A point of the grid of hyperparameters."""

    lr: float
    share: float  # lr / rho; means something to Sophia only


@dataclass(frozen=True)
class Method:
    """An elementwise optimizer; make gives it a learning rate of 1, and Sophia a rho of 1."""

    name: str
    label: str
    make: Callable[[nn.Parameter], torch.optim.Optimizer]
    shares: tuple[float, ...] = (1.0,)

    def grid(self, n_points: int) -> list[Point]:
        """n_points of them, learning rates evenly spaced on a log scale."""
        n = n_points // len(self.shares)
        lrs = torch.logspace(math.log10(LOWEST_LR), math.log10(HIGHEST_LR), n, dtype=torch.float64).tolist()
        return [Point(lr, share) for lr in lrs for share in self.shares]


@dataclass(frozen=True)
class Tuned:
    """The steps of a method at the point of its grid that needed fewest; None: more than were allowed."""

    steps: int | None
    point: Point | None


def _sophia(param: nn.Parameter, betas: tuple[float, float], every: int) -> optim.Sophia:
    curvature = optim.GaussNewtonBartlett(every=every)  # says when; the estimates here are the exact diagonal
    return optim.Sophia([param], lr=1.0, betas=betas, rho=1.0, weight_decay=0.0, curvature=curvature)


GD = Method("gd", "gradient descent", lambda p: optim.SGD([p], lr=1.0, momentum=0.0))
METHODS = (
    GD,
    Method("signgd", "SignGD", lambda p: optim.Signum([p], lr=1.0, momentum=0.0)),
    Method("adam", "Adam", lambda p: optim.AdamW([p], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)),
    Method("sophia", "Sophia, as analysed", lambda p: _sophia(p, (0.0, 0.0), 1), SHARES),
    Method("sophia_trained", "Sophia, as in training", lambda p: _sophia(p, (0.96, 0.99), 10), SHARES),
)
CLAIMED = ("sophia", "sophia_trained")


class Toy(Kind[ToyFields]):
    """Judged is how the steps grow with the condition number, along the axes. Deterministic."""

    Fields = ToyFields
    description = "small losses with a known Hessian, every method at its best point of a grid of equal size"
    needs_baseline = False

    @override
    def measure(self, claim: Claim[ToyFields]) -> Evidence:
        return heterogeneous(claim.fields.settings)


def heterogeneous(settings: Settings) -> Evidence:
    """Everything measured for the claim."""
    found = {
        kind: {method.name: _on_quadratics(method, settings, kind) for method in METHODS}
        for kind in ("equal loss", "equal distance", "rotated")
    }
    evidence = Evidence(
        measures=[*_growths(found["equal loss"], settings, ""), *_growths(found["rotated"], settings, "rotated")],
        figures=[_steps_figure(found[kind], settings, kind) for kind in ("equal loss", "rotated")],
        tables=[_steps_table(found[kind], settings, kind) for kind in found],
        notes=_notes(settings),
    )
    _add_example(evidence, settings)
    return evidence


def first_held(
    problem: Problem, method: Method, points: Sequence[Point], *, tolerance: float, max_steps: int
) -> Tensor:
    """The steps, (K, G) int64, after which the error stays within tolerance of its start for HOLD more; 0: none did.

    Stops when every one of the K losses has a point that did, so other points may have 0 for having been slower.
    """
    run = _Grid(problem, method, points)
    bound = tolerance * problem.error(problem.start)  # (K, 1)
    since, held = (torch.zeros(len(problem.start), len(points), dtype=torch.int64) for _ in range(2))
    for t in range(1, max_steps + HOLD + 1):
        below = problem.error(run.step()) <= bound  # False for a point that diverged
        since = torch.where(below, torch.where(since > 0, since, t), 0)
        held = torch.where((held == 0) & below & (t - since >= HOLD), since, held)
        if bool((held > 0).any(1).all()):
            break
    return held


def tuned(problem: Problem, method: Method, settings: Settings) -> list[Tuned]:
    """For each of the K losses."""
    points = method.grid(settings.grid_points)
    held = first_held(problem, method, points, tolerance=settings.tolerance, max_steps=settings.max_steps)
    best = []
    for row in held.tolist():
        reached = [(steps, index) for index, steps in enumerate(row) if steps]
        steps, index = min(reached, default=(None, None))
        best.append(Tuned(steps, None if index is None else points[index]))
    return best


def path(problem: Problem, method: Method, point: Point, steps: int) -> Tensor:
    """The points visited, start first, (steps + 1, D); for a single loss."""
    run = _Grid(problem, method, [point])
    return torch.stack([problem.start[0, 0], *(run.step()[0, 0] for _ in range(steps))])


def newton_path(problem: Problem, steps: int) -> Tensor:
    """Newton's method on a loss whose Hessian is diagonal, (steps + 1, D)."""
    x, visited = problem.start, [problem.start[0, 0]]
    for _ in range(steps):
        x = x - problem.gradient(x) / problem.diagonal(x)
        visited.append(x[0, 0])
    return torch.stack(visited)


class _Grid:
    """All points of a grid on all K losses, in lockstep; see the module."""

    def __init__(self, problem: Problem, method: Method, points: Sequence[Point]) -> None:
        self._problem = problem
        self._lr = torch.tensor([[point.lr] for point in points], dtype=torch.float64)  # (G, 1)
        self._rho = self._lr / torch.tensor([[point.share] for point in points], dtype=torch.float64)
        self._y = nn.Parameter(problem.start / self._lr)  # (K, G, D)
        self._optimizer = method.make(self._y)
        self._t = 0

    def step(self) -> Tensor:
        """The points afterwards, (K, G, D)."""
        x = self._y.detach() * self._lr
        self._y.grad = self._problem.gradient(x)
        optimizer = self._optimizer
        if isinstance(optimizer, optim.Sophia) and self._t % optimizer.curvature.every == 0:
            # Sophia divides by rho h: with a rho of 1, the curvature brings each point's own along.
            optimizer.update_curvature({self._y: self._rho * self._problem.diagonal(x).expand_as(x)})
        optimizer.step()
        self._t += 1
        return self._y.detach() * self._lr


def quadratics(settings: Settings, kind: str) -> Problem:
    """x' H x / 2 for every condition number, curvatures evenly spaced on a log scale from 1 down.

    kind: "equal loss": the start has about the same part of the loss along every axis, and the loss must fall; "equal
    distance": it is about as far from the minimum along every axis, and the squared distance must fall; "rotated": the
    first, in other coordinates. About: times a random number of [0.5, 1.5) and a random sign, fixed by the seed.
    """
    h, weights, start = spectrum(settings, kind)
    D, generator = settings.dimensions, torch.Generator().manual_seed(settings.seed + 1)
    Q = torch.eye(D, dtype=torch.float64)
    if kind == "rotated":
        Q = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    H, W = Q * h[:, None, :] @ Q.T, Q * weights[:, None, :] @ Q.T  # (K, D, D)
    diagonal = torch.diagonal(H, dim1=1, dim2=2)[:, None, :]
    return Problem(
        start=(start @ Q.T)[:, None, :],
        error=lambda x: (x @ W * x).sum(-1),
        gradient=lambda x: x @ H,
        diagonal=lambda x: diagonal,
    )


def spectrum(settings: Settings, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Curvatures, weights of the squares in the error, and the start, along the axes of the ellipsoid: (K, D) each."""
    D, generator = settings.dimensions, torch.Generator().manual_seed(settings.seed)
    h = torch.stack([torch.logspace(0, -math.log10(c), D, dtype=torch.float64) for c in settings.conditions])
    weights = torch.ones_like(h) if kind == "equal distance" else h
    size = torch.rand(D, generator=generator, dtype=torch.float64) + 0.5
    sign = torch.randint(0, 2, (D,), generator=generator) * 2 - 1
    return h, weights, sign * size / weights.sqrt()


def gradient_descent_steps(h: Tensor, parts: Tensor, lrs: Sequence[float], tolerance: float) -> tuple[int, float]:
    """Gradient descent's fewest steps over the learning rates, and the one that needs them, in closed form.

    Along an axis of curvature h, t steps multiply the error by (1 - lr h)^(2 t). parts: of the error at the start, by
    axis, (D). The same in any coordinates.
    """
    best = (10**15, math.nan)
    for lr in lrs:
        factors = (1 - lr * h).square()
        if float(factors.max()) < 1:
            best = min(best, (_steps_to(factors, parts, tolerance), lr))
    return best


def _steps_to(factors: Tensor, parts: Tensor, tolerance: float) -> int:
    def has_arrived(t: int) -> bool:
        return bool((parts * factors**t).sum() <= tolerance * parts.sum())

    return bisect_left(range(10**12), True, key=has_arrived)


def two_dimensional() -> Problem:
    """The paper's example: 8 (a - 1)^2 (1.3 a^2 + 2 a + 1) + (b - 4)^2 / 2, minimum 0 at (1, 4), saddle at (0, 4)."""

    def error(x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return 8 * (a - 1) ** 2 * (1.3 * a**2 + 2 * a + 1) + (b - 4) ** 2 / 2

    def gradient(x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return torch.stack([8 * a * (a - 1) * (5.2 * a + 3.4), b - 4], -1)

    def diagonal(x: Tensor) -> Tensor:
        a = x[..., 0]
        return torch.stack([8 * (15.6 * a**2 - 3.6 * a - 3.4), torch.ones_like(a)], -1)

    return Problem(torch.tensor([[TOY_START]], dtype=torch.float64), error, gradient, diagonal)


def _on_quadratics(method: Method, settings: Settings, kind: str) -> list[Tuned]:
    if method is not GD:
        return tuned(quadratics(settings, kind), method, settings)
    h, weights, start = spectrum(settings, kind)
    lrs = [point.lr for point in method.grid(settings.grid_points)]
    parts = weights * start**2
    found = [gradient_descent_steps(*each, lrs, settings.tolerance) for each in zip(h, parts, strict=True)]
    return [Tuned(steps, Point(lr, 1.0)) for steps, lr in found]


def _growths(found: Mapping[str, list[Tuned]], settings: Settings, kind: str) -> list[Measure]:
    """Steps at the largest condition number over those at the smallest, for every method.

    Along the axes Sophia's is compared with the paper's 1, no effect being the least growth of another method.
    """
    is_rotated = kind == "rotated"
    prefix, where = ("steps_growth_rotated_", "rotated, ") if is_rotated else ("steps_growth_", "")
    smallest, largest = settings.conditions[0], settings.conditions[-1]
    growths = {name: growth(each[0].steps, each[-1].steps) for name, each in found.items()}
    others = [each.estimate for name, each in growths.items() if name not in CLAIMED and each is not None]
    measures = []
    for method in METHODS:
        interval, no_effect = growths[method.name], min(others, default=1.0)
        measure = Measure(
            prefix + method.name,
            f"steps at condition {largest:.0e} over {smallest:.0e}, {where}{method.label}",
            "x",
            interval.estimate if interval else None,
            interval.low if interval else None,
            interval.high if interval and math.isfinite(interval.high) else None,
            log_scale=True,
            note="" if interval else f"more than {settings.max_steps:,} steps",
            bounds="to the whole step",
        )
        if not is_rotated and method.name in CLAIMED:
            measure.claimed, measure.least, measure.no_effect, measure.verdict = 1.0, 1.0, no_effect, UNDECIDED
            if interval and no_effect > 1:
                measure.verdict = verdict(interval, claimed=1.0, least=1.0, no_effect=no_effect, log_scale=True)
        measures.append(measure)
    return measures


def growth(first: int | None, last: int | None) -> Interval | None:
    """last / first, between the bounds that whole steps leave: the error crossed its bound during the last of them."""
    if first is None or last is None:
        return None
    return Interval(last / first, (last - 1) / first, last / (first - 1) if first > 1 else math.inf)


def _steps_figure(found: Mapping[str, list[Tuned]], settings: Settings, kind: str) -> Figure:
    xs = [float(condition) for condition in settings.conditions]
    is_rotated = kind == "rotated"
    title = "Steps on quadratics" + (", rotated" if is_rotated else " along the axes")
    return Figure(
        name="rotated_steps" if is_rotated else "steps",
        title=title,
        kind="lines",
        x=Axis("condition number", log=True),
        y=Axis(f"steps to {settings.tolerance:g} of the loss", log=True),
        series=[
            Series(method.label, xs, [each.steps for each in found[method.name]], arm=method.name) for method in METHODS
        ],
        caption=f"Each at its best of {settings.grid_points} points; a line ends where more than "
        f"{settings.max_steps:,} steps were needed; gradient descent's is its closed form.",
    )


def _steps_table(found: Mapping[str, list[Tuned]], settings: Settings, kind: str) -> Table:
    what = {
        "equal loss": "Along the axes, start of equal loss along each",
        "equal distance": "Along the axes, start at equal distance along each: until the squared distance has fallen",
        "rotated": "Rotated, start of equal loss along each axis of the ellipsoid",
    }
    rows = [[m.label, *(_cell(each, m, settings) for each in found[m.name])] for m in METHODS]
    columns = ["method", *(f"{condition:.0e}" for condition in settings.conditions)]
    return Table(f"{what[kind]}: steps by condition number", columns, rows, note="In brackets lr, and Sophia's lr/rho.")


def _cell(each: Tuned, method: Method, settings: Settings) -> str:
    if each.steps is None or each.point is None:
        return f"> {settings.max_steps:,}"
    share = f", {each.point.share:.3g}" if len(method.shares) > 1 else ""
    return f"{each.steps:,} ({each.point.lr:.3g}{share})"


def _add_example(evidence: Evidence, settings: Settings) -> None:
    """The paper's two-dimensional example: paths, losses and where they end."""
    problem, best = two_dimensional(), {}
    paths = {"newton": newton_path(problem, TOY_STEPS)}
    for method in METHODS:
        found = best[method.name] = tuned(problem, method, settings)[0]
        if found.point is not None:
            paths[method.name] = path(problem, method, found.point, TOY_STEPS)
        note = "" if found.steps else f"more than {settings.max_steps:,} steps"
        label = f"steps on the paper's example, {method.label}"
        evidence.measures.append(Measure(f"toy_steps_{method.name}", label, "steps", found.steps, note=note))
    evidence.figures += _example_figures(problem, paths, settings)
    rows = [["Newton", "never", *_end(problem, paths["newton"])]]
    for method in METHODS:
        end = _end(problem, paths[method.name]) if method.name in paths else ["", ""]
        rows.append([method.label, _cell(best[method.name], method, settings), *end])
    title = f"The paper's example: steps until the loss stays below {settings.tolerance:g} of the loss at the start"
    columns = ["method", "steps (lr, lr/rho)", f"place after {TOY_STEPS} steps", "loss there"]
    evidence.tables.append(Table(title, columns, rows))


def _end(problem: Problem, visited: Tensor) -> list[str]:
    a, b = visited[-1].tolist()
    return [f"({a:.3f}, {b:.3f})", f"{float(problem.error(visited[-1])):.2g}"]


def _example_figures(problem: Problem, paths: Mapping[str, Tensor], settings: Settings) -> list[Figure]:
    labels = {"newton": "Newton"} | {method.name: method.label for method in METHODS}
    places = [Series(labels[name], v[:, 0].tolist(), v[:, 1].tolist(), arm=name) for name, v in paths.items()]
    places.append(Series("minimum", [1.0], [4.0]))
    times = [float(t) for t in range(TOY_STEPS + 1)]
    losses = [
        Series(labels[name], times, problem.error(visited).clamp(min=1e-12).tolist(), arm=name)
        for name, visited in paths.items()
    ]
    about = f"{TOY_STEPS} steps from {TOY_START}, each method at its best of {settings.grid_points} points."
    saddle = f"{about} The saddle is at (0, 4)."
    return [
        Figure("toy_paths", "Paths", "lines", Axis("sharp axis"), Axis("flat axis"), places, caption=saddle),
        Figure("toy_loss", "Loss", "lines", Axis("step"), Axis("loss", log=True), losses, caption=about),
    ]


def _notes(settings: Settings) -> list[str]:
    return [
        f"A method has arrived when the error stays within {settings.tolerance:g} of its start for {HOLD} more steps, "
        f"at constant learning rate; each method has {settings.grid_points} grid points, learning rates from "
        f"{LOWEST_LR:g} to {HIGHEST_LR:g}, Sophia's divided among {len(SHARES)} values of lr/rho.",
        "Sophia is given the exact diagonal of the Hessian, noise-free gradients and no weight decay: the paper's much "
        "simplified setting. As analysed: no averages, curvature at every step. As in training: betas 0.96 and 0.99, "
        "curvature every 10 steps.",
        "On quadratics along the axes this is Newton's method, so a run time without the condition number is built in. "
        "From a start at equal distance along every axis SignGD and Adam have it too; on rotated quadratics Sophia "
        "loses it.",
        "Unverified: the example's formula is as a published summary of the paper prints it, its start and learning "
        "rates are not the paper's.",
    ]
