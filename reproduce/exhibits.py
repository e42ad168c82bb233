"""The figures and tables of training runs, whatever the kind of their claim."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from inference.intervals import Interval
from report import numbers
from report.results import Axis, Figure, Series, Table, diagnostic_name
from reproduce import records
from reproduce.judging import Expected, judged
from reproduce.protocols import Comparison
from reproduce.records import Record, Recorded

AXES = ("step", "tokens", "flops", "seconds")
LOSS, STEPS = f"val/loss ({numbers.NATS})", "optimizer steps"
ALTERNATIVES = {  # what else the x axis may show
    "tokens": "tokens",
    "flops": "FLOPs, curvature passes and the optimizer included",
    "seconds": "seconds in training steps",
}


def curves_figure(found: Comparison[Any], lengths: Sequence[int]) -> Figure:
    """The mean curve of every arm's compared runs of those lengths, in steps; all but the longest are dashed."""
    series, columns = [], []
    for arm in found.claim.arms:
        for steps in sorted(set(lengths)):
            curve = records.mean_curves(records.of_length(found.compared, arm.name, steps))
            if not curve["step"]:
                continue
            rows = [n for n in range(len(curve["step"])) if all(curve[key][n] is not None for key in AXES)]
            name = f"{arm.label}, {steps:,} steps"
            y, low, high = ([curve[key][n] for n in rows] for key in ("val/loss", "low", "high"))
            points = {key: [_number(curve[key][n]) for n in rows] for key in AXES}
            series.append(Series(name, list(points["step"]), y, low, high, arm.name, dashed=steps < max(lengths)))
            columns.append(points)
    return Figure(
        f"curves-{found.protocol.name}",
        f"Validation loss, protocol {found.protocol.name}",
        "lines",
        Axis(STEPS),
        Axis(LOSS),
        series,
        {label: [column[key] for column in columns] for key, label in ALTERNATIVES.items()},
        "Mean over seeds; the band spans the seeds. Every length has a learning-rate schedule of its own.",
    )


def points_series(
    label: str, arm: str, points: Iterable[tuple[float, float | None]], *, dashed: bool = False
) -> Series:
    """Returns the mean and the extremes of y at every x, by rising x."""
    found: dict[float, list[float]] = {}
    for x, y in points:
        if y is not None:
            found.setdefault(x, []).append(y)
    xs = sorted(found)
    means: list[float | None] = [sum(found[x]) / len(found[x]) for x in xs]
    low, high = ([bound(found[x]) for x in xs] for bound in (min, max))
    return Series(label, xs, means, list(low), list(high), arm, dashed)


def tuning_tables(found: Comparison[Any]) -> list[Table]:
    """What tuning tried and chose: the brackets of every axis, and every run; none if nothing was tuned."""
    if not found.tuned:
        return []
    seeds = found.claim.fields.tuning_seeds
    note = f"Seeds {seeds}, which the comparison does not use."
    rows, brackets = [], []
    for plan, record in found.tuned:
        rows.append([found.claim.arm(plan.arm).label, str(plan.seed), " ".join(plan.point), _loss(record.loss)])
    for name, tuning in found.tunings.items():
        for axis, bracket in tuning.brackets.items():
            losses = ", ".join(f"{value:g}: {_loss(loss)}" for value, loss in bracket.losses.items())
            chosen = f"{(tuning.point or {}).get(axis, bracket.best):g}"
            brackets.append([found.claim.arm(name).label, axis, losses, chosen, "" if bracket.is_inside else "an end"])
    words = f"{note} Means over them, by value; the last bracket of each hyperparameter."
    return [
        Table(
            "Tuning, hyperparameter by hyperparameter", ["arm", "axis", "losses", "chosen", "optimum"], brackets, words
        ),
        Table("Everything that tuning tried", ["arm", "seed", "point", "val/loss"], rows, note),
    ]


def lines(found: Comparison[Any], points: Callable[[str], Iterable[tuple[float, float | None]]]) -> list[Series]:
    """A series of (x, y) for every arm that has any; points: those of an arm by its name."""
    series = [points_series(arm.label, arm.name, points(arm.name)) for arm in found.claim.arms]
    return [each for each in series if each.x]


def bars(found: Comparison[Any], values: Callable[[str], Iterable[float | None]]) -> list[Series]:
    """A bar for every arm that has values: their mean and extremes; values: those of an arm by its name."""
    series = lines(found, lambda arm: [(0.0, value) for value in values(arm)])
    return [replace(each, x=[each.name]) for each in series]


def losses_figure(found: Comparison[Any]) -> Figure:
    """Bars of every arm's final loss over T."""
    budget = found.claim.fields.budget
    series = bars(found, lambda arm: records.losses(found.compared, arm, budget).values())
    caption = f"After {found.claim.fields.budget:,} steps; mean over seeds, and the extremes."
    return Figure("losses", "Final loss", "bars", Axis("arm"), Axis(LOSS), series, caption=caption)


