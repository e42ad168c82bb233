"""The shipped claims: what others measured is a fact with its source, and every part of a claim has a rule."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit  # type: ignore[import-untyped]  # scipy ships no types

from files.reading import read_yaml
from inference.intervals import Interval
from inference.verdicts import NO_EFFECT, REPRODUCED, WEAKER, verdict
from report.results import Published
from reproduce import claims
from reproduce.claim import Claim
from reproduce.fields import typed
from reproduce.signs import WHY
from reproduce.speed_ups import IN_STEPS

TAGS = ("printed", "authors' files", "thread", "computed", "unverified")
# min_loss of experiments/optimizer_sweep/Analysis/Results/<optimizer>/<size>/<times>/result.json
# in marin-community/marin: AdamW's at 1, 2, 4 and 8 times Chinchilla, those of others by size and times.
ADAMW = {
    "130M": (3.52914, 3.40779, 3.32166, 3.26056),
    "300M": (3.26294, 3.16354, 3.09431, 3.04227),
    "520M": (3.10413, 3.02318, 2.95847, 2.91276),
}
OTHERS = {
    ("soap_40_35", "soap"): {("130M", 8): 3.23743, ("300M", 8): 3.03016, ("520M", 8): 2.89886},
    ("lion_comparable", "lion"): {("130M", 8): 3.25081, ("300M", 8): 3.04288, ("520M", 8): 2.91473},
    ("sophia_2x", "sophiah"): {
        ("130M", 1): 3.544,
        ("130M", 2): 3.414,
        ("130M", 4): 3.328,
        ("130M", 8): 3.25896,
        ("300M", 1): 3.26739,
        ("520M", 1): 3.10546,
    },
}
STEPS = {"adamw": 5625, "shampoo": 4100, "soap": 3125, "lion": 12250, "muon": 3250}  # of track 3 to 3.28
TUNED_ADAMW = 4950


CONTENTS: list[tuple[str, dict[str, Any]]] = [
    (name, read_yaml(claims.FOLDER / f"{name}.yaml") or {}) for name in claims.names()
]


def evidence(name: str) -> list[Published]:
    content = read_yaml(claims.FOLDER / f"{name}.yaml") or {}
    return [typed(Published, each, name, at="evidence") for each in content.get("evidence", [])]


CITED = [(name, each) for name in claims.names() for each in evidence(name)]


@pytest.mark.parametrize(("name", "each"), CITED, ids=lambda each: each if isinstance(each, str) else each.label)
def test_a_published_number_has_a_source_a_setting_a_unit_and_how_it_is_known(name: str, each: Published) -> None:
    assert each.source.strip() and each.setting.strip() and each.unit
    assert each.tag in TAGS
    assert math.isfinite(each.value) and (each.unit != "x" or each.value > 0)
    assert each.quantity != IN_STEPS or each.parameters, "it is drawn beside ours by the size of its model"


def fitted(size: str) -> tuple[float, float, float]:
    """a, B and b of a D^-B + b, through AdamW's losses, as Wen et al. fit it."""
    tokens, losses = np.array([1.0, 2.0, 4.0, 8.0]), np.array(ADAMW[size])
    start = [losses[0] - losses[-1], 0.5, losses[-1]]
    found, _ = curve_fit(lambda d, a, b, c: a * d**-b + c, tokens, losses, p0=start, maxfev=10_000)
    return tuple(map(float, found))  # type: ignore[return-value]  # three of them


@pytest.mark.parametrize(("claim", "arm"), OTHERS)
def test_speed_ups_of_wen_et_al_are_what_their_formula_gives_of_their_losses(claim: str, arm: str) -> None:
    cited = {each.label: each.value for each in evidence(claim) if each.label.startswith("Wen") and each.arm == arm}
    computed = {}
    for (size, times), loss in OTHERS[claim, arm].items():
        a, power, floor = fitted(size)
        computed[f"Wen et al. 2025, {size}, {times}x Chinchilla"] = ((loss - floor) / a) ** (-1 / power) / times
    assert cited == pytest.approx(computed, abs=0.006)  # two decimals are cited


