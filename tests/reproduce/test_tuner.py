"""Planted optima are found, and what cannot be found is said to be."""

import math
from collections.abc import Callable, Sequence

import pytest

from reproduce.arms import Axis, Coordinates
from reproduce.plans import Planned
from reproduce.tuner import Tuning, tune

RATE = Axis("rate", ("optim.lr={}",), 1e-3)
DECAY = Axis("decay", ("optim.weight_decay={}",), 0.1)
BETA = Axis("beta", ("optim.betas=[0.9,{}]",), 0.95, complement=True)
STEPS = Axis("warm-up", ("schedule.warmup_steps={}",), 100, is_count=True, most=300)
START = {axis.name: axis.start for axis in (RATE, DECAY, BETA, STEPS)}
Loss = Callable[[Coordinates], float | None]


def planned(point: Coordinates, seed: int) -> Planned:
    text = " ".join(f"{name}={value!r}" for name, value in point.items())
    return Planned(text, "a", "tuned", "tuning", seed, 100, (), (), f"{text} {seed}")


def tuned(
    axes: Sequence[Axis], loss: Loss, *, margin: float = 0.0, seeds: Sequence[int] = (7, 8), pays: float = 0.0
) -> Tuning:
    """Runs what is asked for until tuning is through."""
    points: dict[str, Coordinates] = {}

    def wanted(point: Coordinates, seed: int) -> Planned:
        run = planned(point, seed)
        points[run.config_hash] = dict(point)
        return run

    outcomes: dict[str, float | None] = {}
    for _ in range(100):
        found = tune(axes, START, wanted, seeds, outcomes, margin, pays)
        missing = [run for run in found.runs if run.config_hash not in outcomes]
        if not missing:
            return found
        assert found.point is None
        outcomes |= {run.config_hash: loss(points[run.config_hash]) for run in missing}
    raise AssertionError("tuning does not end")


def bowl(**optimum: float) -> Loss:
    """Parabolas in doublings of each value, of 1 - beta for beta."""

    def loss(point: Coordinates) -> float:
        total = 3.0
        for name, best in optimum.items():
            ratio = (1 - point[name]) / (1 - best) if name == "beta" else point[name] / best
            total += 0.05 * math.log2(ratio) ** 2
        return total

    return loss


@pytest.mark.parametrize("octaves", [-4.3, -2.0, -0.4, 0.0, 0.3, 1.5, 3.8])
def test_an_optimum_away_from_the_start_is_found_by_the_vertex(octaves: float) -> None:
    best = 1e-3 * 2**octaves
    found = tuned([RATE], bowl(rate=best))
    assert found.point is not None and found.point["rate"] == pytest.approx(best, rel=0.01)
    assert found.brackets["rate"].is_inside
    assert found.point["decay"] == 0.1  # not tuned, so left where it starts


def test_all_axes_are_tuned_and_the_rate_again_when_another_has_moved() -> None:
    found = tuned([RATE, DECAY, BETA], bowl(rate=5e-3, decay=0.37, beta=0.99))
    assert found.point is not None
    assert found.point["rate"] == pytest.approx(5e-3, rel=0.01)
    assert found.point["decay"] == pytest.approx(0.37, rel=0.01)
    assert 1 - found.point["beta"] == pytest.approx(0.01, rel=0.01)


def test_a_rate_that_depends_on_another_axis_is_followed() -> None:
    def loss(point: Coordinates) -> float:  # each doubling of the decay halves the best rate's square
        rate, decay = math.log2(point["rate"] / 1e-3), math.log2(point["decay"] / 0.1)
        return 3 + 0.05 * (rate + 0.5 * decay) ** 2 + 0.05 * (decay - 2) ** 2

    found = tuned([RATE, DECAY], loss)
    assert found.point is not None and loss(found.point) < 3.005
    assert found.point["rate"] == pytest.approx(5e-4, rel=0.2)


def test_an_optimum_at_a_limit_is_no_optimum_inside() -> None:
    found = tuned([RATE, STEPS], lambda point: 3.0 - point["warm-up"] / 1000)
    bracket = found.brackets["warm-up"]
    assert not bracket.is_inside and max(bracket.losses) == 200  # 400 would be beyond most


