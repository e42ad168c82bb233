import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError
from files.reading import read_yaml
from reproduce import claims
from reproduce.claims import load
from reproduce.composed import composed
from reproduce.mistakes import ClaimError

RATE = {"rate": {"sets": ["optim.lr={}"], "start": 1e-3}}
ARMS: dict[str, Any] = {
    "a": {"label": "A", "role": "baseline", "overrides": ["optim=adamw"], "axes": RATE},
    "b": {"label": "B", "role": "candidate", "overrides": ["optim=lion"], "axes": RATE},
}
for arm in ARMS.values():
    arm["paper"] = ["optim.lr=3e-4"]
SHIPPED = [(name, scale) for name in claims.names() for scale in claims.scales(name)]


@pytest.mark.slow  # composes every point of every arm
@pytest.mark.parametrize("name", claims.names())
def test_every_shipped_claim_loads_and_has_its_source_contrary_evidence_and_rule(name: str) -> None:
    claim = load(name, "nano")
    fields = claim.fields
    assert fields.source.statement and fields.source.unverified and fields.contrary and fields.rule


def test_every_shipped_claim_has_the_scale_that_needs_no_gpu() -> None:
    assert {name for name, scale in SHIPPED if scale == "nano"} == set(claims.names())


def test_the_template_is_whole_and_no_claim_of_the_projects() -> None:
    claim = load("_template", "nano")
    assert [arm.role for arm in claim.arms] == ["baseline", "candidate", "other"]
    assert "_template" not in claims.names()


