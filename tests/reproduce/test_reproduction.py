import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from inference.intervals import Interval
from report.numbers import in_words
from report.results import Results, ResultsError, read, write
from reproduce import findings, forecast, protocols, reproduction
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.evidence import Evidence
from reproduce.records import Ratios, RecordsError
from reproduce.reproduction import ReproductionError, RunsFailedError

TRAINED = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "global_batch=16"]
pytestmark = pytest.mark.usefixtures("quick")
SAME = {("b", "a"): Interval(1.25, 1.2, 1.3)}


@pytest.fixture
def claim(write_claim: Callable[..., Path]) -> Claim:
    return load("twice", "nano", TRAINED, folder=write_claim())


def reproduce(claim: Claim, folder: Path, run: Any, ratios: Ratios = SAME) -> Results:
    return reproduction.reproduce(claim, folder, "again", run=run, time_arms=lambda claim: ratios)


def quiet(truth: float, noise: float = 0.004, spread: float = 0.0) -> Callable[[str, int, int], float | None]:
    """A planted speed-up. noise: of a run, nats; spread: from seed to seed, the same for all runs of a seed."""

    def loss(arm: str, steps: int, seed: int) -> float | None:
        budget = steps * (truth if arm == "b" else 1.0)
        luck = random.Random(f"{arm} {steps} {seed}").gauss(0, noise) + spread * seed
        return float(3.0 + 8.0 * budget**-0.35 + luck)

    return loss


def numbers(results: Results, protocol: str) -> dict[str, Any]:
    (found,) = [each for each in results.protocols if each.name == protocol]
    return {row.name: row for row in found.measures}