def test_a_loss_that_only_falls_ends_the_search_after_six_doublings() -> None:
    found = tuned([RATE], lambda point: -math.log(point["rate"]))
    assert not found.brackets["rate"].is_inside and max(found.brackets["rate"].losses) == pytest.approx(64e-3)


def test_diverged_runs_are_the_worst_and_never_chosen() -> None:
    found = tuned([RATE], lambda point: None if point["rate"] > 1.5e-3 else 3.0 - point["rate"])
    assert found.point is not None and found.point["rate"] == 1e-3
    assert found.brackets["rate"].is_inside and found.brackets["rate"].vertex() is None


def test_both_sides_of_the_rate_are_run_until_they_are_clearly_worse() -> None:
    flat = tuned([RATE], bowl(rate=1e-3), margin=0.3)
    assert min(flat.brackets["rate"].losses) <= 1e-3 / 2**3 + 1e-9  # .05 n^2 >= .3 from n = 3 on
    assert all(max(flat.brackets["rate"].beside(side)) >= 0.3 for side in (-1, 1))


def test_a_vertex_that_is_no_better_when_it_is_run_is_not_taken() -> None:
    def loss(point: Coordinates) -> float:
        on_grid = {0.5e-3: 3.1, 1e-3: 3.0, 2e-3: 3.02}
        return on_grid.get(point["rate"], 3.3)

    found = tuned([RATE], loss)
    assert found.point is not None and found.point["rate"] == 1e-3 and not found.took_vertex


def test_every_point_is_run_with_every_tuning_seed_and_once() -> None:
    found = tuned([RATE, DECAY], bowl(rate=1e-3, decay=0.1))
    hashes = [run.config_hash for run in found.runs]
    assert len(hashes) == len(set(hashes)) == 2 * 5  # a start, and two neighbours of each axis
    assert {run.seed for run in found.runs} == {7, 8}
    assert [run.seed for run in found.at_point] == [7, 8]


def test_noise_is_that_of_a_run_beside_others_of_its_seed() -> None:
    # at 1e-3 the seeds have 3.0 and 3.5; beside it the second is worse by .1 more and by .3 more: variances .005, .045
    by_seed = {0.5e-3: (3.1, 3.7), 1e-3: (3.0, 3.5), 2e-3: (3.1, 3.9)}
    losses = {(rate, seed): row[n] for rate, row in by_seed.items() for n, seed in enumerate((7, 8))}
    outcomes, points = dict[str, float | None](), dict[str, tuple[float, int]]()

    def wanted(point: Coordinates, seed: int) -> Planned:
        run = planned(point, seed)
        points[run.config_hash] = point["rate"], seed
        return run

    while (found := tune([RATE], START, wanted, (7, 8), outcomes, 0.0)).point is None:
        outcomes |= {run.config_hash: losses.get(points[run.config_hash], 4.0) for run in found.runs}
    assert found.noise == pytest.approx(math.sqrt((0.005 + 0.045) / 2 / 2))
    assert tuned([RATE], bowl(rate=1e-3), seeds=[7]).noise is None


def test_another_axis_moves_while_it_pays_and_stays_on_a_plateau() -> None:
    def loss(point: Coordinates) -> float:  # decay: .1 costs .02, .05 .008, .025 .003, and less is worth little more
        return 3 + 0.05 * math.log2(point["rate"] / 1e-3) ** 2 + max(0.0, 0.2 * point["decay"] - 0.002)

    found = tuned([RATE, DECAY], loss, pays=0.004)
    bracket = found.brackets["decay"]
    assert bracket.best == 0.025 and bracket.is_inside and bracket.vertex() is None
    assert min(bracket.losses) == 0.0125  # it gains .0025, and no more is asked for
    assert found.point is not None and found.point["decay"] == 0.025
    assert min(tuned([RATE, DECAY], loss).brackets["decay"].losses) < 0.0125  # without it to the plateau's end