def test_a_scale_replaces_fields_and_an_arms_fields(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(scales={"nano": {"budget": 8, "warmup_steps": 1, "arms": {"a": {"paper": ["optim.lr=9e-3"]}}}})
    claim = load("twice", "nano", ["grad_clip=2"], folder=folder)
    assert (claim.fields.budget, claim.arm("a").paper, claim.arm("b").paper) == (
        8,
        ("optim.lr=9e-3",),
        ("optim.lr=5e-4",),
    )
    assert claim.common == ("grad_clip=2",)


def test_what_claims_have_in_common_at_a_scale_comes_before_their_own(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(overrides=["seed=2"], budget=320, scales={"nano": {"overrides": ["seed=3"]}, "small": {}})
    scale = folder.parent / "scale" / "nano.yaml"
    scale.write_text(scale.read_text() + "overrides: [model=pico, seed=1]\n")
    claim = load("twice", "nano", ["seed=4"], folder=folder)
    assert claim.common == ("model=pico", "seed=1", "seed=2", "seed=3", "seed=4")
    assert (claim.fields.budget, claim.fields.warmup_steps) == (320, 8)  # the claim's, the scale's


def test_a_claim_that_trains_nothing_takes_nothing_of_a_scales_file(write_claim: Callable[..., Path]) -> None:
    claim = load("twice", "nano", folder=write_claim(base="memory"))
    assert (claim.common, hasattr(claim.fields, "budget")) == ((), False)


def test_more_seeds_continue_the_files_and_avoid_tunings(write_claim: Callable[..., Path]) -> None:
    folder = write_claim(seeds=[5, 6])
    assert load("twice", "nano", folder=folder, n_seeds=4).fields.seeds == [5, 6, 9, 10]  # 7 and 8 are tuning's
    assert load("twice", "nano", folder=folder, n_seeds=1).fields.seeds == [5]


def test_an_unknown_claim_or_scale_lists_those_there_are(write_claim: Callable[..., Path]) -> None:
    folder = write_claim()
    with pytest.raises(ClaimError, match=r"there is no claim 'twise'; the nearest one is 'twice' \(all: twice\)"):
        load("twise", "nano", folder=folder)
    with pytest.raises(ClaimError, match=r"no scale 'nanno'; the nearest one is 'nano' \(all: nano, small\)"):
        load("twice", "nanno", folder=folder)


@pytest.mark.parametrize("field", ["title", "source", "contrary", "rule", "arms", "overrides", "comparisons"])
def test_a_missing_field_is_named_with_its_file(field: str, write_claim: Callable[..., Path]) -> None:
    with pytest.raises(ClaimError, match=rf"twice\.yaml, scale nano: field '{field}' .*is missing"):
        load("twice", "nano", folder=write_claim(**{field: None}))


@pytest.mark.parametrize(
    "field", ["budget", "warmup_steps", "fractions", "seeds", "tuning_seeds", "tuned_axes", "worse_by", "evaluations"]
)
def test_a_scale_without_what_runs_and_checks_need_is_refused(field: str, write_claim: Callable[..., Path]) -> None:
    folder = write_claim()
    scale = folder.parent / "scale" / "nano.yaml"
    scale.write_text("\n".join(line for line in _lines(scale) if not line.startswith(f"{field}:")))
    with pytest.raises(ClaimError, match=rf"twice\.yaml, scale nano: field '{field}' is missing"):
        load("twice", "nano", folder=folder)


def _lines(path: Path) -> list[str]:
    """Of a mapping that holds lists in one line each."""
    return [f"{key}: {value}" for key, value in (read_yaml(path) or {}).items()]


EVIDENCE = {
    "label": "theirs",
    "source": "arXiv:1",
    "tag": "printed",
    "setting": "130M",
    "quantity": "speed-up in steps",
    "value": 1.4,
    "arm": "b",
}


TWICE: dict[str, Any] = {"claims": {"steps": {"claimed": 2, "least": 1.75}}}


def _arm_a(**changes: Any) -> dict[str, Any]:
    return {"arms": {**ARMS, "a": {**ARMS["a"], **changes}}}


def _compared(**changes: Any) -> dict[str, Any]:
    """A claim's field with one comparison."""
    return {"comparisons": [{"candidate": "b", "baseline": "a", **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "speedup"}, "kind='speedup' does not exist; the nearest one is 'speed_up'"),
        ({"buget": 3}, "has no field 'buget'; the nearest one is 'budget'"),
        ({"contrary": "none"}, "field 'contrary' must be a list of texts"),
        ({"source": {"paper": "P", "statement": "S", "setting": "s"}}, "source.url is missing"),
        ({"seeds": [1, 7]}, "tuning_seeds=[7, 8] has 7, a seed of the comparison, [1, 7]"),
        ({"tuning_seeds": []}, "tuning_seeds=[] must be different counts"),
        ({"seeds": [1, 1]}, "must be different counts"),
        ({"seeds": [[1]]}, "seeds[0]=[1] must be a whole number"),
        ({"protocols": [{}]}, "protocols[0]={} must be a text"),
        ({"overrides": [["optim.lr=1"]]}, "overrides[0]=['optim.lr=1'] must be a text"),
        ({"fractions": [[0.5]]}, "fractions[0]=[0.5] must be a number"),
        ({"shows": ["win_rate"]}, "shows: 'win_rate' is no diagnostic of an optimizer; its name begins with optim/"),
        ({"warmup_steps": 0}, "warmup_steps=0 must be >= 1"),
        ({"tuned_axes": 0}, "tuned_axes=0 must be >= 1"),
        ({"worse_by": -1}, "worse_by=-1.0 must be >= 0"),
        ({"worse_by": "${budget}"}, "worse_by=${budget} must be a number"),
        ({"comparisons": "???"}, "comparisons=??? must be a list of mappings with candidate, baseline"),
        ({"protocols": ["papr"]}, "protocol 'papr' does not exist; the nearest one is 'paper'"),
        ({"protocols": []}, "field 'protocols' must name one or more of paper, tuned"),
        ({"comparisons": []}, "comparisons must list one or more rows"),
        ({"protocols": ["paper"], "paper_schedule": None}, "field 'paper_schedule' is missing"),
        ({"fractions": [0.5, 0.75, 1.0]}, "must be four or more lengths in (0, 1], 0.5 and 1 among them"),
        ({"fractions": [0.25, 0.5, 0.75, 0.875]}, "must be four or more lengths"),
        ({"fractions": [0.25, 0.625, 0.75, 1.0]}, "must be four or more lengths"),
        ({"fractions": [0.0, 0.5, 0.75, 1.0]}, "must be four or more lengths"),
        ({"fractions": [0.25, 0.5, 1.0, 1.5]}, "must be four or more lengths"),
        ({"fractions": []}, "must be four or more lengths"),
        ({"fractions": [0.25, 0.5, 0.7, 1.0]}, "fractions: 0.7 of budget=160 is no multiple of 20 steps"),
        ({"evaluations": 3}, "fractions: 0.25 of budget=160 is no multiple of 54 steps"),
        (_compared(candidate="c"), "there is no arm 'c'"),
        (_compared(claims={"stesp": {"claimed": 2, "least": 1.75}}), "there is no rule for a part in 'stesp'; the"),
        (
            _compared(claims={"memory": {"claimed": 2, "least": 1.75}}),
            "no rule for a part in 'memory'; there are steps",
        ),
        (_compared(claims={"steps": {"claimed": 2}}), "comparisons[0].claims.steps.least is missing"),
        (_compared(claims={"steps": {"claimed": 1, "least": 1}}), "steps: claimed=1 and no_effect=1 must be two"),
        (_compared(claims={"steps": {"claimed": 2, "least": 0.5}}), "steps: least=0.5 must lie between no_effect=1"),
        (_compared(claims={"steps": {"claimed": 2, "least": 2.5}}), "steps: least=2.5 must lie between no_effect=1"),
        (_compared(claims={"steps": {"claimed": 2, "least": 1}}), "steps: least=1 must lie between no_effect=1"),
        (_compared(claims={"steps": {"claimed": -2, "least": -1}}), "must be ratios above 0"),
        (_compared(half_budget={"claimed": 0, "least": 0}), "half_budget: claimed=0 and no_effect=0 must be two"),
        (
            _compared(claims={"steps": {"claimed": 2, "least": 1.2}}),
            "least=1.2 must lie beyond 1.414, the middle",
        ),
        (_compared(claims={}), "comparisons: no row has claims, so that the protocol 'tuned' would judge nothing"),
        (_compared(candidate="a", **TWICE), "comparisons: a is compared with itself"),
        ({"rule": " "}, "field 'rule' is empty"),
        (_arm_a(overrides=["optim=adamw", "eval_sequences=7"]), "has eval_sequences=128, arm a has 7; arms must agree"),
        (_arm_a(overrides=["optim=adamw", "max_steps=7"]), "arm a: max_steps=7: max_steps is the same for all arms"),
        (_arm_a(overrides=["optim=adamw", "schedule=cosine"]), "arm a: schedule=cosine: schedule is the same for all"),
        (_arm_a(usual=["start_from=runs/mine"]), "arm a: start_from=runs/mine: start_from is the same for all arms"),
        (
            _arm_a(axes={name: {"sets": ["optim.lr={}"], "start": 1e-3} for name in ("rate", "speed")}),
            "arm a: axes: optim.lr is set twice",
        ),
        ({"evidence": [EVIDENCE | {"source": " "}]}, "evidence[0] (theirs) has no source; say where it stands"),
        ({"evidence": [EVIDENCE | {"tag": "hearsay"}]}, "evidence[0] (theirs): tag='hearsay' must be one of printed,"),
        ({"evidence": [EVIDENCE | {"source": None}]}, "evidence[0].source"),
        ({"evidence": [{k: v for k, v in EVIDENCE.items() if k != "source"}]}, "evidence[0] lacks 'source'"),
        ({"evidence": [EVIDENCE | {"arm": "c"}]}, "evidence[0] (theirs): there is no arm 'c'"),
        ({"evidence": [EVIDENCE | {"value": "twice"}]}, "evidence[0].value=twice must be a number"),
    ],
)
def test_a_wrong_field_gets_one_clear_line(
    changes: dict[str, Any], message: str, write_claim: Callable[..., Path]
) -> None:
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_mistakes_of_a_file_are_said_at_once_a_line_each(write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["a"]["usual"] = ["optim.lrr=1"]
    arms["b"]["axes"] = {"rate": {"sets": ["optim.lr=1"], "start": 1e-3}}
    arms["d"] = {"role": "hero", "overrides": []}
    compared = {"candidate": "c", "baseline": "a", "claims": {"stesp": {"claimed": 2, "least": 1.75}}}
    half = {"candidate": "b", "claims": {"steps": {"claimed": 2}}}
    changes = {
        "title": None,
        "contrary": "none",
        "buget": 3,
        "warmup_steps": 0,
        "protocols": ["papr"],
        "comparisons": [compared, half],
        "evidence": [EVIDENCE | {"source": " "}, EVIDENCE | {"arm": "c", "value": "twice"}],
        "arms": arms,
        "scales": {"nano": {"arms": {"e": {}}}},
    }
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(**changes))
    wanted = [
        "a scale changes the arm 'e', which `arms` does not have",
        "has no field 'buget'; the nearest one is 'budget'",
        "field 'contrary' must be a list of texts, not none",
        "comparisons[1].claims.steps.least is missing",
        "comparisons[1] lacks 'baseline'",
        "evidence[1].value=twice must be a number",
        "field 'title' is missing",
        "warmup_steps=0 must be >= 1",
        "evidence[0] (theirs) has no source",
        "evidence[1] (theirs): there is no arm 'c'",
        "arm d: role='hero' must be one of",
        "arm d: field 'label' is missing",
        "arm b: axes.rate.sets=['optim.lr=1'] must list overrides",
        "protocol 'papr' does not exist",
        "comparisons: there is no arm 'c'",
        "comparisons: c against a: there is no rule for a part in 'stesp'",
        "arm a: unknown key 'optim.lrr'",
    ]
    for line in error.value.args:
        assert "twice.yaml, scale nano: " in line and "\n" not in line
    assert all(any(each in line for line in error.value.args) for each in wanted), str(error.value)
    assert len(error.value.args) == len(wanted), str(error.value)


def test_every_override_of_an_arm_that_is_wrong_is_said(write_claim: Callable[..., Path]) -> None:
    overrides = ["optim=lion", "optim.nestrov=true", "optim.mometum=0.9", "modl=pico"]
    arms = {**ARMS, "a": {**ARMS["a"], "role": "other"}, "b": {**ARMS["b"], "overrides": overrides}}
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(arms=arms))
    wanted = ["no arm has role baseline", "'optim.nestrov'", "'optim.mometum'", "'modl'"]
    assert all(any(each in line for line in error.value.args) for each in wanted), error.value
    assert all("twice.yaml, scale nano: " in line for line in error.value.args)


