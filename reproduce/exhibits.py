"""The figures and tables of a claim's training runs."""

import math
from collections.abc import Callable, Mapping, Sequence

from report.results import Axis, Figure, Series, Table
from reproduce import measures
from reproduce.claims import Claim, Point
from reproduce.measures import Measured, Ratios, Record
from reproduce.protocols import HALF, WHOLE, Outcomes, Protocol, steps_of

AXES = ("step", "tokens", "flops", "seconds")
LOSS, STEPS = "val/loss (nats per token)", "optimizer steps"
DIAGNOSTICS: Mapping[str, tuple[str, str, Callable[[Record], float | None]]] = {  # name -> title, unit, value
    "state-memory": ("Optimizer state", "MB (10^6 bytes)", lambda record: _mega(record.state_bytes)),
    "peak-memory": ("Peak memory of the process", "MB (10^6 bytes)", lambda record: _mega(record.peak_bytes)),
    "clipped": ("Steps with a clipped gradient", "share of steps", lambda record: record.clipped_share),
    "win-rate": ("Win rate", "share of coordinates not clipped", lambda record: record.win_rate),
}


def curves_figure(claim: Claim, protocol: str, compared: Sequence[Measured]) -> Figure:
    """The mean curve of every arm at T/2 and T."""
    series, columns = [], []
    for arm in claim.arms:
        for fraction in (HALF, WHOLE):
            steps = steps_of(claim, fraction)
            runs = [run for run in compared if (run.plan.arm, run.plan.steps) == (arm.name, steps)]
            curve = measures.mean_curves(runs)
            if not curve["step"]:
                continue
            rows = [n for n in range(len(curve["step"])) if all(curve[key][n] is not None for key in AXES)]
            name = f"{arm.label}, {steps:,} steps"
            y, low, high = ([curve[key][n] for n in rows] for key in ("val/loss", "low", "high"))
            steps_axis = [_number(curve["step"][n]) for n in rows]
            series.append(Series(name, steps_axis, y, low, high, arm.name, dashed=fraction == HALF))
            columns.append({key: [_number(curve[key][n]) for n in rows] for key in AXES})
    labels = {"tokens": "tokens", "flops": "FLOPs, curvature passes included", "seconds": "seconds in training steps"}
    caption = "Mean over seeds; the band spans the seeds. Every length has a learning-rate schedule of its own."
    return Figure(
        f"curves-{protocol}",
        f"Validation loss, protocol {protocol}",
        "lines",
        Axis(STEPS),
        Axis(LOSS),
        series,
        {label: [column[key] for column in columns] for key, label in labels.items()},
        caption,
    )


def budgets_figure(claim: Claim, protocol: str, compared: Sequence[Measured]) -> Figure:
    """Final loss against the number of steps, each point a run with its own schedule."""
    series = []
    for arm in claim.arms:
        found: dict[float, list[float]] = {}
        for points in measures.budgets(compared, arm.name).values():
            for steps, loss in points:
                if loss is not None:
                    found.setdefault(steps, []).append(loss)
        x = sorted(found)
        if x:
            y = [sum(found[steps]) / len(found[steps]) for steps in x]
            low, high = [min(found[steps]) for steps in x], [max(found[steps]) for steps in x]
            series.append(Series(arm.label, x, list(y), list(low), list(high), arm.name))
    level = _average(list(measures.losses(compared, claim.baseline.name, claim.budget).values()))
    return Figure(
        f"budgets-{protocol}",
        f"Final loss by length of the run, protocol {protocol}",
        "lines",
        Axis(f"{STEPS}, each run with its own full schedule"),
        Axis(LOSS),
        series,
        caption="Mean over seeds, and the extremes. A candidate as fast as claimed meets the dashed line left of T.",
        hline=level,
        hline_label=f"{claim.baseline.label}, {claim.budget:,} steps" if level is not None else "",
    )


def sweep_figure(claim: Claim, swept: Sequence[Measured], compared: Sequence[Measured]) -> Figure:
    """Every point of the sweep, and fresh seeds of those chosen."""
    series = []
    for arm in claim.arms:
        points = sweep_points(swept, arm.name)
        series.append(Series(arm.label, [x for x, _ in points], [y for _, y in points], arm=arm.name))
        fresh: dict[float, list[float]] = {}
        for x, y in sweep_points(compared, arm.name):
            if y is not None:
                fresh.setdefault(x, []).append(y)
        if fresh:
            means: list[float | None] = [sum(values) / len(values) for values in fresh.values()]
            low: list[float | None] = [min(values) for values in fresh.values()]
            high: list[float | None] = [max(values) for values in fresh.values()]
            series.append(Series(f"{arm.label}, fresh seeds", list(fresh), means, low, high, arm.name, dashed=True))
    caption = f"After {claim.budget:,} steps. A gap in a line is a run that diverged."
    axis = Axis(str(claim.fields["axis"]), log=True)
    return Figure("sweep", f"Loss against {claim.fields['axis']}", "lines", axis, Axis(LOSS), series, caption=caption)


