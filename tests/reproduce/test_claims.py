from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError
from reproduce import claims
from reproduce.claims import load
from reproduce.composed import composed
from reproduce.fields import ClaimError

ARMS: dict[str, Any] = {
    "a": {"label": "A", "role": "baseline", "overrides": ["optim=adamw"], "grid": [["optim.lr=1e-3"]]},
    "b": {"label": "B", "role": "candidate", "overrides": ["optim=lion"], "grid": [["optim.lr=1e-4"]]},
}
for arm in ARMS.values():
    arm["paper"] = ["optim.lr=3e-4"]
SHIPPED = [(name, scale) for name in claims.names() for scale in claims.scales(name)]


@pytest.mark.slow  # composes every point of every grid
@pytest.mark.parametrize("name", claims.names())
def test_every_shipped_claim_loads_and_has_its_source_contrary_evidence_and_rule(name: str) -> None:
    claim = load(name, "nano")
    fields = claim.fields
    assert fields.source.sentence and fields.source.unverified and fields.contrary and fields.rule


def test_every_shipped_claim_has_the_scale_that_needs_no_gpu() -> None:
    assert {name for name, scale in SHIPPED if scale == "nano"} == set(claims.names())


def test_a_scale_replaces_fields_and_an_arms_fields(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(scales={"nano": {"budget": 8, "warmup_steps": 1, "arms": {"a": {"paper": ["optim.lr=9e-3"]}}}})
    claim = load("twice", "nano", ["grad_clip=2"], folder=folder)
    assert (claim.fields.budget, claim.arm("a").paper, claim.arm("b").paper) == (
        8,
        ("optim.lr=9e-3",),
        ("optim.lr=5e-4",),
    )
    assert claim.common == ("grad_clip=2",)


def test_more_seeds_continue_the_files_and_avoid_tunings(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(seeds=[5, 6])
    assert load("twice", "nano", folder=folder, n_seeds=4).fields.seeds == [5, 6, 8, 9]  # 7 is tuning's
    assert load("twice", "nano", folder=folder, n_seeds=1).fields.seeds == [5]


def test_an_unknown_claim_or_scale_lists_those_there_are(write_claim: Callable[..., Path]) -> None:
    folder = write_claim()
    with pytest.raises(ClaimError, match=r"there is no claim 'twise'; the nearest one is 'twice' \(all: twice\)"):
        load("twise", "nano", folder=folder)
    with pytest.raises(ClaimError, match=r"no scale 'nanno'; the nearest one is 'nano' \(all: nano, small\)"):
        load("twice", "nanno", folder=folder)


@pytest.mark.parametrize("field", ["title", "source", "contrary", "rule", "arms", "overrides", "seeds", "halving"])
def test_a_missing_field_is_named_with_its_file(field: str, write_claim: Callable[..., Path]) -> None:
    with pytest.raises(ClaimError, match=rf"twice\.yaml, scale nano: field '{field}' .*is missing"):
        load("twice", "nano", folder=write_claim(**{field: None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "speedup"}, "kind='speedup' does not exist; the nearest one is 'speed_up'"),
        ({"buget": 3}, "has no field 'buget'; the nearest one is 'budget'"),
        ({"contrary": "none"}, "field 'contrary' must be a list of texts"),
        ({"source": {"paper": "P"}}, "source.url is missing"),
        ({"seeds": [1, 7]}, "tuning_seed=7 is among the seeds"),
        ({"seeds": [1, 1]}, "must be different counts"),
        ({"seeds": [[1]]}, "seeds[0]=[1] must be a whole number"),
        ({"protocols": [{}]}, "protocols[0]={} must be a text"),
        ({"overrides": [["optim.lr=1"]]}, "overrides[0]=['optim.lr=1'] must be a text"),
        ({"fractions": {"paper": [[0.5]]}}, "fractions.paper[0]=[0.5] must be a number"),
        ({"shows": ["win_rate"]}, "shows: 'win_rate' is no diagnostic of an optimizer; its name begins with optim/"),
        ({"warmup_steps": 3}, "give one of warmup_steps and warmup_fraction"),
        ({"protocols": ["papr"]}, "protocol 'papr' does not exist; the nearest one is 'paper'"),
        ({"fractions": {"paper": [0.5]}}, "fractions.tuned must list"),
        ({"halving": [{"fraction": 0.5, "keep": 2}]}, "the last round of halving must keep 1"),
        ({"comparisons": [{"candidate": "c", "baseline": "a", "claimed": {}}]}, "there is no arm 'c'"),
        ({"comparisons": [{"candidate": "b", "baseline": "a"}]}, "lacks 'claimed'"),
        ({"comparisons": [{"candidate": "b", "baseline": "a", "claimed": {"stesp": 2}}]}, "the nearest one is 'steps'"),
        ({"comparisons": [{"candidate": "b", "baseline": "a", "claimed": {"gap": 0}}]}, "must be a number, and not no"),
        (
            {"comparisons": [{"candidate": "b", "baseline": "a", "claimed": {}, "fractions": {"tuned": [1.5]}}]},
            "comparisons: fractions.tuned must list",
        ),
    ],
)
def test_a_wrong_field_gets_one_clear_line(
    changes: dict[str, Any], message: str, write_claim: Callable[..., Path]
) -> None:
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"role": "hero"}, "arm b: role='hero' must be one of"),
        ({"label": None}, "arm b: field 'label' is missing"),
        ({"girds": []}, "arm b has no field 'girds'; the nearest one is 'grid'"),
        ({"grid": ["optim.lr=1"]}, "must be a list of overrides"),
        ({"grid": [["optim.lr=1e-4"], ["optim.lr=2e-4"]]}, "every arm needs a grid of the same size"),
    ],
)
def test_a_wrong_arm_gets_one_clear_line(arm: dict[str, Any], message: str, write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"] |= arm
    with pytest.raises(ClaimError, match=message.replace("[", r"\[")):
        load("twice", "nano", folder=write_claim(arms=arms))


@pytest.mark.parametrize("override", ["global_batch=16", "data=synthetic", "model.block_size=128"])
def test_arms_that_see_other_data_must_say_so(override: str, write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"]["overrides"].append(override)
    key = override.partition("=")[0]
    with pytest.raises(ClaimError, match=rf"arm b has {key}.*; arms must agree in it, or say so: differs: \[{key}"):
        load("twice", "nano", folder=write_claim(arms=arms))
    load("twice", "nano", folder=write_claim(arms=arms, differs=[key]))


def test_an_unknown_key_in_the_last_point_of_a_grid_is_an_error_at_once(write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["a"]["grid"].append(["optim.lrr=1"])
    arms["b"]["grid"].append(["optim.lr=1"])
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.lrr'; the nearest valid one is 'optim\.lr'"):
        load("twice", "nano", folder=write_claim(arms=arms))


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(ClaimError, match=r"odd\.yaml is no YAML"):
        load("odd", "nano", folder=tmp_path)


def test_a_point_of_a_sweep_needs_a_place_on_the_axis(write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"]["grid"] = [["optim=lion"]]
    with pytest.raises(ClaimError, match="must be key=number"):
        load("twice", "nano", folder=write_claim(base="sweep", arms=arms))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"quantity": "best_los"}, "the nearest one is 'best_loss'"),
        ({"against": "c"}, "there is no arm 'c'"),
        ({"claimed": 0.15}, "must be two different numbers"),
    ],
)
def test_a_wrong_expectation_is_found_before_anything_runs(
    row: dict[str, Any], message: str, write_claim: Callable[..., Path]
) -> None:
    expected = {"quantity": "best_loss", "arm": "b", "against": "a", "claimed": 0.05, "no_effect": 0.15}
    with pytest.raises(ClaimError, match=message):
        load("twice", "nano", folder=write_claim(base="sweep", expect=[expected | row]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim._target_=psutil.Popen", "a file may name classes of optim, data, trainer and torch.optim alone"),
        ("optim={_target_: psutil.Popen}", "a file may name classes"),
        ("+optim.x={a: [{_target_: psutil.Popen}]}", "a file may name classes"),
        ("optim._target_=${data.prompt}", "is not looked up for a file"),
        ("data.root=${oc.env:HF_TOKEN}", "is not looked up for a file"),
    ],
)
def test_a_claim_file_runs_nothing_of_its_own_and_looks_nothing_up(
    override: str, message: str, write_claim: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("configs.signatures.imported", lambda target: pytest.fail(f"imports {target}"))
    for place in ("overrides", "paper"):
        arms = deepcopy(ARMS)
        arms["b"][place] = [*arms["b"][place], override]
        with pytest.raises(ClaimError, match=message):
            load("twice", "nano", folder=write_claim(arms=arms))
    with pytest.raises(ClaimError, match=message):
        load("twice", "nano", folder=write_claim(overrides=[override]))


def test_a_claim_file_may_name_torchs_optimizers_and_the_user_any(write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"]["overrides"] = ["optim._target_=torch.optim.RAdam", "~optim.fused"]
    assert load("twice", "nano", folder=write_claim(arms=arms)).arm("b").overrides == tuple(arms["b"]["overrides"])
    own = ["logging.mine._target_=tests.reproduce.conftest.Simulation"]
    with pytest.raises(ConfigError, match="is not a sink"):  # it is looked at, as the user names it
        load("twice", "nano", own, folder=write_claim())


def test_texts_of_a_claim_stay_as_they_are(write_claim: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    secret = "${oc.env:HF_TOKEN}"
    row = {"statement": secret, "finding": "no", "why": "\\${title}"}
    source = {"paper": secret, "url": "u", "sentence": secret, "setting": "${title}"}
    folder = write_claim(title=secret, notes=["${title}"], statements=[row], source=source)
    claim = load("twice", "nano", folder=folder)
    assert (claim.fields.title, claim.fields.notes) == (secret, ["${title}"])
    assert vars(claim.fields.statements[0]) == row
    assert {key: getattr(claim.fields.source, key) for key in source} == source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "must hold a mapping"),
        ("scales: 5", "scales must be a mapping, not 5"),
        ("scales: {nano: 5}", "scales: nano must be a name with a mapping, not 5"),
        ("arms: [1]", "arms must be a mapping"),
        ("scales: {nano: {arms: {a: [1]}}}", "scales.nano.arms: a must be a name with a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "is no YAML"),
    ],
)
def test_a_claim_file_of_another_form_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(ValueError) as caught:
        load("odd", "nano", folder=tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "odd.yaml")) and message in str(caught.value)


def test_an_option_that_the_user_chooses_takes_the_place_of_the_files(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(overrides=["data=pysource", "model=pico", "seed=1"])
    claim = load("twice", "nano", ["data=synthetic", "seed=2"], folder=folder)
    config = composed(claim.common)
    assert (config.data.source["_target_"], config.seed, config.model["n_layer"]) == ("data.Synthetic", 2, 2)
