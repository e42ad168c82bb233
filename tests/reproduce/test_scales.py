"""Every scale is ready before anybody has the device for it: its claims load, and its runs start."""

from pathlib import Path
from typing import Any

import pytest

import train
from configs import compose
from files.reading import read_yaml
from reproduce import claims, protocols, regime
from reproduce.training import TrainingFields

SCALES = sorted(path.stem for path in (claims.FOLDER.parent / "scale").glob("*.yaml"))
TINY = (  # what keeps a run of any scale to seconds
    "data=synthetic",
    "data/tokenizer=bytes",
    "global_batch=2",
    "micro_batch=1",
    "eval_sequences=2",
    "model.block_size=32",
    "schedule.warmup_steps=1",
    "max_steps=3",
    "device=cpu",
    "compile=false",
)


def _slow_unless_small(scale: str) -> list[pytest.MarkDecorator]:
    return [] if scale in ("nano", "gpu") else [pytest.mark.slow]


def of_training(scale: str) -> list[Any]:
    """All claims that train at the scale."""
    there = [claims.load(name, scale) for name in claims.names() if scale in claims.scales(name)]
    return [claim for claim in there if isinstance(claim.fields, TrainingFields)]


@pytest.mark.parametrize("scale", [pytest.param(each, marks=_slow_unless_small(each)) for each in SCALES])
def test_what_is_known_before_any_run_fails_no_claim_of_the_scale(scale: str) -> None:
    found = of_training(scale)
    assert found
    for claim in found:
        for protocol in protocols.of(claim):
            assert not [check for check in regime.before(protocol.claim) if check.passed is False], claim.id


def test_every_optimizer_is_tuned_by_a_claim_at_nano() -> None:
    options = {path.stem for path in (claims.FOLDER.parent / "optim").glob("*.yaml")} - {"adamw_ours"}  # as adamw
    tuned = {word for claim in of_training("nano") for arm in claim.arms if arm.axes for word in arm.overrides}
    assert {f"optim={option}" for option in options} <= tuned


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["soap_40_35", "sophia_2x", "sophia_clip"])
def test_every_arm_of_the_scale_for_a_gpu_trains_some_steps_on_a_cpu(claim: str, tmp_path: Path) -> None:
    loaded = claims.load(claim, "gpu")
    for arm in loaded.arms:
        point = arm.point(arm.start)
        common = [each for each in loaded.common if not each.startswith("data")]
        overrides = [*common, *arm.overrides, *point, "schedule=wsd", *TINY]
        overrides += [f"data.root={tmp_path / 'data'}", f"run_dir={tmp_path / arm.name}"]
        assert train.main(compose(overrides)) == 0
        assert (read_yaml(tmp_path / arm.name / "config.yaml") or {})["model"]["n_embd"] == 320