def sweep_table(claim: Claim, swept: Sequence[Measured], compared: Sequence[Measured]) -> Table:
    """Every arm's best point, and how much of the axis is nearly as good."""
    tolerances = claim.fields.get("near", (0.05, 0.2))
    columns = ["arm", f"best {claim.fields['axis']}", "its loss in the sweep", "with fresh seeds"]
    columns += [f"share of the range within {tolerance:g} nats of the best" for tolerance in tolerances]
    rows = []
    for arm in claim.arms:
        points = sweep_points(swept, arm.name)
        known = [(y, x) for x, y in points if y is not None]
        fresh = [run.record.loss for run in compared if run.plan.arm == arm.name]
        shares = [measures.share_near_best(points, tolerance) for tolerance in tolerances]
        best = min(known, default=(None, None))
        rows.append([arm.label, _text(best[1]), _text(best[0]), _mean_text(fresh), *map(_text, shares)])
    return Table("The sweep in short", columns, rows, "The range is measured on a logarithmic axis.")


def tuning_table(claim: Claim, protocol: Protocol, outcomes: Outcomes) -> list[Table]:
    """Everything that a protocol's tuning tried; none if it tunes nothing."""
    runs = protocol.tuning(outcomes)
    if not runs:
        return []
    rows = []
    for run in runs:
        loss = outcomes[run.config_hash]
        text = "diverged" if loss is None else f"{loss:.4f}"
        rows.append([claim.arm(run.arm).label, run.purpose, f"{run.steps:,}", " ".join(run.point), text])
    note = f"Seed {claim.fields['tuning_seed']}, which the comparison does not use."
    return [Table("Everything that tuning tried", ["arm", "purpose", "steps", "point", "val/loss"], rows, note)]


def cost_figures(claim: Claim, protocol: str, compared: Sequence[Measured], ratios: Ratios) -> list[Figure]:
    """Bars of what the arms cost and of their diagnostics; no figure of what no arm has."""
    figures = [_step_time_figure(claim, ratios)] if ratios else []
    for name, (title, unit, value) in DIAGNOSTICS.items():
        series = []
        for arm in claim.arms:
            values = (value(run.record) for run in compared if run.plan.arm == arm.name)
            if known := [each for each in values if each is not None]:
                mean = sum(known) / len(known)
                series.append(Series(arm.label, [arm.label], [mean], [min(known)], [max(known)], arm.name))
        caption = f"Mean and extremes of the compared runs, protocol {protocol}."
        figures.append(Figure(name, title, "bars", Axis("arm"), Axis(unit), series, caption=caption))
    return [figure for figure in figures if figure.series]


def _step_time_figure(claim: Claim, ratios: Ratios) -> Figure:
    series = []
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


def diagnostics_table(claim: Claim, protocol: str, compared: Sequence[Measured], ratios: Ratios) -> Table:
    """What every arm costs, its diagnostics, and how many of its runs diverged."""
    columns = ["arm", "optimizer state, MB", "peak memory, MB", "clipped steps", "win rate", "FLOPs per step"]
    columns += ["seconds per step beside the baseline", "diverged runs"]
    rows = []
    for arm in claim.arms:
        records = [run.record for run in compared if run.plan.arm == arm.name]
        ratio = ratios.get((arm.name, claim.baseline.name))
        flops = measures.flops_per_step(compared, arm.name)
        rows.append(
            [
                arm.label,
                _text(_mega(_average([record.state_bytes for record in records]))),
                _text(_mega(_average([record.peak_bytes for record in records]))),
                _text(_average([record.clipped_share for record in records])),
                _text(_average([record.win_rate for record in records])),
                _text(flops),
                "" if ratio is None else f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
                str(sum(record.status == "diverged" for record in records)),
            ]
        )
    note = f"Means over the compared runs, protocol {protocol}; peak memory is the process's. MB: 10^6 bytes."
    return Table("Diagnostics", columns, rows, note)


def sweep_points(runs: Sequence[Measured], arm: str) -> list[tuple[float, float | None]]:
    """(x, loss) of an arm's runs, by rising x: the number in the first override of each point."""
    points = [(axis_value(run.plan.point), run.record.loss) for run in runs if run.plan.arm == arm]
    return sorted(points, key=lambda point: point[0])


def axis_value(point: Point) -> float:
    """A point's place on the axis of its sweep."""
    return float(point[0].partition("=")[2])


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _mean_text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    failed = f"; {len(values) - len(known)} diverged" if len(known) < len(values) else ""
    return f"{_text(_average(known))} (n = {len(known)}{failed})"
