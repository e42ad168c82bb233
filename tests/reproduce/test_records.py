import json
import math
from pathlib import Path

import pytest

from configs import ReadingError
from reproduce import records
from reproduce.plans import Planned
from reproduce.records import Record, Recorded, RecordsError

EMPTY: dict[str, list[float | None]] = {column: [] for column in records.COLUMNS}


def run(arm: str, steps: int, seed: int, loss: float | None, flops: float = 1.0) -> Recorded:
    plan = Planned(f"{arm}-{steps}-{seed}", arm, "p", "q", seed, steps, (), (), f"{arm}{steps}{seed}")
    return Recorded(plan, Record("finished" if loss is not None else "diverged", steps, loss, 1.0, flops, EMPTY))


def write_run(folder: Path, rows: list[dict[str, float | None]], result: dict[str, object] | None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "env.json").write_text(json.dumps({"data": {"train": "t", "val": "v"}}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


ROWS: list[dict[str, float | None]] = [
    {"step": 0, "tokens": 0, "seconds": 0.0, "flops": 0, "val/loss": 5.0, "train/loss": 5.1, "clipped_steps": 1},
    {"step": 10, "tokens": 80, "seconds": 1.0, "flops": 9, "clipped_steps": 3, "optim/win_rate": 0.2},
    {"step": 19, "tokens": 152, "seconds": 1.9, "flops": 18, "clipped_steps": 4, "optim/win_rate": 0.4},
    {"step": 20, "tokens": 160, "seconds": 2.0, "flops": 20, "val/loss": 4.0},
]


def test_a_record_holds_the_curve_and_the_last_counts(tmp_path: Path) -> None:
    end = {"status": "finished", "step": 20, "seconds": 2.0, "flops": 20, "val/loss": 4.0}
    record = records.read(write_run(tmp_path / "r", ROWS, end))
    assert record.curve == {
        "step": [0, 20], "tokens": [0, 160], "flops": [0, 20], "seconds": [0.0, 2.0], "val/loss": [5.0, 4.0]
    }  # fmt: skip
    assert record.clipped_share == 3 / 19  # of the steps 1 to 19: step 0 is in the first quarter
    assert record.diagnostics == {"optim/win_rate": pytest.approx(0.3)}  # step 10 is in the last half
    assert (record.status, record.loss, record.data["val"]) == ("finished", 4.0, "v")


def test_a_final_loss_that_is_not_that_of_the_last_evaluation_is_refused(tmp_path: Path) -> None:
    end = {"status": "finished", "step": 20, "seconds": 2.0, "flops": 20, "val/loss": 3.0}
    with pytest.raises(RecordsError, match=r"result\.json says val/loss=3\.0, metrics\.jsonl 4\.0 at that step"):
        records.check_final_loss(tmp_path / "r", records.read(write_run(tmp_path / "r", ROWS, end)))
    records.check_final_loss(tmp_path, records.read(write_run(tmp_path / "s", ROWS, {**end, "val/loss": 4.0})))


def test_the_start_counts_neither_for_clipping_nor_for_diagnostics(tmp_path: Path) -> None:
    rows = [  # every tenth step of 100; all of the first 25 are clipped, and every fifth one after them
        {
            "step": step,
            "tokens": 0,
            "seconds": 0,
            "flops": 0,
            "clipped_steps": min(step + 1, 25) + max(0, step - 24) // 5,
        }
        for step in (4, 14, 24, 34, 44, 54, 64, 74, 84, 94, 99)
    ]
    for row in rows:
        row["optim/win_rate"] = 0.9 if row["step"] < 50 else 0.2
    record = records.read(write_run(tmp_path / "r", rows, None))
    assert record.clipped_share == 15 / 75
    assert record.diagnostics == {"optim/win_rate": pytest.approx(0.2)}


def test_a_diverged_run_has_no_loss_and_keeps_its_curve(tmp_path: Path) -> None:
    end = {"status": "diverged", "step": 20, "seconds": 2.0, "flops": 20, "val/loss": 4.0}
    record = records.read(write_run(tmp_path / "r", ROWS, end))
    assert (record.status, record.loss, record.curve["val/loss"]) == ("diverged", None, [5.0, 4.0])


def test_a_run_without_a_result_is_unfinished(tmp_path: Path) -> None:
    record = records.read(write_run(tmp_path / "r", ROWS, None))
    assert (record.status, record.loss, record.step) == ("unfinished", None, 20)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="holds no run"):
        records.read(tmp_path)


def test_runs_validated_on_different_data_are_refused() -> None:
    one, other = {"train": "t", "val": "x"}, {"train": "t", "val": "y"}
    records.check_same_data({"a": one, "b": one, "c": {}})
    with pytest.raises(RecordsError, match="a and b have different training data"):
        records.check_same_data({"a": one, "b": {**one, "train": "more"}})
    with pytest.raises(RecordsError, match="a and c have different validation data"):
        records.check_same_data({"a": one, "b": one, "c": other})


def test_budgets_and_losses_go_by_arm_and_seed_and_keep_the_diverged() -> None:
    runs = [run("b", 80, 1, 4.0), run("b", 40, 1, None), run("b", 80, 2, 4.2), run("a", 80, 1, 5.0)]
    assert records.budgets(runs, "b") == {1: [(40.0, None), (80.0, 4.0)], 2: [(80.0, 4.2)]}
    assert records.losses(runs, "b", 80) == {1: 4.0, 2: 4.2}
    assert records.losses(runs, "b", 40) == {1: None}


def test_a_loss_between_two_budgets_lies_on_the_line_over_log_steps() -> None:
    runs = [run("b", 40, 1, 6.0), run("b", 160, 1, 4.0)]
    assert records.losses_at(runs, "b", 80) == {1: pytest.approx(5.0)}  # 80 is halfway between 40 and 160 in log
    assert records.losses_at(runs, "b", 20) == {1: None}  # outside is not known
    assert records.between([(40.0, 6.0), (160.0, None)], 80) is None


def test_the_undecayed_loss_is_the_one_on_the_way() -> None:
    planned = run("a", 160, 1, 4.0).plan
    curve = {**EMPTY, "step": [40.0, 80.0], "val/loss": [6.0, 5.0]}
    on_its_way = Recorded(planned, Record("finished", 160, 4.0, 1.0, 1.0, curve))
    assert [records.undecayed(on_its_way, step) for step in (40, 80, 60)] == [6.0, 5.0, None]


def test_flops_per_step_are_those_of_the_longest_run() -> None:
    runs = [run("b", 5, 1, 4.0, flops=60.0), run("b", 20, 1, 4.0, flops=210.0)]  # a curvature pass in steps 0, 10
    assert records.flops_per_step(runs, "b") == 10.5


def test_the_share_near_the_best_is_measured_on_a_log_axis() -> None:
    valley = [(1.0, 5.0), (10.0, 4.0), (100.0, 5.0)]
    assert records.share_near_best(valley, 0.25) == pytest.approx(0.25)  # a quarter of each side
    assert records.share_near_best(valley, 9.0) == 1.0
    assert records.share_near_best([(1.0, 4.0), (10.0, 4.0), (100.0, None)], 0.1) == pytest.approx(0.5)
    assert records.share_near_best([(1.0, None), (10.0, None)], 0.1) is None
    assert math.isclose(records.share_near_best([(1.0, 4.0), (10.0, 5.0), (100.0, 5.0)], 0.5) or 0, 0.25)


def test_the_mean_curve_has_the_extremes_beside_it() -> None:
    def with_curve(seed: int, losses: list[float | None]) -> Recorded:
        planned, record = run("a", 2, seed, 1.0)
        n = len(losses)
        curve: dict[str, list[float | None]] = {column: [float(x) for x in range(n)] for column in records.COLUMNS}
        curve["val/loss"] = losses
        return Recorded(planned, Record(record.status, 2, 1.0, 1.0, 1.0, curve))

    mean = records.mean_curves([with_curve(1, [5.0, 3.0, 2.0]), with_curve(2, [5.0, 4.0])])
    assert (mean["val/loss"], mean["low"], mean["high"]) == ([5.0, 3.5], [5.0, 3.0], [5.0, 4.0])
    assert mean["step"] == [0.0, 1.0]


NOT_FINITE = [math.nan, math.inf, -math.inf, None]


@pytest.mark.parametrize("loss", NOT_FINITE)
def test_a_run_that_says_finished_without_a_finite_loss_has_diverged(tmp_path: Path, loss: float | None) -> None:
    end = {"status": "finished", "step": 20, "seconds": 2.0, "flops": 20, "val/loss": loss}
    record = records.read(write_run(tmp_path / "r", ROWS, end))
    assert (record.status, record.loss) == ("diverged", None)
    if loss is not None:
        assert Record("finished", 1, loss, 1.0, 1.0, EMPTY).facts["loss"] is None


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_loss_that_is_not_finite_is_never_near_the_best_nor_between_others(bad: float | None) -> None:
    points = [(1.0, 5.0), (10.0, 4.0), (100.0, bad)]
    assert records.share_near_best(points, 0.0) == 0
    assert records.share_near_best(points, 2.0) == pytest.approx(0.5)
    assert records.between(points, 50.0) is None
    assert records.share_near_best([(1.0, bad), (2.0, bad)], 1.0) is None


def test_mean_curves_are_means_over_the_same_steps() -> None:
    def with_curve(seed: int, losses: dict[int, float | None]) -> Recorded:
        rows = {column: list(map(float, losses)) for column in records.COLUMNS} | {"val/loss": list(losses.values())}
        return run("a", 10, seed, 4.0)._replace(record=Record("finished", 10, 4.0, 1.0, 1.0, rows))  # type: ignore[arg-type]

    mean = records.mean_curves([with_curve(1, {0: 6.0, 5: 5.0, 10: 4.0}), with_curve(2, {0: 8.0, 10: math.nan})])
    assert mean["step"] == [0.0, 10.0]
    assert (mean["val/loss"], mean["low"], mean["high"]) == ([7.0, None], [6.0, 4.0], [8.0, 4.0])


def test_of_two_evaluations_at_a_step_the_later_counts_and_the_order_of_rows_does_not(tmp_path: Path) -> None:
    rows = [ROWS[3], ROWS[0], {**ROWS[0], "val/loss": 4.5}, *ROWS[1:3]]
    record = records.read(write_run(tmp_path / "r", rows, None))
    assert (record.curve["step"], record.curve["val/loss"], record.step) == ([0, 20], [4.5, 4.0], 20)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", '{"status": "won"}', "status=won must be one of finished, diverged, stopped"),
        ("result.json", '{"status": "finished", "val/loss": true}', "val/loss=true must be a number"),
        ("result.json", '{"status": "finished", "val/loss": 1, "step": 1.5}', "step=1.5 must be a whole number"),
        ("metrics.jsonl", '{"tokens": 1}\n', "step=null must be a whole number"),
        ("metrics.jsonl", '{"step": "1"}\n', "step=1 must be a number"),
        ("metrics.jsonl", '{"step": 1, "clipped_steps": []}\n', "clipped_steps=[] must be a number"),
        ("env.json", '{"git": "x"}', "git=x must be an object"),
        ("env.json", '{"git": {"commit": 5}}', "git.commit=5 must be a text"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = write_run(tmp_path / "r", ROWS, None)
    (folder / file).write_text(content)
    with pytest.raises(ReadingError) as caught:
        records.read(folder)
    assert str(caught.value).startswith(f"{folder / file}: {message}")