def test_every_override_that_no_arm_may_have_is_said(write_claim: Callable[..., Path]) -> None:
    own = ["optim=adamw", "max_steps=7", "start_from=runs/mine"]
    arms = {name: {**each, "overrides": own} for name, each in ARMS.items()}
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(arms=arms))
    for wanted in (f"arm {name}: {each}: " for name in ARMS for each in own[1:]):
        assert any(wanted in line for line in error.value.args), wanted


def test_a_misspelt_scale_hides_no_other_mistake(write_claim: Callable[..., Path]) -> None:
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(buget=3, scales={"nanoo": {"stpes": 2}, "gpu": {}}))
    first, *others = error.value.args
    assert first == "claim twice has no scale 'nano'; the nearest one is 'nanoo' (all: nanoo, gpu)"
    assert [re.findall("has no field '(.*?)'", line) for line in others] == [["buget"], ["stpes"]]


def test_a_scale_that_a_claim_does_not_have_is_all_that_is_said_of_it(write_claim: Callable[..., Path]) -> None:
    for scale in ("micro", "nanoo"):
        with pytest.raises(ClaimError, match=f"has no scale '{scale}'") as error:
            load("twice", scale, folder=write_claim(buget=3))
        assert len(error.value.args) == 1


def _expected(arm: str) -> dict[str, Any]:
    return {"quantity": "best_loss", "arm": arm, "against": "a", "claimed": 0.05, "no_effect": 0.15}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"base": "sweep", "expect": [_expected("c"), _expected("d")], "seeds": [1, 1]}
            | {"sweep": {"label": "rate", "axis": "rat", "values": [1.0]}},
            [
                "seeds=[1, 1]",
                "expect: there is no arm 'c'",
                "expect: there is no arm 'd'",
                "sweep.values=[1.0]",
                "sweep.axis: arm a",
                "sweep.axis: arm b",
            ],
        ),
        (
            {"base": "memory"}
            | {"settings": {"sizes": [], "claims": [{"arm": "c", "percent_saved": [1]}, {"arm": "a", "size": "x"}]}},
            [
                "settings.claims[1] lacks 'percent_saved'",
                "settings: sizes is empty",
                "settings: claims: there is no arm",
                "settings: claims: percent_saved=[1.0]",
                "settings: claims: size='x'",
            ],
        ),
        (
            {"base": "memory", "kind": "toy", "settings": {"dimensions": 1, "tolerance": 2}, "contrary": 5},
            ["settings: dimensions=1", "settings: tolerance=2", "field 'contrary'"],
        ),
    ],
)
def test_what_a_kind_asks_for_is_said_at_once_too(
    changes: dict[str, Any], wanted: list[str], write_claim: Callable[..., Path]
) -> None:
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", folder=write_claim(**changes))
    said = [line.partition("scale nano: ")[2] for line in error.value.args]
    for each in wanted:
        assert any(line.startswith(each) for line in said), (each, said)
    assert len(said) == len(wanted), said