def test_speed_ups_of_track_3_are_ratios_of_its_steps() -> None:
    cited = {each.arm: each.value for _, each in CITED if each.label.startswith("modded-nanogpt track 3")}
    ratios = {arm: TUNED_ADAMW / steps for arm, steps in STEPS.items()}
    assert cited == pytest.approx(ratios | {"adamw": STEPS["adamw"] / TUNED_ADAMW}, abs=0.006)


@pytest.mark.parametrize(("name", "content"), CONTENTS, ids=lambda each: each if isinstance(each, str) else "")
def test_a_claim_with_published_speed_ups_says_why_ours_may_differ(name: str, content: dict[str, Any]) -> None:
    cited = [each for each in content.get("evidence", []) if each["quantity"] == IN_STEPS]
    reasons = [note for note in content.get("notes", []) if note.startswith(WHY)]
    assert len(reasons) == bool(cited)


@pytest.mark.parametrize(("name", "content"), CONTENTS, ids=lambda each: each if isinstance(each, str) else "")
def test_a_claim_is_in_our_words_and_says_whose_its_thresholds_are(name: str, content: dict[str, Any]) -> None:
    assert '"' not in content["source"]["statement"], "a statement is no quotation"
    of_the_paper = {"soap_40_35", "adamw_tuning_2x", "adapprox_memory", "muon_2x", "smmf_96"}
    assert name in of_the_paper or "ours" in content["rule"]


PARTS = {
    "sophia_2x": {("sophiag", "adamw"): {"steps", "flops", "seconds"}},
    "soap_40_35": {("soap", "adamw"): {"steps", "seconds"}, ("soap", "shampoo"): {"steps", "seconds"}},
    "lion_comparable": {("lion", "adamw"): {"steps"}},
    "adamw_tuning_2x": {("adamw", "recipe"): {"steps"}},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_a_claim_of_speed_has_a_rule_that_can_confirm_and_refute_it(name: str) -> None:
    claim: Claim[Any] = claims.load(name, "nano")
    rows = {(row.candidate, row.baseline): row.claims for row in claim.fields.comparisons if row.claims}
    assert {pair: set(parts) for pair, parts in rows.items()} == PARTS[name]
    for part in (part for parts in rows.values() for part in parts.values()):
        none = part.no_effect or 1.0
        for value, expected in ((part.claimed, REPRODUCED), (part.least, REPRODUCED), (none, NO_EFFECT)):
            assert judged(value, part.claimed, part.least, none) == expected


def judged(value: float, claimed: float, least: float, no_effect: float) -> str:
    """The verdict on a speed-up that is known exactly."""
    exact = Interval(value, value, value)
    return verdict(exact, claimed=claimed, least=least, no_effect=no_effect, log_scale=True)


def test_lion_is_comparable_where_wen_et_al_find_it_and_not_where_track_3_does() -> None:
    (row,) = claims.load("lion_comparable", "nano").fields.comparisons
    rule = row.claims["steps"]
    verdicts = {
        each.value: judged(each.value, rule.claimed, rule.least, rule.no_effect) for each in evidence("lion_comparable")
    }
    assert verdicts == {1.15: REPRODUCED, 1.0: REPRODUCED, 0.96: REPRODUCED, 0.4: NO_EFFECT}
    assert judged(0.83, rule.claimed, rule.least, rule.no_effect) == WEAKER
    assert judged(0.75, rule.claimed, rule.least, rule.no_effect) == NO_EFFECT


def test_tuning_the_rate_alone_leaves_all_else_at_the_recipe() -> None:
    claim: Claim[Any] = claims.load("adamw_tuning_2x", "nano")
    recipe, tuned = claim.arm("recipe"), claim.arm("adamw")
    rest = {axis.name: axis.overrides(axis.start) for axis in tuned.axes[1:]}
    assert claim.fields.tuned_axes == 1 and tuned.axes[0].name == "rate"
    assert {*rest["weight decay"], *rest["beta2"]} == {each for each in recipe.fixed if "optim.lr" not in each}
    assert not recipe.axes and not recipe.usual
