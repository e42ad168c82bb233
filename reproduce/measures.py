"""Run directories to numbers: curves, final losses, what they cost, and the losses at equal cost.

A diverged run has no loss (None) and stays: whoever averages must say what becomes of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from reproduce.protocols import Planned
from reproduce.statistics import Interval
from trainer.metrics import read_rows

COLUMNS = ("step", "tokens", "flops", "seconds", "val/loss")
Losses = Mapping[int, float | None]  # seed -> final val/loss
Ratios = Mapping[tuple[str, str], Interval]  # (candidate, baseline) -> seconds per step, as a ratio


class MeasuresError(ValueError):
    """Runs that cannot be compared, or no runs; one clear line."""


@dataclass(frozen=True)
class Record:
    """What a run directory says."""

    status: str  # "finished", "diverged", "stopped", or "unfinished"
    step: int
    loss: float | None  # final val/loss; None unless finished
    seconds: float | None
    flops: float | None
    curve: dict[str, list[float | None]]  # COLUMNS, where val/loss was measured
    peak_bytes: float | None = None
    state_bytes: float | None = None
    clipped_share: float | None = None
    win_rate: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0  # seconds since the epoch

    @property
    def data(self) -> dict[str, str]:
        """Checksums by split."""
        return dict(self.environment.get("data") or {})

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of results.Run that a run directory knows."""
        return {
            "status": self.status,
            "loss": self.loss if self.loss is not None and math.isfinite(self.loss) else None,
            "seconds": self.seconds,
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "clipped_share": self.clipped_share,
            "win_rate": self.win_rate,
            "commit": (self.environment.get("git") or {}).get("commit"),
        }


class Measured(NamedTuple):
    """A planned run and what came of it."""

    plan: Planned
    record: Record


def read(run_dir: Path) -> Record:
    """The record of a run directory.

    Raises: MeasuresError: if there is no run.
    """
    if not (run_dir / "config.yaml").is_file():
        raise MeasuresError(f"{run_dir} holds no run: it has no config.yaml; give the directory of a run")
    file = run_dir / "result.json"
    result = json.loads(file.read_bytes()) if file.is_file() else {}
    metrics, environment = run_dir / "metrics.jsonl", run_dir / "env.json"
    rows = read_rows(metrics) if metrics.is_file() else []
    finished = result.get("status") == "finished"
    return Record(
        status=result.get("status", "unfinished"),
        step=int(result.get("step", rows[-1]["step"] if rows else 0)),
        loss=result.get("val/loss") if finished else None,
        seconds=result.get("seconds"),
        flops=result.get("flops"),
        curve=_columns(rows),
        peak_bytes=_last(rows, "memory/peak_bytes"),
        state_bytes=_last(rows, "optim/state_bytes"),
        clipped_share=_clipped_share(rows),
        win_rate=_mean(rows, "optim/win_rate"),
        environment=json.loads(environment.read_bytes()) if environment.is_file() else {},
        ended=file.stat().st_mtime if result else 0.0,
    )


def check_same_data(records: Mapping[str, Record]) -> None:
    """Raises: MeasuresError: if two runs, by name, were validated on different data."""
    known = {name: record.data["val"] for name, record in records.items() if "val" in record.data}
    first = next(iter(known), None)
    for name, checksum in known.items():
        if first is not None and checksum != known[first]:
            raise MeasuresError(
                f"{first} and {name} have different validation data (checksums {known[first][:12]} and "
                f"{checksum[:12]}), so their losses do not compare"
            )


def losses(runs: Sequence[Measured], arm: str, steps: int) -> dict[int, float | None]:
    """Final losses of an arm's runs over so many steps, by seed."""
    return {run.plan.seed: run.record.loss for run in runs if (run.plan.arm, run.plan.steps) == (arm, steps)}


def budgets(runs: Sequence[Measured], arm: str) -> dict[int, list[tuple[float, float | None]]]:
    """By seed, (steps, final loss) of an arm's runs, each with a full schedule of its own, shortest first."""
    found: dict[int, dict[float, float | None]] = {}
    for run in runs:
        if run.plan.arm == arm:
            found.setdefault(run.plan.seed, {})[float(run.plan.steps)] = run.record.loss
    return {seed: sorted(points.items()) for seed, points in found.items()}


def flops_per_step(runs: Sequence[Measured], arm: str) -> float | None:
    """Of an arm, curvature passes included: the longest run's, in which they are spread best."""
    known = [run for run in runs if run.plan.arm == arm and run.record.flops and run.record.step]
    longest = max(known, key=lambda run: run.record.step, default=None)
    return None if longest is None else (longest.record.flops or 0.0) / longest.record.step


def losses_at(runs: Sequence[Measured], arm: str, steps: float) -> dict[int, float | None]:
    """Final losses that runs over so many steps would have, by seed, between those over fewer and more.

    Straight between neighbours on a logarithmic axis of steps. None where a neighbour is missing or diverged.
    """
    return {seed: between(points, steps) for seed, points in budgets(runs, arm).items()}


def between(points: Sequence[tuple[float, float | None]], x: float) -> float | None:
    """y at x on straight lines over log x; points by rising x."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1 and y0 is not None and y1 is not None:
            return y0 + (y1 - y0) * math.log(x / x0) / math.log(x1 / x0)
    return None


def share_near_best(points: Sequence[tuple[float, float | None]], tolerance: float) -> float | None:
    """The share of the logarithmic range of x in which y stays within the tolerance of the best one.

    points: by rising x. Straight lines over log x between neighbours; next to a None (a diverged run) it does not.
    """
    known = [y for _, y in points if y is not None]
    if not known or len(points) < 2:
        return None
    level = min(known) + tolerance
    near = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        near += math.log(x1 / x0) * _share_below(y0, y1, level)
    return near / math.log(points[-1][0] / points[0][0])


def mean_curves(runs: Sequence[Measured]) -> dict[str, list[float | None]]:
    """The mean over runs that differ in the seed alone, row by row; low and high are the extremes of val/loss."""
    curves = [run.record.curve for run in runs if run.record.curve["step"]]
    n = min((len(curve["step"]) for curve in curves), default=0)
    mean: dict[str, list[float | None]] = {column: [] for column in (*COLUMNS, "low", "high")}
    for row in range(n):
        for column in COLUMNS:
            values = [curve[column][row] for curve in curves]
            known = [value for value in values if value is not None]
            mean[column].append(sum(known) / len(known) if len(known) == len(values) else None)
        found = [value for value in (curve["val/loss"][row] for curve in curves) if value is not None]
        mean["low"].append(min(found, default=None))
        mean["high"].append(max(found, default=None))
    return mean


def _share_below(y0: float | None, y1: float | None, level: float) -> float:
    if y0 is None or y1 is None:
        return 0.0
    low, high = min(y0, y1), max(y0, y1)
    if high <= level:
        return 1.0
    return (level - low) / (high - low) if low < level else 0.0


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    kept = [row for row in rows if "val/loss" in row]
    return {column: [row.get(column) for row in kept] for column in COLUMNS}


def _last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((float(row[key]) for row in reversed(rows) if row.get(key) is not None), None)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _clipped_share(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The count is of the steps up to and with the row's own."""
    last = next((row for row in reversed(rows) if "clipped_steps" in row), None)
    return None if last is None else float(last["clipped_steps"]) / (last["step"] + 1)
