"""Axes of tuning, and arms whose files all claims share."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from reproduce import arms, claims
from reproduce.arms import ArmFields, Axis, CarriedFields, merged, spec
from reproduce.claims import load
from reproduce.fields import typed
from reproduce.mistakes import ClaimError

RATE = Axis("rate", ("optim.lr={}",), 1e-3)
BETA = Axis("beta2", ("optim.betas=[0.9,{}]",), 0.95, complement=True)
STEPS = Axis("warm-up", ("schedule.warmup_steps={}",), 100, is_count=True, most=300)
SOPHIA = {
    "label": "S",
    "overrides": ["optim=sophiag"],
    "usual": ["optim.lr=1"],
    "axes": {"rate": {"sets": ["optim.lr={}"], "start": 1.0}, "rho": {"sets": ["optim.rho={}"], "start": 0.05}},
    "scales": {"nano": {"overrides": ["optim.k=5"], "usual": ["optim.lr=2"], "axes": {"rate": {"start": 2.0}}}},
}


@pytest.mark.parametrize(
    ("axis", "doublings", "value"),
    [
        (RATE, 1, 2e-3),
        (RATE, -2, 2.5e-4),
        (RATE, 0.5, 1.414e-3),  # as it is written, four digits
        (BETA, 1, 0.975),  # half of 1 - .95
        (BETA, -1, 0.9),
        (STEPS, 1, 200.0),
        (STEPS, -9, 1.0),  # a fifth of a step is no count
    ],
)
def test_values_are_factors_of_two_from_the_start(axis: Axis, doublings: float, value: float) -> None:
    assert axis.value(axis.start, doublings) == pytest.approx(value, rel=1e-12)


def test_an_axis_writes_overrides_as_train_py_reads_them() -> None:
    assert STEPS.overrides(200.0) == ("schedule.warmup_steps=200",)
    assert BETA.overrides(0.975) == ("optim.betas=[0.9,0.975]",)
    both = Axis("rate", ("optim.roles.matrix.lr={}", "optim.roles.rest.lr={}"), 1e-3)
    assert both.overrides(5e-4) == ("optim.roles.matrix.lr=0.0005", "optim.roles.rest.lr=0.0005")


def test_an_axis_knows_its_limits() -> None:
    assert STEPS.holds(300) and not STEPS.holds(301)
    assert BETA.holds(0.999) and not BETA.holds(0.0) and not BETA.holds(1.0)
    assert RATE.holds(1e9) and not RATE.holds(0)


def files(tmp_path: Path, **content: dict[str, Any]) -> Path:
    for name, each in content.items():
        (tmp_path / f"{name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(each)))
    return tmp_path


def test_a_claim_that_names_no_more_than_an_arm_gets_its_file(tmp_path: Path) -> None:
    found = merged("sophiag", {"role": "candidate"}, "large", files(tmp_path, sophiag=SOPHIA))
    assert found == {**{key: value for key, value in SOPHIA.items() if key != "scales"}, "role": "candidate"}


def test_a_scale_changes_an_arms_file_and_the_claim_changes_both(tmp_path: Path) -> None:
    own = {"overrides": ["optim.x=1"], "axes": {"rho": {"start": 0.1}, "decay": {"sets": ["d={}"], "start": 1}}}
    found = merged("sophiag", own, "nano", files(tmp_path, sophiag=SOPHIA))
    assert found["overrides"] == ["optim=sophiag", "optim.k=5", "optim.x=1"]  # added to each other
    assert found["usual"] == ["optim.lr=2"]  # replaced
    assert {name: axis["start"] for name, axis in found["axes"].items()} == {"rate": 2.0, "rho": 0.1, "decay": 1}
    assert found["axes"]["rho"]["sets"] == ["optim.rho={}"]


def test_a_claim_may_leave_an_axis_out(tmp_path: Path) -> None:
    found = merged("sophiag", {"axes": {"rho": None}}, "nano", files(tmp_path, sophiag=SOPHIA))
    assert list(found["axes"]) == ["rate"]


def test_two_arms_of_a_claim_may_be_of_one_file(tmp_path: Path) -> None:
    folder = files(tmp_path, sophiag=SOPHIA)
    found = merged("sophia_k1", {"of": "sophiag", "label": "k = 1"}, "large", folder)
    assert (found["label"], found["overrides"], "of" in found) == ("k = 1", ["optim=sophiag"], False)
    with pytest.raises(ClaimError, match=r"arm x: of='sophia' is no file of .*; the nearest one is 'sophiag'"):
        merged("x", {"of": "sophia"}, "large", folder)


def test_an_arms_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(ClaimError, match=r"odd\.yaml is no YAML"):
        merged("odd", {}, "nano", tmp_path)


def test_every_arm_ends_with_the_axes_that_all_have_unless_it_is_fixed() -> None:
    content = {"label": "A", "role": "baseline", "overrides": [], "axes": {"rate": {"sets": ["r={}"], "start": 1.0}}}
    fields = typed(ArmFields, content, "here")
    arm = spec("a", fields, (STEPS,))
    assert [axis.name for axis in arm.axes] == ["rate", "warm-up"]
    assert arm.point({"rate": 0.25, "warm-up": 50}) == ("r=0.25", "schedule.warmup_steps=50")
    assert arm.start == {"rate": 1.0, "warm-up": 100}
    fields.fixed = ["r=2"]
    assert spec("a", fields, (STEPS,)).axes == ()


@pytest.mark.slow  # composes every arm
@pytest.mark.parametrize("scale", ["nano", "micro", "gpu"])
def test_arms_that_shipped_claims_tune_start_from_the_same_settings_in_all_of_them(scale: str) -> None:
    tuned: dict[tuple[str, ...], arms.ArmSpec] = {}
    for name in claims.names():
        claim = load(name, scale) if scale in claims.scales(name) else None
        if claim is not None and claim.kind.protocols(claim):
            for arm in (arm for arm in claim.arms if arm.axes):
                first = tuned.setdefault(arm.overrides, arm)
                assert (arm.axes, arm.usual) == (first.axes, first.usual), name
    assert len(tuned) > 5


def test_a_rate_starts_at_that_of_another_scale_times_a_factor_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    carried = CarriedFields("nano", 0.75)
    content = {
        **SOPHIA,
        "scales": {"nano": {"axes": {"rate": {"start": 1e-3}}}, "large": {"axes": {"rate": {"start": 5e-5}}}},
    }
    folder = files(tmp_path, sophiag=content)
    assert merged("sophiag", {}, "micro", folder, carried)["axes"]["rate"]["start"] == 7.5e-4
    assert merged("sophiag", {}, "large", folder, carried)["axes"]["rate"]["start"] == 5e-5
    without = merged("sophiag", {}, "micro", folder)["axes"]
    assert merged("sophiag", {}, "micro", folder, carried)["axes"] | {"rate": without["rate"]} == without
    assert merged("sophiag", {}, "micro", folder, CarriedFields("small", 0.5))["axes"]["rate"]["start"] == 0.5
