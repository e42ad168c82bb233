"""What a dry run says that runs will cost, beside what they then count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from configs import compose
from model.flops import flops_per_token
from reproduce import forecast
from reproduce.claims import load
from reproduce.composed import composed
from reproduce.mistakes import ClaimError
from reproduce.protocols import expected, of

EVERY_FOUR = {
    "sophiag": ["optim.curvature.every=4"],
    "sophiah": ["optim.curvature.every=4", "optim.curvature.fraction=0.25"],
    "soap": ["optim.roles.matrix.precondition_frequency=4"],
    "shampoo": ["optim.roles.matrix.precondition_frequency=4"],
}


@pytest.mark.parametrize("option", ["adamw", "lion", *EVERY_FOUR])
def test_a_run_counts_the_flops_that_were_forecast(option: str, tiny: list[str], tmp_path: Path) -> None:
    config = compose([*tiny, f"run_dir={tmp_path}", f"optim={option}", *EVERY_FOUR.get(option, [])])
    assert train.main(config) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    flops = forecast.flops_of(config)
    assert len(rows) > 3 and all(row["flops"] == flops(row["step"]) for row in rows)
    assert json.loads((tmp_path / "result.json").read_text())["flops"] == flops(config.max_steps) > 0


def test_curvature_adds_its_passes_and_soap_its_products(tiny: list[str]) -> None:
    def sequences(*overrides: str) -> float:
        """Sequences of a forward and backward pass that cost as much as 12 steps of 8 sequences."""
        config = compose([*tiny, *overrides])
        model = forecast.model_of(config)
        return forecast.flops_of(config)(12) / flops_per_token(model) / model.block_size

    assert sequences("optim=adamw") == 12 * 8
    # Estimates in steps 0, 4 and 8: half of the batch once each; a quarter of it, at three times a sequence's price.
    assert sequences("optim=sophiag", *EVERY_FOUR["sophiag"]) == 12 * 8 + 3 * 4
    assert sequences("optim=sophiah", *EVERY_FOUR["sophiah"]) == 12 * 8 + 3 * 2 * 3
    assert sequences("optim=soap") > sequences("optim=adamw")


def test_the_lines_of_a_claim_add_up_its_runs(write_claim: Callable[..., Path]) -> None:
    axes = {"rate": {"sets": ["optim.lr={}"], "start": 1e-3}}
    arms = {
        name: {"label": name, "role": role, "overrides": [f"optim={optim}"], "axes": axes}
        for name, role, optim in (("a", "baseline", "adamw"), ("b", "candidate", "sophiag"))
    }
    claim = load("twice", "nano", folder=write_claim(base="sweep", arms=arms, overrides=["model.n_layer=1"]))
    found = forecast.forecast(claim, lambda points: dict.fromkeys(points, 0.1))
    runs = expected(of(claim))
    for name in arms:
        counted = 0
        for run in (run for run in runs if run.arm == name):
            flops = forecast.flops_of(composed(run.overrides))
            counted += flops(run.steps) - flops(run.branches_at)  # what a branch shares with its trunk counts once
        assert sum(line.flops for line in found.lines if line.arm == name) == counted


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [("H100", "auto", 989e12), ("H100", "fp32", 67e12), ("V100", "auto", 15.7e12)],  # NVIDIA's data sheets
)
def test_a_named_gpu_takes_its_flops_over_a_share_of_its_peak(
    gpu: str, precision: str, peak: float, tiny: list[str]
) -> None:
    overrides = (*tiny, f"precision={precision}")
    (seconds,) = forecast.on_gpu(gpu, 0.25)([overrides]).values()
    assert seconds == pytest.approx(forecast.flops_of(composed(overrides))(1) / (0.25 * peak))


def test_a_gpu_without_a_known_peak_is_refused() -> None:
    with pytest.raises(ClaimError, match=r"gpu='H1OO' has no peak that is known here; known are GB200, .*, H100, "):
        forecast.on_gpu("H1OO", 0.3)


def test_hours_are_of_one_run_at_a_time_and_of_several(write_claim: Callable[..., Path]) -> None:
    claim: Any = load("twice", "nano", folder=write_claim(base="sweep"))
    found = forecast.forecast(claim, lambda points: dict.fromkeys(points, 2.0), at_once=4)
    assert found.device_hours == sum(line.seconds or 0 for line in found.lines) / 3600
    assert found.hours == found.device_hours / 4