def test_a_mistake_of_the_users_is_said_once_for_all_arms(write_claim: Callable[..., Path]) -> None:
    with pytest.raises(ClaimError) as error:
        load("twice", "nano", ["grad_clipp=1"], folder=write_claim())
    (line,) = error.value.args
    assert line.startswith("unknown key 'grad_clipp'")


def test_a_form_that_is_wrong_is_said_of_all_scales_and_arms(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("scales: {nano: 5, small: {}}\narms: {a: [1], b: {}, c: 2}\n")
    with pytest.raises(ClaimError) as error:
        load("odd", "nano", folder=tmp_path)
    assert [line.partition("yaml: ")[2].partition(" must")[0] for line in error.value.args] == [
        "scales: nano",
        "arms: a",
        "arms: c",
    ]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"role": "hero"}, "arm b: role='hero' must be one of"),
        ({"label": None}, "arm b: field 'label' is missing"),
        ({"axs": {}}, "arm b has no field 'axs'; the nearest one is 'axes'"),
        ({"usual": "optim.lr=1"}, "field 'usual' must be a list of texts"),
        ({"axes": {"rate": {"sets": ["optim.lr={}"]}}}, "axes.rate.start is missing"),
        ({"axes": {"rate": {"sets": ["optim.lr={}"], "start": 0}}}, "axes.rate.start=0.0 must be > 0"),
        ({"axes": {"rate": {"sets": ["optim.lr=1"], "start": 1}}}, "axes.rate.sets=['optim.lr=1'] must list overrides"),
        ({"axes": {"rate": {"sets": [], "start": 1}}}, "axes.rate.sets=[] must list overrides"),
        (
            {"axes": {"beta": {"sets": ["optim.lr={}"], "start": 1, "complement": True}}},
            "axes.beta.start=1 must be < 1, as complement is true",
        ),
        ({"of": "adamww"}, "arm b: of='adamww' is no file of"),
        ({"paper": []}, "arm b: field 'paper' is missing"),
    ],
)
def test_a_wrong_arm_gets_one_clear_line(arm: dict[str, Any], message: str, write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"] |= arm
    with pytest.raises(ClaimError, match=re.escape(message)):
        load("twice", "nano", folder=write_claim(arms=arms, protocols=["paper"]))


@pytest.mark.parametrize("less", [{"axes": {}}, {"fixed": ["optim.lr=1"]}, {"axes": RATE}])
def test_arms_that_are_tuned_unequally_are_refused_unless_the_claim_says_why(
    less: dict[str, Any], write_claim: Callable[..., Path]
) -> None:
    arms = deepcopy(ARMS)
    arms["a"]["axes"]["decay"] = {"sets": ["optim.weight_decay={}"], "start": 0.1}
    arms["b"] |= less
    with pytest.raises(ClaimError, match="arms tuned unequally: b has . axes to tune, another arm 3; give every arm"):
        load("twice", "nano", folder=write_claim(arms=arms))
    load("twice", "nano", folder=write_claim(arms=arms, unequal="the claim is about untuned optimizers"))
    if less.get("axes"):  # the rate and warm-up are all that is tuned of either
        load("twice", "nano", folder=write_claim(arms=arms, tuned_axes=2))


def test_a_claim_whose_arms_are_all_fixed_is_refused(write_claim: Callable[..., Path]) -> None:
    arms = {name: {**arm, "fixed": ["optim.lr=1"]} for name, arm in ARMS.items()}
    with pytest.raises(ClaimError, match="no arm has axes to tune"):
        load("twice", "nano", folder=write_claim(arms=arms, unequal="none"))


@pytest.mark.parametrize("override", ["global_batch=16", "data=synthetic", "model.block_size=128"])
def test_arms_that_see_other_data_must_say_so(override: str, write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"]["overrides"].append(override)
    key = override.partition("=")[0]
    with pytest.raises(ClaimError, match=rf"arm b has {key}.*; arms must agree in it, or say so: differs: \[{key}"):
        load("twice", "nano", folder=write_claim(arms=arms))
    load("twice", "nano", folder=write_claim(arms=arms, differs=[key]))


@pytest.mark.parametrize("field", ["paper", "usual", "axes"])
def test_an_unknown_key_in_any_point_of_an_arm_is_an_error_at_once(
    field: str, write_claim: Callable[..., Path]
) -> None:
    arms = deepcopy(ARMS)
    wrong = {"rate": {"sets": ["optim.lrr={}"], "start": 1}}
    arms["b"][field] = wrong if field == "axes" else ["optim.lrr=1"]
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.lrr'; the nearest valid one is 'optim\.lr'"):
        load("twice", "nano", folder=write_claim(arms=arms))


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(ClaimError, match=r"odd\.yaml is no YAML"):
        load("odd", "nano", folder=tmp_path)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"axis": "rat"}, "sweep.axis: arm a has none; the nearest one is 'rate'"),
        ({"axis": ""}, "sweep: give one of axis and sets"),
        ({"sets": {"a": ["grad_clip={}"], "b": ["grad_clip={}"]}}, "sweep: give one of axis and sets"),
        ({"axis": "", "sets": {"a": ["grad_clip={}"]}}, "sweep.sets.b must list overrides with {}"),
        ({"axis": "", "sets": {"a": ["grad_clip={}"], "b": ["seed=1"]}}, "sweep.sets.b must list overrides with {}"),
        ({"values": [1.0]}, "sweep.values=[1.0] must be two or more different numbers above 0"),
        ({"values": [0.0, 1.0]}, "must be two or more different numbers above 0"),
        ({"near": 0}, "sweep.near=0.0 must be > 0"),
        ({"valus": [1]}, "sweep has no field 'valus'; the nearest one is 'values'"),
    ],
)
def test_a_wrong_sweep_is_found_before_anything_runs(
    over: dict[str, Any], message: str, write_claim: Callable[..., Path]
) -> None:
    sweep = {"label": "rate", "axis": "rate", "values": [0.5, 1.0, 2.0]}
    with pytest.raises(ClaimError, match=re.escape(message)):
        load("twice", "nano", folder=write_claim(base="sweep", sweep=sweep | over))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"quantity": "best_los"}, "the nearest one is 'best_loss'"),
        ({"against": "c"}, "there is no arm 'c'"),
        ({"claimed": 0.15}, "must be two different numbers"),
        ({"least": 0.2}, "least=0.2 must lie between no_effect=0.15 and claimed=0.05"),
        ({"quantity": "optim/win_rate"}, "quantity='optim/win_rate' is unknown"),  # `shows` does not list it
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
    for place in ("overrides", "paper", "usual"):
        arms = deepcopy(ARMS)
        arms["b"][place] = [*arms["b"].get(place, []), override]
        with pytest.raises(ClaimError, match=message):
            load("twice", "nano", folder=write_claim(arms=arms))
    with pytest.raises(ClaimError, match=message):
        load("twice", "nano", folder=write_claim(overrides=[override]))


