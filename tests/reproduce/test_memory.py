"""Bytes of state at full size, counted by hand."""

from typing import Any

import pytest

from configs import ConfigError
from report import figures
from reproduce.memory import MemoryClaimError, state_memory

ARMS = {
    "adamw": ["optim=adamw"],
    "adafactor": ["optim=adafactor"],
    "adafactor_without": ["optim=adafactor", "optim.beta1=null"],
    "lion": ["optim=lion"],
    "sophiag": ["optim=sophiag"],
}
# GPT-2 124M by hand: 12 layers of width 768, 1024 positions, 50,257 tokens padded to 50,304, a tied head.
D = 768
MATRICES = [(50304, D), (1024, D), *[(3 * D, D), (D, D), (4 * D, D), (D, 4 * D)] * 12]
VECTORS = [*[D, D, 3 * D, D, D, D, 4 * D, D] * 12, D, D]  # a layer: two norms, and the biases of its four matrices
PARAMETERS = sum(m * n for m, n in MATRICES) + sum(VECTORS)
FACTORED = sum(m + n for m, n in MATRICES) + sum(VECTORS)
BY_HAND = {
    "adamw": 8 * PARAMETERS,
    "adafactor": 4 * (PARAMETERS + FACTORED),
    "adafactor_without": 4 * FACTORED,
    "lion": 4 * PARAMETERS,
    "sophiag": 8 * PARAMETERS,
}


def settings(**changes: Any) -> dict[str, Any]:
    return {"arms": ARMS, "sizes": ["gpt2_small"], "baseline": "adamw", **changes}


def test_state_of_gpt2_124m_is_what_a_count_by_hand_gives() -> None:
    evidence = state_memory(
        settings(claims=[{"arm": arm, "percent_saved": [1, 100]} for arm in ARMS if arm != "adamw"])
    )
    assert PARAMETERS == 124_475_904
    [figure] = evidence.figures
    figures.check(figure)
    per_parameter = {series.name: series.y for series in figure.series}
    assert per_parameter == {arm: [pytest.approx(count / PARAMETERS, rel=1e-12)] for arm, count in BY_HAND.items()}
    for measure in evidence.measures:
        arm = measure.name.removeprefix("state_saved_").removesuffix("_gpt2_small")
        expected = 100 - 100 * BY_HAND[arm] / BY_HAND["adamw"]
        assert [measure.estimate, measure.low, measure.high] == pytest.approx([expected] * 3, abs=1e-9)
    [table] = evidence.tables
    assert table.rows[0] == ["adamw", "995.8 (8.000; 0.0 %)"]
    assert table.rows[1] == ["adafactor", "499.2 (4.010; 49.9 %)"]


@pytest.mark.parametrize(
    ("arm", "claimed", "verdict", "note"),
    [
        ("adafactor", [49.9, 49.9], "reproduced", "claimed: 49.9 %"),  # 49.87, as printed to one decimal
        ("adafactor", [50.0, 50.0], "not reproduced", "claimed: 50.0 %"),
        ("adafactor_without", [84.5, 99.9], "reproduced", "claimed: 84.5 to 99.9 %"),
        ("lion", [34.5, 49.9], "reproduced", "claimed: 34.5 to 49.9 %; more is saved"),
        ("sophiag", [1, 100], "not reproduced", "claimed: 1 to 100 %"),
    ],
)
def test_a_claim_is_judged_to_the_digit_that_its_paper_prints(
    arm: str, claimed: list[float], verdict: str, note: str
) -> None:
    chosen = {name: ARMS[name] for name in ("adamw", arm)}
    [measure] = state_memory(settings(arms=chosen, claims=[{"arm": arm, "percent_saved": claimed}])).measures
    assert (measure.verdict, measure.claimed, measure.note) == (verdict, claimed[0], note)


def test_a_claim_is_about_every_size_unless_it_names_one() -> None:
    chosen = settings(
        arms={"adamw": ["optim=adamw"], "lion": ["optim=lion"]},
        sizes=["nano", "micro"],
        claims=[
            {"arm": "lion", "percent_saved": [50, 50]},
            {"arm": "lion", "percent_saved": [40, 40], "size": "micro"},
        ],
        labels={"lion": "Lion"},
    )
    evidence = state_memory(chosen)
    names = ["state_saved_lion_nano", "state_saved_lion_micro", "state_saved_lion_micro"]
    assert [measure.name for measure in evidence.measures] == names
    assert evidence.measures[0].label == "optimizer state saved against adamw, Lion, nano"
    assert evidence.tables[0].columns == ["optimizer", "nano", "micro"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sices": []}, "there is no setting 'sices'; it has arms, sizes"),
        ({"sizes": []}, "setting 'sizes' is missing or empty"),
        ({"baseline": "adam"}, "baseline='adam' must be an arm: adamw"),
        ({"claims": [{"arm": "lyon", "percent_saved": [1, 2]}]}, "claims: arm='lyon' must be an arm"),
        ({"claims": [{"arm": "lion", "percent_saved": [1, 2], "size": "xl"}]}, "claims: size='xl' must be a size"),
        (
            {"claims": [{"arm": "lion", "percent_saved": [2, 1]}]},
            r"percent_saved=\[2, 1\] of lion must be \[low, high\]",
        ),
        ({"claims": [{"arm": "lion", "percent_saved": 50}]}, "percent_saved=50 of lion must be"),
        ({"claims": [{"arm": "lion"}]}, "percent_saved=None of lion must be"),
        ({"claims": [{"arm": "lion", "percent_saved": [1, "x"]}]}, "must be \\[low, high\\]"),
        ({"claims": [{"arm": ["lion"], "percent_saved": [1, 2]}]}, "must be an arm"),
        ({"claims": [{"arm": "lion", "percent": [1, 2]}]}, "a claim has no 'percent'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MemoryClaimError, match=message):
        state_memory(settings(**changes))


def test_a_misspelt_override_is_refused() -> None:
    with pytest.raises(ConfigError, match="adamv"):
        state_memory(settings(arms={"adamw": ["optim=adamv"]}))


@pytest.mark.parametrize("changes", [{"claims": None}, {"claims": [5]}, {"sizes": 5}, {"sizes": [5]}, {"arms": [1]}])
def test_settings_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=f"memory: {name}=.* must be a "):
        state_memory(settings(**changes))
