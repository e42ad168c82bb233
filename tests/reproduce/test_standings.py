from typing import Any

import pytest

from report.results import Arm, Measure, ProtocolResult, Results, Run, Source
from reproduce.standings import tables

COMMON = ["model=pico", "data=synthetic"]


def run(arm: str, loss: float | None, seed: int, protocol: str = "tuned", purpose: str = "full budget") -> Run:
    status = "diverged" if loss is None else "finished"
    return Run(f"{arm}-{seed}", arm, protocol, purpose, seed, 100, status, [], f"{arm}{seed}", loss, 1.0, 1.0)


def arm(name: str, label: str, role: str, lr: float) -> Arm:
    return Arm(name, label, role, {"tuned": [*COMMON, f"optim={name}", f"optim.lr={lr}"]})


def results(claim: str, arms: list[Arm], runs: list[Run], ratios: dict[str, float], scale: str = "nano") -> Results:
    rows = [Measure("step_time", f"seconds per step, {pair}", "x", ratio) for pair, ratio in ratios.items()]
    protocols = [ProtocolResult("tuned", "", "", "", None, rows)]
    source = Source("P", "", "s", "s")
    end: Any = ("2026-01-01", "c", source, [], "r", "undecided", "s", protocols)
    return Results(claim, "t", scale, *end, arms=arms, runs=runs)


ADAMW, LION = arm("adamw", "AdamW", "baseline", 4e-3), arm("lion", "Lion", "candidate", 5e-4)


def test_the_best_stands_first_with_its_mean_sd_rate_state_and_step_time() -> None:
    runs = [run("adamw", loss, n) for n, loss in enumerate([3.0, 3.2, 3.1])]
    runs += [run("lion", loss, n) for n, loss in enumerate([2.9, 2.9, None])] + [run("lion", 1.0, 9, purpose="tuning")]
    (table,) = tables([results("one", [ADAMW, LION], runs, {"Lion against AdamW": 1.25})])
    assert table.title == "Optimizers at nano, all tuned by the same rule"
    assert table.rows == [
        ["Lion", "2.9000", "0.0000", "2, 1 diverged", "0.0005", "4.00", "1.25×", "one"],
        ["AdamW", "3.1000", "0.1000", "3", "0.004", "8.00", "1.00×", "one"],
    ]


def test_an_optimizer_of_several_claims_has_one_row_of_the_claim_that_timed_it() -> None:
    def both(claim: str, ratios: dict[str, float], scale: str = "nano") -> Results:
        return results(claim, [ADAMW, LION], [run("adamw", 3.0, 1), run("lion", 2.9, 1)], ratios, scale)

    (table,) = tables([both("one", {}), both("two", {"Lion beside AdamW": 1.5})])
    assert [(row[0], row[-2], row[-1]) for row in table.rows] == [("Lion", "1.50×", "two"), ("AdamW", "1.00×", "one")]
    assert len(tables([both("one", {}), both("two", {}, "micro")])) == 2


def test_of_several_results_of_an_optimizer_the_best_has_its_place_in_the_order() -> None:
    sgd, runs = arm("sgd", "SGD", "other", 0.3), [run("adamw", 3.0, 1), run("sgd", 3.1, 1)]
    first = results("one", [ADAMW, sgd], runs, {})
    second = results("two", [ADAMW], [run("adamw", 3.2, 1)], {})
    (table,) = tables([first, second])
    assert [row[:2] for row in table.rows] == [["AdamW", "3.0000"], ["SGD", "3.1000"]]


def test_step_times_are_over_adamws_though_they_were_measured_beside_another_arm() -> None:
    sgd = arm("sgd", "SGD", "other", 0.3)
    runs = [run("adamw", 3.0, 1), run("lion", 2.9, 1), run("sgd", 4.0, 1)]
    ratios = {"Lion against AdamW": 1.5, "Lion against SGD": 3.0}
    (table,) = tables([results("one", [ADAMW, LION, sgd], runs, ratios)])
    assert [row[-2] for row in table.rows] == ["1.50×", "1.00×", "0.50×"]


@pytest.mark.parametrize("change", ["of another label", "in several protocols", "all diverged"])
def test_arms_that_are_not_compared_as_tuned_have_no_row(change: str) -> None:
    lion = arm("lion", "Lion, untuned" if change == "of another label" else "Lion", "candidate", 5e-4)
    runs = [run("adamw", 3.0, 1), run("lion", None if change == "all diverged" else 2.9, 1)]
    runs += [run("lion", 2.8, 1, protocol="large")] * (change == "in several protocols")
    sgd = [arm("sgd", "SGD", "other", 0.3)]
    (table,) = tables([results("one", [ADAMW, lion, *sgd], [*runs, run("sgd", 4.0, 1)], {})])
    assert [row[0] for row in table.rows] == ["AdamW", "SGD"]
