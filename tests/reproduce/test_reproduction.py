import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from inference.intervals import Interval
from report.numbers import estimate
from report.results import Results, ResultsError, read
from reproduce import forecast, protocols, reproduction
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.records import Ratios, RecordsError
from reproduce.reproduction import ReproductionError, RunsFailedError

ROOT = Path(__file__).parents[2]
SAME = {("b", "a"): Interval(1.25, 1.2, 1.3)}


@pytest.fixture
def claim(write_claim: Callable[..., Path]) -> Claim:
    return load("twice", "nano", folder=write_claim())


def reproduce(claim: Claim, folder: Path, run: Any, ratios: Ratios = SAME) -> Results:
    return reproduction.reproduce(claim, folder, "again", run=run, time_arms=lambda claim: ratios)


def numbers(results: Results, protocol: str) -> dict[str, Any]:
    (found,) = [each for each in results.protocols if each.name == protocol]
    return {row.name: row for row in found.measures}


@pytest.mark.parametrize(("truth", "verdict"), [(2.0, "reproduced"), (1.0, "not reproduced")])
def test_a_planted_speed_up_is_found_and_judged(
    truth: float, verdict: str, claim: Claim, simulate: Any, tmp_path: Path
) -> None:
    results = reproduce(claim, tmp_path / "out", simulate(truth))
    row = numbers(results, "tuned")["speed_up_steps"]
    assert results.verdict == row.verdict == verdict
    assert row.low < truth < row.high
    assert numbers(results, "paper")["half_budget_gap"].verdict == verdict


def test_protocols_are_set_beside_each_other_comparison_by_comparison(
    write_claim: Callable[..., Path], simulate: Any, tmp_path: Path
) -> None:
    points = [[f"optim.lr={lr}"] for lr in (1e-4, 2e-4, 4e-4)]
    rows = (("a", "baseline", "adamw"), ("b", "candidate", "lion"), ("c", "other", "signum"))
    arms = {
        name: {"label": name.upper(), "role": role, "overrides": [f"optim={optim}"], "paper": points[0], "grid": points}
        for name, role, optim in rows
    }
    compared = [{"candidate": "b", "baseline": other, "claimed": {"steps": 2.0}} for other in ("a", "c")]
    fractions = {key: [0.5, 0.625, 0.75, 0.875] for key in ("paper", "tuned")}
    folder = write_claim(arms=arms, comparisons=compared, fractions=fractions)
    as_fast = simulate(lambda arm, steps, seed: 3.0 + 8.0 * (steps * (1 if arm == "a" else 2)) ** -0.35)
    results = reproduce(load("twice", "nano", folder=folder), tmp_path / "out", as_fast)
    found = re.findall(r"steps over (.) \(fitted curve\): (\S+) \(paper\), (\S+) \(tuned\)", results.difference)
    speed_ups = {over: (float(paper), float(tuned)) for over, paper, tuned in found}
    assert speed_ups == {"A": pytest.approx((2.0, 2.0), rel=0.01), "C": pytest.approx((1.0, 1.0), rel=0.01)}