def test_a_claim_file_may_name_torchs_optimizers_and_the_user_any(write_claim: Callable[..., Path]) -> None:
    arms = deepcopy(ARMS)
    arms["b"] |= {"overrides": ["optim._target_=torch.optim.RAdam", "~optim.fused"], "paper": []}
    assert load("twice", "nano", folder=write_claim(arms=arms)).arm("b").overrides == tuple(arms["b"]["overrides"])
    own = ["logging.mine._target_=tests.reproduce.conftest.Simulation"]
    with pytest.raises(ConfigError, match="is not a sink"):  # it is looked at, as the user names it
        load("twice", "nano", own, folder=write_claim())


def test_texts_of_a_claim_stay_as_they_are(write_claim: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    secret = "${oc.env:HF_TOKEN}"
    row = {"statement": secret, "finding": "no", "why": "\\${title}"}
    source = {"paper": secret, "url": "u", "statement": secret, "setting": "${title}"}
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


@pytest.mark.parametrize(("chosen", "left"), [("data=synthetic", "data."), ("model=nano", "model.")])
def test_who_chooses_an_option_leaves_the_scales_settings_of_its_group(chosen: str, left: str) -> None:
    claim = load("soap_40_35", "nano", [chosen])
    assert not any(each.startswith(left) for each in claim.common) and claim.common[-1] == chosen
    assert any(each.startswith(left) for each in load("soap_40_35", "nano").common)