@pytest.mark.parametrize(
    ("truth", "verdict"), [(2.0, "reproduced"), (1.4, "weaker than claimed"), (1.0, "no effect or worse")]
)
def test_a_planted_speed_up_is_found_and_judged(
    truth: float, verdict: str, claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    results = reproduce(claim, tmp_path / "out", simulate(quiet(truth, 0.001)))
    rows = numbers(results, "tuned")
    assert results.verdict == results.protocols[0].verdict == rows["speed_up_steps"].verdict == verdict
    assert rows["speed_up_steps"].low < truth < rows["speed_up_steps"].high
    not_known = ["R7", "R10"]  # without data, and a batch in the claim's file
    assert [check.id for check in results.checks if not check.passed] == not_known


@pytest.mark.parametrize(
    ("truth", "sign", "bound", "verdict"), [(6.0, ">", 4.0, "reproduced"), (0.15, "<", 0.25, "no effect or worse")]
)
def test_a_speed_up_beyond_what_was_run_is_given_as_its_bound(
    truth: float,
    sign: str,
    bound: float,
    verdict: str,
    claim: Claim,
    simulate: Any,
    without_report: None,
    tmp_path: Path,
) -> None:
    results = reproduce(claim, tmp_path / "out", simulate(quiet(truth, 0.001)))
    row = numbers(results, "tuned")["speed_up_steps"]
    assert (row.censored, row.estimate, row.verdict) == (sign, pytest.approx(bound), verdict)
    assert (row.low if sign == ">" else row.high) == pytest.approx(bound)
    words = in_words(row)
    assert f"{sign}{bound:g}" in words.replace(" ", "").replace(".00", "")
    assert f"{truth:g}" not in words


def test_a_bound_below_the_claim_does_not_reproduce_it(
    write_claim: Callable[..., Path], simulate: Any, without_report: None, tmp_path: Path
) -> None:
    row = {"candidate": "b", "baseline": "a", "claims": {"steps": {"claimed": 10.0, "least": 9.0}}}
    claim = load("twice", "nano", TRAINED, folder=write_claim(comparisons=[row]))
    results = reproduce(claim, tmp_path / "out", simulate(quiet(6.0, 0.001)))
    found = numbers(results, "tuned")["speed_up_steps"]
    assert (found.censored, found.estimate, found.verdict) == (">", pytest.approx(4.0), "undecided")
    assert any(check.id == "R1" and check.passed is False for check in results.checks)


def test_a_refuted_claim_whose_interval_holds_no_effect_says_so(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    found = numbers(reproduce(claim, tmp_path / "out", simulate(quiet(1.0, 0.02))), "tuned")["speed_up_steps"]
    assert found.verdict == "weaker than claimed" and found.low < 1 < found.high
    assert "no effect is within the interval" in found.note


def test_every_part_is_judged_by_itself_and_the_headline_is_the_whole_claims(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    pair = claim.fields.comparisons[0]
    parts = {**pair.claims, "seconds": pair.claims["steps"]}
    three = replace(claim, fields=replace(claim.fields, comparisons=[replace(pair, claims=parts)]))
    slow = {("b", "a"): Interval(1.9, 1.89, 1.91)}  # a step takes 1.9 times as long
    results = reproduce(three, tmp_path / "out", simulate(quiet(2.0, 0.001)), slow)
    verdicts = {row.name: row.verdict for row in results.protocols[0].measures if row.verdict}
    assert verdicts == {
        "speed_up_steps": "reproduced",
        "speed_up_flops": "reproduced",
        "speed_up_seconds": "weaker than claimed",
    }
    assert results.verdict == "weaker than claimed"
    assert results.sentence == "2 of 3 parts reproduced, 1 weaker than claimed"


def test_a_part_whose_cost_is_not_known_is_undecided(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    pair = claim.fields.comparisons[0]
    seconds = replace(pair, claims={"steps": pair.claims["steps"], "seconds": pair.claims["steps"]})
    claim = replace(claim, fields=replace(claim.fields, comparisons=[seconds]))
    results = reproduce(claim, tmp_path / "out", simulate(quiet(2.0, 0.001)), {})
    row = numbers(results, "tuned")["speed_up_seconds"]
    assert (row.estimate, row.verdict, row.note) == (None, "undecided", "seconds per step are not known")
    assert results.verdict == "undecided"


def test_protocols_are_set_beside_each_other(
    write_claim: Callable[..., Path], simulate: Any, without_report: None, tmp_path: Path
) -> None:
    claim = load("twice", "nano", TRAINED, folder=write_claim(protocols=["paper", "tuned"]))
    simulation = simulate(quiet(2.0, 0.001))
    simulation.optimum = {"a": 2.1e-3, "b": 5e-4}  # the paper's rate is B's best, but not A's
    results = reproduce(claim, tmp_path / "out", simulation)
    paper, tuned = (numbers(results, name) for name in ("paper", "tuned"))
    assert paper["half_budget_gap"].verdict == "reproduced" and tuned["half_budget_gap"].verdict is None
    assert paper["half_budget_gap"].estimate > 1.3 and tuned["half_budget_gap"].estimate == pytest.approx(1, abs=0.05)
    assert results.difference.startswith("Verdict: reproduced (paper), reproduced (tuned). half-budget gap ")


def test_speed_ups_in_flops_and_seconds_count_what_a_step_costs(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    simulation = simulate(quiet(2.0))
    simulation.flops["b"] = 1.6
    rows = numbers(reproduce(claim, tmp_path / "out", simulation), "tuned")
    steps, seconds, flops = (rows[f"speed_up_{key}"] for key in ("steps", "seconds", "flops"))
    assert flops.estimate == pytest.approx(steps.estimate / 1.6)
    assert seconds.estimate == pytest.approx(steps.estimate / 1.25)
    assert seconds.low <= steps.low / 1.25 and seconds.high >= steps.high / 1.25
    assert rows["flops_overhead"].estimate == pytest.approx(1.6)


@pytest.mark.parametrize(("cost", "steps_of_a", "steps_of_b"), [(0.5, 80, 160), (2.0, 160, 80), (1.0, 160, 160)])
def test_equal_cost_gives_the_cheaper_arm_its_credit(
    cost: float,
    steps_of_a: int,
    steps_of_b: int,
    claim: Claim,
    simulate: Any,
    without_report: None,
    tmp_path: Path,
) -> None:
    truth = quiet(1.3, 0.0)
    ratio = {("b", "a"): Interval(cost, cost, cost)}
    rows = numbers(reproduce(claim, tmp_path / "out", simulate(truth), ratio), "tuned")
    expected = truth("b", steps_of_b, 1) - truth("a", steps_of_a, 1)  # type: ignore[operator]  # neither diverges
    assert rows["loss_at_equal_seconds"].estimate == pytest.approx(expected)
    assert rows["loss_at_equal_steps"].estimate == pytest.approx(truth("b", 160, 1) - truth("a", 160, 1))


def test_a_failed_check_outranks_the_verdict_and_says_why(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    spread = reproduce(claim, tmp_path / "out", simulate(quiet(2.0, 0.001, spread=0.04)))  # a unit is .374 nats
    assert spread.protocols[0].verdict == "reproduced"  # what all runs of a seed share says nothing of the speed-up
    assert spread.verdict == "out of regime"
    assert spread.sentence.startswith("Failed: R2 (scatter of the seeds at T). By the numbers alone, ")
    assert spread.sentence.endswith("2 of 2 parts reproduced")


def test_no_effect_or_worse_outlives_noise(claim: Claim, simulate: Any, without_report: None, tmp_path: Path) -> None:
    worse = reproduce(claim, tmp_path / "out", simulate(quiet(0.5, 0.001, spread=0.04)))
    assert [check.id for check in worse.checks if check.passed is False] == ["R2"]
    assert worse.verdict == "no effect or worse"


def test_the_first_line_says_what_tuning_alone_gave(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    # The usual rate, half of the best one, costs .1 nats: the loss of the tuned run at 160 / 1.211 steps, on straight
    # lines over log steps between the lengths of 120 and 160.
    results = reproduce(claim, tmp_path / "out", simulate(quiet(2.0, 0.0)))
    at = {steps: 3 + 8 * steps**-0.35 for steps in (120, 160)}
    share = 0.1 / (at[120] - at[160])
    gain = (160 / 120) ** share
    assert results.tuning == (
        f"Tuning alone: {gain:.2f}× for A: loss {at[160] + 0.1:.4f} with the usual settings (optim.lr=1e-3), "
        f"{at[160]:.4f} tuned."
    )


def test_a_diverged_run_is_shown_and_counts_against_its_arm(claim: Claim, simulate: Any, tmp_path: Path) -> None:
    good = quiet(2.0)
    results = reproduce(
        claim, tmp_path / "out", simulate(lambda arm, n, seed: None if (arm, seed) == ("b", 2) else good(arm, n, seed))
    )
    assert numbers(results, "tuned")["speed_up_steps"].estimate == pytest.approx(2 * 2 / 3, rel=0.05)
    assert {run.status for run in results.runs if (run.arm, run.seed) == ("b", 2)} == {"diverged"}
    assert results.verdict != "reproduced"
    assert "33.3 % of the candidate's runs diverged" in numbers(results, "tuned")["speed_up_steps"].note
    assert (tmp_path / "out" / "report.md").read_text().count("diverged") > 3


def test_an_arm_that_diverges_everywhere_has_no_speed_up(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    good = quiet(2.0)
    results = reproduce(claim, tmp_path / "out", simulate(lambda arm, n, s: None if arm == "b" else good(arm, n, s)))
    assert numbers(results, "tuned")["speed_up_steps"].verdict == "no effect or worse"
    assert results.verdict == "out of regime"  # R3: no rate is better than its neighbours


@pytest.mark.parametrize("seed", range(3))
def test_any_interruptions_leave_the_results_of_an_undisturbed_run(
    seed: int, claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    truth = quiet(1.5)
    undisturbed = reproduce(claim, tmp_path / "one" / "out", simulate(truth))
    simulation, chance = simulate(truth), random.Random(seed)
    for _ in range(10):
        simulation.stop_after = len(simulation.started) + chance.randrange(5)
        with pytest.raises(KeyboardInterrupt):
            reproduce(claim, tmp_path / "other" / "out", simulation)
    simulation.stop_after = None
    assert without_times(reproduce(claim, tmp_path / "other" / "out", simulation)) == without_times(undisturbed)
    assert len(simulation.started) == len(set(simulation.started)) == len(undisturbed.runs)


def test_doing_it_again_runs_nothing_and_gives_the_same_results(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    simulation = simulate(quiet(2.0))
    first = reproduce(claim, tmp_path / "out", simulation)
    done = len(simulation.started)
    assert reproduce(claim, tmp_path / "out", simulation) == first
    assert len(simulation.started) == done


def without_times(results: Results) -> dict[str, Any]:
    content = asdict(results)
    del content["date"]
    return content


def test_a_crashed_run_is_reported_retried_and_leaves_no_final_results(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    simulation, out = simulate(quiet(2.0)), tmp_path / "out"
    first = protocols.of(claim)[0].next_runs({})[0].name
    simulation.fail = {first}
    with pytest.raises(RunsFailedError, match=rf"{first}: out of memory; log: .*{first}\.log"):
        reproduce(claim, out, simulation)
    assert not (out / "results.json").exists()
    assert len(simulation.started) > 1  # the others ran
    simulation.fail = set()
    assert reproduce(claim, out, simulation).verdict == "reproduced"
    assert simulation.started.count(first) == 2


def test_runs_on_different_validation_data_are_refused(
    claim: Claim, simulate: Any, without_report: None, tmp_path: Path
) -> None:
    simulation = simulate(2.0)
    simulation.checksums = {"b": "another"}
    with pytest.raises(RecordsError, match="different validation data"):
        reproduce(claim, tmp_path / "out", simulation)
    started = len(simulation.started)
    with pytest.raises(RecordsError, match="different validation data"):
        reproduce(claim, tmp_path / "out", simulation)
    assert len(simulation.started) == started  # the second time nothing ran


def test_a_folder_of_another_claim_or_version_is_refused_before_any_run(
    claim: Claim, write_claim: Callable[..., Path], simulate: Any, without_report: None, tmp_path: Path
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
    claim = load("twice", "nano", TRAINED, folder=write_claim(base="sweep"))
    results = reproduce(
        claim, tmp_path / "out", simulate(lambda arm, n, seed: (4.0 if arm == "a" else 4.04) + 1 / n + seed / 1e3)
    )
    (protocol,) = results.protocols
    (row,) = protocol.measures
    assert row.estimate == pytest.approx(0.04)
    assert (row.n, row.verdict) == (3, "reproduced")
    assert [figure.name for figure in results.figures] == ["sweep", "curves-tuned", "step-time", "clipped"]
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
    assert {check.id for check in results.checks} >= {"R9"}  # the start is not counted
    assert {tuple(run.diagnostics.items()) for run in results.runs} == {(("optim/odd_rate", 0.25),)}
    assert "| odd rate |" in (tmp_path / "out" / "report.md").read_text()


def test_a_claim_of_memory_trains_nothing(tmp_path: Path) -> None:
    def never(jobs: object) -> Any:
        raise AssertionError("nothing to run")

    results = reproduce(load("logicnest", "nano"), tmp_path / "out", never)
    assert (results.verdict, results.runs, results.checks) == (
        "no effect or worse",
        [],
        [],
    )  # Sophia's state is AdamW's
    assert results.tables[0].title == "The statements, one by one"
    assert {row.estimate for row in results.protocols[0].measures} == {0.0}


def test_the_forecast_counts_tokens_flops_and_hours(claim: Claim) -> None:
    found = forecast.forecast(claim, lambda points: dict.fromkeys(points, 2.0), at_once=2)
    runs, steps = sum(line.runs for line in found.lines), sum(line.steps for line in found.lines)
    # Of an arm: 7 points and the vertex with two seeds, three trunks with three branches, one cosine check; and of the
    # baseline its usual settings. A branch is run for its last fifth.
    own = 16 * 160 + 3 * (160 + 8 + 16 + 24) + 160
    assert (runs, steps) == (2 * (16 + 12 + 1) + 3, 2 * own + 3 * 160)
    assert sum(line.tokens for line in found.lines) == steps * 16 * 16
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
    tuned = {"axes": {"rate": {"sets": ["optim.lr={}"], "start": 1e-3}}}
    arms = {
        "a": {"label": "a", "role": "baseline", "overrides": ["optim=adamw"], **tuned},
        "b": {"label": "b", "role": "candidate", "overrides": ["optim=lion"], "fixed": ["optim.lr=1e-4"]},
    }
    changes = {"seeds": [1], "tuning_seeds": [7], "tuned_axes": 1, "budget": 16, "warmup_steps": 2}
    folder = write_claim(base="sweep", sweep=None, arms=arms, overrides=tiny, unequal="to be short", **changes)
    code = (
        "import sys, pathlib; from scripts import reproduce as r; from reproduce import claims\n"
        "claims.FOLDER = pathlib.Path(sys.argv.pop(1))\n"
        "claims.load.__kwdefaults__['folder'] = claims.FOLDER; sys.exit(r.main(sys.argv[1:]))"
    )
    arguments = ["claim=twice", "scale=nano", f"out={tmp_path / 'out'}", "jobs=2"]
    done = subprocess.run([sys.executable, "-c", code, folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "out" / "results.json")
    assert {run.status for run in results.runs} == {"finished"}
    assert {run.purpose for run in results.runs} == {"tuning", "full budget", "branch", "cosine check"}
    assert results.verdict in ("undecided", "out of regime")  # one seed bounds nothing
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
        assert reproduction.step_times(claim, tmp_path, lambda claim: unbounded)[:2] == (unbounded, "")
    assert "Infinity" not in (tmp_path / reproduction.STEP_TIMES).read_text()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_runs_that_say_finished_with_a_loss_that_is_not_finite_fail_their_arm_and_end_in_a_report(
    claim: Claim, simulate: Any, tmp_path: Path, loss: float
) -> None:
    good = simulate(2.0).loss
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
def test_results_of_another_form_are_named(claim: Claim, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    found = findings.of_measurement(claim, Evidence())
    write(reproduction.assemble(claim, found, [], "again"), tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(content | change))
    with pytest.raises(ResultsError, match=message):
        read(tmp_path / "results.json")
