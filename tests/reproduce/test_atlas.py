"""One folder of runs for all claims over the same data, model and batch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.job import Job
from reproduce import reproduction
from reproduce.atlas import Atlas
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.plans import Planned
from reproduce.records import RecordsError

pytestmark = pytest.mark.usefixtures("quick", "without_report")
Write = Callable[..., Path]


@pytest.fixture
def claim(write_claim: Write) -> Claim:
    return load("twice", "nano", folder=write_claim())


def reproduce(claim: Claim, folder: Path, simulation: Any) -> Any:
    return reproduction.reproduce(claim, folder, "again", run=simulation, time_arms=lambda claim: {})


def branches_of(claim: Claim, walk: Any) -> list[Planned]:
    return [run for batch in walk(claim).batches for run in batch if run.trunk is not None]


def test_a_second_claim_reuses_what_the_first_one_has_run(
    claim: Claim, write_claim: Write, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    first = reproduce(claim, tmp_path / "first", simulation)
    done = list(simulation.started)
    other = load("other", "nano", folder=write_claim("other", title="another claim of the same arms"))
    second = reproduce(other, tmp_path / "second", simulation)
    assert simulation.started == done
    assert (second.protocols[0].measures, len(second.runs)) == (first.protocols[0].measures, len(first.runs))


def test_an_argument_that_has_its_default_is_no_other_atlas(claim: Claim, write_claim: Write, tmp_path: Path) -> None:
    """As of a class that gets another argument."""
    said, changed = (
        load("twice", "nano", [f"model.bf16_residual={x}"], folder=write_claim()) for x in ("false", "true")
    )
    assert Atlas(tmp_path, said).folder == Atlas(tmp_path, claim).folder != Atlas(tmp_path, changed).folder


def test_a_claim_with_a_further_arm_runs_that_arm_alone(
    claim: Claim, write_claim: Write, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    reproduce(claim, tmp_path / "first", simulation)
    done = len(simulation.started)
    arms = {arm.name: arm for arm in claim.arms}
    third = replace(arms["b"], name="c", label="C", overrides=("optim=signum",))
    simulation.optimum["c"] = 2e-4
    reproduce(replace(claim, id="other", arms=(arms["a"], third, arms["b"])), tmp_path / "second", simulation)
    assert {name.partition("-")[0] for name in simulation.started[done:]} == {"c"}


def test_a_run_whose_arm_another_claim_names_otherwise_is_found_by_its_hash(
    claim: Claim, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    reproduce(claim, tmp_path / "first", simulation)
    done = list(simulation.started)
    renamed = tuple(replace(arm, name={"a": "adamw", "b": "b"}[arm.name]) for arm in claim.arms)
    rows = [replace(row, baseline="adamw") for row in claim.fields.comparisons]
    other = replace(claim, id="other", arms=renamed, fields=replace(claim.fields, comparisons=rows))
    results = reproduce(other, tmp_path / "second", simulation)
    assert simulation.started == done
    assert {run.arm for run in results.runs} == {"adamw", "b"}


def test_no_run_happens_twice_in_a_claim_with_both_protocols(write_claim: Write, simulate: Any, tmp_path: Path) -> None:
    simulation = simulate(2.0)
    claim = load("twice", "nano", folder=write_claim(protocols=["paper", "tuned"]))
    reproduce(claim, tmp_path / "out", simulation)
    hashes = [name.rpartition("-")[2] for name in simulation.started]
    assert len(hashes) == len(set(hashes))


@pytest.mark.parametrize("override", ["global_batch=16", "data=synthetic", "model.n_layer=1", "precision=bf16"])
def test_runs_of_another_regime_lie_in_another_folder(
    override: str, claim: Claim, write_claim: Write, tmp_path: Path
) -> None:
    other = load("twice", "nano", [override], folder=write_claim())
    assert Atlas(tmp_path, other).folder != Atlas(tmp_path, claim).folder


@pytest.mark.parametrize("override", ["data.root=/elsewhere", "micro_batch=2", "optim.lr=1", "grad_clip=2", "seed=3"])
def test_runs_of_the_same_regime_lie_in_the_same_folder(
    override: str, claim: Claim, write_claim: Write, tmp_path: Path
) -> None:
    other = load("twice", "nano", [override], folder=write_claim())
    assert Atlas(tmp_path, other).folder == Atlas(tmp_path, claim).folder


def test_branches_begin_at_their_trunks_checkpoint_after_it(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    simulation = simulate(2.0)
    results = reproduce(claim, tmp_path / "out", simulation)
    planned = {run.name: run for run in results.runs if run.purpose == "branch"}
    assert set(simulation.branched) == set(planned)
    order = {name: n for n, name in enumerate(simulation.started)}
    for name, start in simulation.branched.items():
        trunk, _, step = start.rpartition("@")
        assert order[Path(trunk).name] < order[name]
        assert int(step) == {40: 32, 80: 64, 120: 96}[planned[name].steps]  # .8 of the length


def test_a_branch_without_its_trunks_checkpoint_is_a_run_of_its_own(
    claim: Claim, simulate: Any, walk: Any, tmp_path: Path
) -> None:
    atlas = Atlas(tmp_path, claim)
    branch = branches_of(claim, walk)[0]
    assert branch.trunk is not None
    checkpoint = atlas.place(branch.trunk) / "checkpoints" / f"step_{branch.branches_at:06d}"
    assert not any(each.startswith("start_from=") for each in atlas.job(branch).overrides)
    checkpoint.mkdir(parents=True)
    assert f"start_from={atlas.place(branch.trunk)}@{branch.branches_at}" in atlas.job(branch).overrides
    assert atlas.job(branch).overrides[: len(branch.overrides)] == branch.overrides


def test_lost_checkpoints_change_no_result(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    undisturbed = reproduce(claim, tmp_path / "one" / "out", simulate(2.0))
    claim = replace(claim, fields=replace(claim.fields, drop_checkpoints=True))
    simulation = simulate(2.0)
    simulation.keeps = False
    found = reproduce(claim, tmp_path / "other" / "out", simulation)
    assert not simulation.branched
    assert found.protocols == undisturbed.protocols


@pytest.mark.parametrize("drop", [True, False])
def test_checkpoints_go_once_nothing_is_to_branch_from_them(
    drop: bool, claim: Claim, simulate: Any, tmp_path: Path
) -> None:
    claim = replace(claim, fields=replace(claim.fields, drop_checkpoints=drop))
    simulation = simulate(2.0)
    reproduce(claim, tmp_path / "out", simulation)
    assert simulation.branched  # so they were there
    assert any(tmp_path.glob("atlas/*/*/checkpoints")) is not drop


def test_runs_of_any_claim_on_other_validation_data_are_refused(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    simulation = simulate(2.0)
    reproduce(claim, tmp_path / "out", simulation)
    stray = tmp_path / "atlas" / Atlas(tmp_path, claim).folder.name / "stray"
    stray.mkdir()
    (stray / "env.json").write_text(json.dumps({"data": {"val": "another"}}))
    with pytest.raises(RecordsError, match="different validation data"):
        reproduce(claim, tmp_path / "out", simulation)


def test_a_run_that_does_not_say_on_which_data_is_refused(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    simulation = simulate(2.0)
    before = reproduce(claim, tmp_path / "out", simulation)
    next((tmp_path / "atlas").glob(f"*/{before.runs[0].name}/env.json")).unlink()
    with pytest.raises(RecordsError, match=r"has no env\.json with the checksums of its data.*delete the folder"):
        reproduce(claim, tmp_path / "out", simulation)


@pytest.mark.parametrize(
    ("change", "is_compared"),
    [
        ("optim.lr=0.0031", True),
        ("schedule.warmup_steps=12", True),
        ("max_steps=320", False),  # no wonder that it is better
        ("optim=lion", False),  # another optimizer
        ("precision=bf16", False),
        ("model.dropout=0.3", False),
    ],
)
def test_a_better_run_of_the_baseline_that_is_added_by_hand_fails_r4(
    change: str, is_compared: bool, claim: Claim, simulate: Any, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    before = reproduce(claim, tmp_path / "out", simulation)
    assert _r4(before).passed
    (folder,) = (tmp_path / "atlas").iterdir()
    baseline = next(run for run in before.runs if run.arm == "a" and run.purpose == "full budget")
    simulation.loss, simulation.optimum = lambda arm, steps, seed: 1.0, None
    simulation([Job("mine", (*baseline.overrides, change, f"run_dir={folder / 'mine'}"))])
    after = reproduce(claim, tmp_path / "out", simulation)
    assert _r4(after).passed is not is_compared
    assert (change in _r4(after).value) is is_compared
    assert ("R4 (" in after.sentence) is is_compared


def _r4(results: Any) -> Any:
    (check,) = [check for check in results.checks if check.id == "R4"]
    return check