def test_a_final_loss_that_is_never_reached_is_said_to_be(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    flat = simulate(lambda arm, n, seed: 3.0 + (0.5 if arm == "b" else 0.0) + 100 / n**2 + seed / 99)
    row = numbers(reproduce(claim, tmp_path / "out", flat), "tuned")["speed_up_steps"]
    assert (row.estimate, row.note) == (0.0, "0: B's curve, as fitted, never comes to A's final loss")


def test_speed_ups_in_flops_and_seconds_count_what_a_step_costs(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    rows = numbers(reproduce(claim, tmp_path / "out", simulate(2.0)), "tuned")
    steps, seconds = rows["speed_up_steps"], rows["speed_up_seconds"]
    assert rows["speed_up_flops"].estimate == steps.estimate  # the simulation's steps cost the same
    assert seconds.estimate == pytest.approx(steps.estimate / 1.25)
    assert (seconds.low, seconds.high) == (pytest.approx(steps.low / 1.3), pytest.approx(steps.high / 1.2))


def test_untuned_numbers_have_no_verdict(write_claim: Callable[..., Path], simulate: Any, tmp_path: Path) -> None:
    claim = load("twice", "nano", folder=write_claim(untuned="they belong to another size"))
    results = reproduce(claim, tmp_path / "out", simulate(1.0))
    paper, tuned = results.protocols
    assert (paper.verdict, {row.verdict for row in paper.measures}) == ("undecided", {None})
    assert paper.sentence.startswith("untuned, so no verdict") and "another size" in paper.description
    assert results.verdict == tuned.verdict == "not reproduced"
    assert results.difference.startswith("Verdict: undecided (paper), not reproduced (tuned). half-budget gap ")
    assert f"{estimate(numbers(results, 'paper')['half_budget_gap'])} (paper)" in results.difference


def test_a_diverged_run_is_shown_and_counts_against_its_arm(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    good = simulate(4.0).loss
    results = reproduce(
        claim, tmp_path / "out", simulate(lambda arm, n, seed: None if (arm, seed) == ("b", 2) else good(arm, n, seed))
    )
    assert {run.status for run in results.runs if (run.arm, run.seed) == ("b", 2)} == {"diverged"}
    assert results.verdict != "reproduced"
    assert "diverged runs of B count as failures" in numbers(results, "tuned")["speed_up_steps"].note
    assert (tmp_path / "out" / "report.md").read_text().count("diverged") > 3


def test_any_interruptions_leave_the_results_of_an_undisturbed_run(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    undisturbed = reproduce(claim, tmp_path / "one", simulate(1.5))
    simulation, chance = simulate(1.5), random.Random(0)
    for _ in range(10):
        simulation.stop_after = len(simulation.started) + chance.randrange(5)
        with pytest.raises(KeyboardInterrupt):
            reproduce(claim, tmp_path / "other", simulation)
    simulation.stop_after = None
    assert without_times(reproduce(claim, tmp_path / "other", simulation)) == without_times(undisturbed)
    assert len(simulation.started) == len(set(simulation.started)) == len(undisturbed.runs)


def without_times(results: Results) -> dict[str, Any]:
    content = asdict(results)
    del content["date"]
    return content


def test_a_crashed_run_is_reported_retried_and_leaves_no_final_results(
    claim: Claim, simulate: Any, tmp_path: Path
) -> None:
    simulation, out = simulate(2.0), tmp_path / "out"
    first = protocols.of(claim)[0].next_runs({})[0].name
    simulation.fail = {first}
    with pytest.raises(RunsFailedError, match=rf"{first}: out of memory; log: .*{first}\.log"):
        reproduce(claim, out, simulation)
    assert not (out / "results.json").exists()
    assert len(simulation.started) > 1  # the others ran
    simulation.fail = set()
    assert reproduce(claim, out, simulation).verdict == "reproduced"
    assert simulation.started.count(first) == 2


def test_runs_on_different_validation_data_are_refused(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    simulation = simulate(2.0)
    simulation.checksums = {"b": "another"}
    with pytest.raises(RecordsError, match="different validation data"):
        reproduce(claim, tmp_path / "out", simulation)
    started = len(simulation.started)
    with pytest.raises(RecordsError, match="different validation data"):
        reproduce(claim, tmp_path / "out", simulation)
    assert len(simulation.started) == started  # the second time nothing ran


def test_a_folder_of_another_claim_or_version_is_refused_before_any_run(
    claim: Claim, write_claim: Callable[..., Path], simulate: Any, tmp_path: Path
) -> None:
    out, simulation = tmp_path / "out", simulate(2.0)
    reproduce(claim, out, simulation)
    other = load("other", "nano", folder=write_claim("other"))
    with pytest.raises(ReproductionError, match="holds results of claim=twice scale=nano, not of claim=other"):
        reproduce(other, out, simulation)
    content = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({**content, "schema": 0}))
    with pytest.raises(ResultsError, match="written by another version"):
        reproduce(claim, out, simulation)


def test_a_sweep_finds_each_arms_best_and_compares_it(
    write_claim: Callable[..., Path], simulate: Any, tmp_path: Path
) -> None:
    claim = load("twice", "nano", folder=write_claim(base="sweep"))
    results = reproduce(
        claim, tmp_path / "out", simulate(lambda arm, n, seed: (4.0 if arm == "a" else 4.04) + seed / 99)
    )
    (protocol,) = results.protocols
    (row,) = protocol.measures
    assert row.estimate == pytest.approx(0.04)
    assert (row.n, row.verdict) == (3, "reproduced")
    assert [figure.name for figure in results.figures] == ["sweep", "curves-sweep", "step-time", "clipped"]
    step_time, clipped = results.figures[-2:]
    assert [(series.arm, series.y, series.high) for series in step_time.series] == [
        ("a", [1.0], None),
        ("b", [1.25], [1.3]),
    ]
    assert [(series.arm, series.y) for series in clipped.series] == [("a", [1.0]), ("b", [1.0])]


def test_a_diagnostic_that_the_claim_shows_is_drawn_tabled_and_judged(
    write_claim: Callable[..., Path], simulate: Any, tmp_path: Path
) -> None:
    row = {"quantity": "optim/odd_rate", "arm": "b", "claimed": 0.25, "no_effect": 0.0}
    claim = load("twice", "nano", folder=write_claim(base="sweep", shows=["optim/odd_rate"], expect=[row]))
    simulation = simulate(2.0)
    simulation.extra = {"optim/odd_rate": 0.25, "optim/not_shown": 1.0}
    results = reproduce(claim, tmp_path / "out", simulation)
    (measure,) = results.protocols[0].measures
    assert (measure.label, measure.estimate, measure.verdict) == ("odd rate of B", 0.25, "reproduced")
    assert results.figures[-1].name == "odd-rate"
    assert "odd rate" in results.tables[-1].columns
    assert {tuple(run.diagnostics.items()) for run in results.runs} == {(("optim/odd_rate", 0.25),)}
    assert "| odd rate |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(("first", "is_end"), [("1e-3", True), ("2e-3", False), ("4e-3", True)])
def test_a_choice_at_an_end_of_its_grid_is_noted(
    write_claim: Callable[..., Path], simulate: Any, tmp_path: Path, first: str, is_end: bool
) -> None:
    points = sorted(["1e-3", "2e-3", "4e-3"], key=lambda value: value != first)  # of equal losses the first is chosen
    arms = {
        name: {"label": name, "role": role, "overrides": [], "grid": [[f"optim.lr={lr}"] for lr in points]}
        for name, role in (("a", "baseline"), ("b", "candidate"))
    }
    claim = load("twice", "nano", folder=write_claim(base="sweep", arms=arms))
    results = reproduce(claim, tmp_path / "out", simulate(lambda arm, n, seed: 4.0))
    assert ["optim.lr" in note and "a wider grid may find a better one" in note for note in results.notes] == (
        [True, True] if is_end else []
    )


def test_a_claim_of_memory_trains_nothing(tmp_path: Path) -> None:
    def never(jobs: object) -> Any:
        raise AssertionError("nothing to run")

    results = reproduce(load("logicnest", "nano"), tmp_path / "out", never)
    assert (results.verdict, results.runs) == ("not reproduced", [])  # Sophia's state is AdamW's
    assert results.tables[0].title == "The statements, one by one"
    assert {row.estimate for row in results.protocols[0].measures} == {0.0}


def test_the_forecast_counts_tokens_flops_and_hours(claim: Claim) -> None:
    found = forecast.forecast(claim, lambda points: dict.fromkeys(points, 2.0), at_once=2)
    runs, steps = sum(line.runs for line in found.lines), sum(line.steps for line in found.lines)
    assert (runs, steps) == (10 + 9 + 21, 2 * (3 * 40 + 2 * 80) + 3 * 320 + 3 * (240 + 600))
    assert sum(line.tokens for line in found.lines) == steps * 8 * 256
    assert found.hours == pytest.approx((steps * 2.0 + runs * forecast.START_SECONDS) / 3600 / 2)


def test_hours_are_unknown_without_data(claim: Claim) -> None:
    def no_data(points: object) -> Any:
        raise ValueError("no data; run prepare_data")

    found = forecast.forecast(claim, no_data)
    assert (found.hours, found.note) == (None, "hours are unknown: no data; run prepare_data")


@pytest.mark.slow
def test_a_sweep_of_real_runs_ends_in_a_report(
    write_claim: Callable[..., Path], tiny: list[str], tmp_path: Path
) -> None:
    arms = {
        name: {"label": name, "role": role, "overrides": [f"optim={optim}"], "grid": [[f"optim.lr={lr}"]]}
        for name, role, optim, lr in (("a", "baseline", "adamw", 1e-3), ("b", "candidate", "lion", 1e-4))
    }
    folder = write_claim(
        base="sweep", arms=arms, overrides=tiny, seeds=[1], scales={"nano": {"budget": 6, "warmup_steps": 1}}
    )
    code = (
        "import sys, pathlib; from scripts import reproduce as r; from reproduce import claims\n"
        "claims.FOLDER = pathlib.Path(sys.argv.pop(1))\n"
        "claims.load.__kwdefaults__['folder'] = claims.FOLDER; sys.exit(r.main(sys.argv[1:]))"
    )
    arguments = ["claim=twice", "scale=nano", f"out={tmp_path / 'out'}", "jobs=2"]
    done = subprocess.run([sys.executable, "-c", code, folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "out" / "results.json")
    assert [run.status for run in results.runs] == ["finished"] * 4
    assert results.verdict == "undecided"  # one seed bounds nothing
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    "row",
    [5, ["b", "a", 0, 1, 2], ["b", "a", None, 1, 2], ["b", "a", "x", 1, 2], ["b", "a", 1, -1, 2], ["b", 1, 1, 1, 1]],
)
def test_step_times_that_are_none_are_named(claim: Claim, tmp_path: Path, row: object) -> None:
    reproduction.step_times(claim, tmp_path, lambda claim: SAME)
    path = tmp_path / reproduction.STEP_TIMES
    path.write_text(json.dumps({**json.loads(path.read_text()), "ratios": [row]}))
    with pytest.raises(ReproductionError, match="step_times.json: .* is no ratio of step times; delete the file"):
        reproduction.step_times(claim, tmp_path, lambda claim: SAME)


def test_an_interval_without_bounds_is_written_and_read_again(claim: Claim, tmp_path: Path) -> None:
    unbounded = {("b", "a"): Interval(1.25, 0.0, math.inf)}
    for _ in range(2):
        assert reproduction.step_times(claim, tmp_path, lambda claim: unbounded) == (unbounded, "")
    assert "Infinity" not in (tmp_path / reproduction.STEP_TIMES).read_text()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_runs_that_say_finished_with_a_loss_that_is_not_finite_fail_their_arm_and_end_in_a_report(
    claim: Claim, simulate: Any, tmp_path: Path, loss: float
) -> None:
    good = simulate(4.0).loss
    poisoned = simulate(lambda arm, n, seed: loss if (arm, seed) == ("b", 2) else good(arm, n, seed))
    results = reproduce(claim, tmp_path / "out", poisoned)
    assert {run.status for run in results.runs if (run.arm, run.seed) == ("b", 2)} == {"diverged"}
    assert results.verdict != "reproduced"
    assert read(tmp_path / "out" / "results.json") == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 5}, "runs=5 is not what results have there"),
        ({"verdict": None}, "verdict=null is not what results have there"),
        ({"protocols": [{"name": "x"}]}, r"protocols\[0\].description is missing"),
        ({"source": {"paper": "x", "odd": 1}}, "source.odd is no field of results"),
        ({"curves": {"a": {"step": ["x"]}}}, "curves.a.step"),
    ],
)
def test_results_of_another_form_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = ROOT / "docs" / "claims" / "logicnest-nano" / "results.json"
    (tmp_path / "results.json").write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultsError, match=message):
        read(tmp_path / "results.json")
