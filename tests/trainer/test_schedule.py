import math

import pytest
import torch

from trainer import WSD, Constant, Cosine, Linear
from trainer.schedule import Schedule

STEPS, WARMUP = 100, 10
SCHEDULES: list[Schedule] = [
    Constant(max_steps=STEPS, warmup_steps=WARMUP),
    Linear(max_steps=STEPS, warmup_steps=WARMUP, final_lr_fraction=0.1),
    Cosine(max_steps=STEPS, warmup_steps=WARMUP, final_lr_fraction=0.1),
    WSD(max_steps=STEPS, warmup_steps=WARMUP, decay_fraction=0.2, final_lr_fraction=0.1),
]


def optimizer_with(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule: Schedule) -> None:
    assert [schedule.factor(step) for step in range(WARMUP)] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert schedule.factor(WARMUP) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), list(zip(SCHEDULES, (1, 0.55, 0.55, 1), (1, 0.1, 0.1, 0.1), strict=True))
)
def test_the_curve_after_warm_up(schedule: Schedule, middle: float, end: float) -> None:
    assert schedule.factor(55) == pytest.approx(middle)  # half-way between 10 and 100
    assert schedule.factor(STEPS) == pytest.approx(end)


def test_cosine_follows_its_formula() -> None:
    schedule = Cosine(max_steps=110, warmup_steps=10, final_lr_fraction=0.0)
    assert schedule.factor(35) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_wsd_decays_over_its_fraction_only() -> None:
    schedule = SCHEDULES[3]
    assert schedule.factor(79) == schedule.factor(80) == 1
    assert schedule.factor(90) == pytest.approx(0.55)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_apply_depends_on_the_step_alone(schedule: Schedule) -> None:
    straight, jumped = optimizer_with(1.0, 0.5), optimizer_with(1.0, 0.5)
    for step in range(60):
        schedule.apply(straight, step)
    assert schedule.apply(jumped, 59) == straight.param_groups[0]["lr"] == schedule.factor(59)
    assert straight.param_groups[1]["lr"] == 0.5 * schedule.factor(59) == jumped.param_groups[1]["lr"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(max_steps=5, warmup_steps=-1), r"schedule.warmup_steps=-1 must be >= 0"),
        (
            lambda: Cosine(max_steps=5, warmup_steps=0, final_lr_fraction=1.5),
            r"schedule.final_lr_fraction=1.5 must lie",
        ),
        (
            lambda: WSD(max_steps=10, warmup_steps=6, decay_fraction=0.5, final_lr_fraction=0),
            r"warmup_steps=6 and the decay's 5 steps \(decay_fraction=0.5\) must fit into max_steps=10",
        ),
    ],
)
def test_impossible_schedules_are_refused(build: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