def besides_table(found: Comparison[Any], purpose: str, title: str, note: str) -> list[Table]:
    """The runs of a purpose beside the compared ones of the same arm and seed; none if there are none."""
    rows = []
    for plan, record in (run for run in found.besides if run.plan.purpose == purpose):
        own = records.losses(found.compared, plan.arm, plan.steps).get(plan.seed)
        arm, compared = found.claim.arm(plan.arm).label, "" if own is None else numbers.loss(own)
        rows.append([arm, str(plan.seed), _loss(record.loss), compared])
    return [Table(title, ["arm", "seed", "val/loss", "as compared"], rows, note)] if rows else []


def cost_figures(found: Comparison[Any]) -> list[Figure]:
    """Bars of what the arms cost and of the diagnostics that the claim shows; no figure of what no arm has."""
    figures = [_step_time_figure(found)] if found.ratios else []
    megabytes, caption = "MB (10^6 bytes)", f"Mean and extremes of the compared runs, protocol {found.protocol.name}."
    quantities: list[tuple[str, str, str, Callable[[Record], float | None]]] = [
        ("state-memory", "Optimizer state", megabytes, lambda record: _mega(record.state_bytes)),
        ("peak-memory", "Peak memory of the process", megabytes, lambda record: _mega(record.peak_bytes)),
        ("clipped", "Steps with a clipped gradient", "share of steps", lambda record: record.clipped_share),
    ]
    for key in found.claim.fields.shows:
        name = diagnostic_name(key)
        quantities.append((file_name(name), name.capitalize(), f"{name}, mean over the last half", diagnostic(key)))
    for file, title, unit, value in quantities:
        series = bars(found, lambda arm, value=value: [value(run.record) for run in _of(found, arm)])  # type: ignore[misc]  # mypy#12557
        figures.append(Figure(file, title, "bars", Axis("arm"), Axis(unit), series, caption=caption))
    return [figure for figure in figures if figure.series]


def diagnostic(key: str) -> Callable[[Record], float | None]:
    """What has that diagnostic of a record."""
    return lambda record: record.diagnostics.get(key)


def file_name(name: str) -> str:
    """A figure's, from words."""
    return name.replace(" ", "-").replace("/", "-")


def _step_time_figure(found: Comparison[Any]) -> Figure:
    claim, ratios, series = found.claim, found.ratios, []
    for arm in claim.arms:
        if arm is claim.baseline:
            series.append(Series(arm.label, [arm.label], [1.0], arm=arm.name))
        elif ratio := ratios.get((arm.name, claim.baseline.name)):
            bar = Series(arm.label, [arm.label], [ratio.estimate], arm=arm.name)
            if math.isfinite(ratio.high):  # else there were too few rounds
                bar.low, bar.high = [ratio.low], [ratio.high]
            series.append(bar)
    return Figure(
        "step-time",
        "Time per step",
        "bars",
        Axis("arm"),
        Axis(f"seconds per step, {claim.baseline.label} = 1"),
        series,
        caption="Median over rounds and its 95 % interval; all arms interleaved in one process.",
        hline=1.0,
        hline_label=claim.baseline.label,
    )


def diagnostics_table(found: Comparison[Any]) -> Table:
    """What every arm costs, the diagnostics that the claim shows, and how many of its runs diverged."""
    shows = found.claim.fields.shows
    columns = ["arm", "optimizer state, MB", "peak memory, MB", "clipped steps", *map(diagnostic_name, shows)]
    columns += ["FLOPs per step", "seconds per step beside the baseline", "diverged runs"]
    rows = []
    for arm in found.claim.arms:
        own = [run.record for run in _of(found, arm.name)]
        ratio = found.ratios.get((arm.name, found.claim.baseline.name))
        flops = records.flops_per_step(found.compared, arm.name)
        rows.append(
            [
                arm.label,
                text(_mega(average([record.state_bytes for record in own]))),
                text(_mega(average([record.peak_bytes for record in own]))),
                text(average([record.clipped_share for record in own])),
                *(text(average([record.diagnostics.get(key) for record in own])) for key in shows),
                "" if flops is None else numbers.flops(flops),
                "" if ratio is None else _ratio_text(ratio),
                str(sum(record.status == "diverged" for record in own)),
            ]
        )
    note = (
        f"Means over the compared runs, protocol {found.protocol.name}; peak memory is the process's. MB: 10^6 bytes."
    )
    return Table("Diagnostics", columns, rows, note)


def average(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def text(value: float | None) -> str:
    """A number in a table; empty for None."""
    return "" if value is None else numbers.digits(value)


def _of(found: Comparison[Any], arm: str) -> list[Recorded]:
    return [run for run in found.compared if run.plan.arm == arm]


def _loss(value: float | None) -> str:
    return numbers.loss(value) if value is not None and math.isfinite(value) else "diverged"


def _ratio_text(ratio: Interval) -> str:
    row = judged("step_time", "", "x", ratio, Expected(None, 1.0))
    return f"{numbers.estimate(row)} ({numbers.bounds(row)})"


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _number(value: float | None) -> float:
    return math.nan if value is None else value
