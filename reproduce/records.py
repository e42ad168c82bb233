"""Run directories to records: curves, final losses, what they cost, and the losses at equal cost.

A diverged run has no loss (None) and stays: whoever averages must say what becomes of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from files.errors import shown
from files.reading import number
from inference.intervals import Interval
from launch import run_files
from reproduce.plans import Planned
from reproduce.training import DIAGNOSTIC

COLUMNS = ("step", "tokens", "flops", "seconds", "val/loss")
Losses = Mapping[int, float | None]  # seed -> final val/loss
Ratios = Mapping[tuple[str, str], Interval]  # (candidate, baseline) -> seconds per step, as a ratio


class RecordsError(ValueError):
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
    bits_per_byte: float | None = None  # final val/bits_per_byte; None unless finished
    peak_bytes: float | None = None
    state_bytes: float | None = None
    clipped_share: float | None = None  # of the steps after the first quarter
    diagnostics: dict[str, float] = field(default_factory=dict)  # optim/...: means over the rows of the last half
    environment: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0  # seconds since the epoch

    def __post_init__(self) -> None:
        if self.loss is not None and number(self.loss) is None:
            object.__setattr__(self, "loss", None)
            object.__setattr__(self, "status", "diverged")

    @property
    def data(self) -> dict[str, str]:
        """Checksums by split."""
        return dict(self.environment.get("data") or {})

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of results.Run that a run directory knows."""
        return {
            "status": self.status,
            "loss": number(self.loss),
            "bits_per_byte": number(self.bits_per_byte),
            "seconds": self.seconds,
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "clipped_share": self.clipped_share,
            "commit": (self.environment.get("git") or {}).get("commit"),
        }


class Recorded(NamedTuple):
    """A planned run and what its directory says of it."""

    plan: Planned
    record: Record


def read(run_dir: Path) -> Record:
    """The record of a run directory.

    Raises: RecordsError: if there is no run. ReadingError: if one of its files is damaged.
    """
    if not run_files.is_run(run_dir):
        raise RecordsError(f"{run_dir} holds no run: it has no config.yaml; give the directory of a run")
    result, environment = run_files.read_result(run_dir), run_files.read_environment(run_dir)
    rows = _Rows(run_dir)
    step = (result or {}).get("step")
    is_finished = result is not None and result["status"] == "finished"
    return Record(
        status=result["status"] if result else "unfinished",
        step=rows.last_step if step is None else step,
        loss=result["val/loss"] if result and is_finished else None,
        bits_per_byte=result["val/bits_per_byte"] if result and is_finished else None,
        seconds=result["seconds"] if result else None,
        flops=result["flops"] if result else None,
        curve=rows.curve(),
        peak_bytes=rows.last.get("memory/peak_bytes"),
        state_bytes=rows.last.get("optim/state_bytes"),
        clipped_share=rows.clipped_share,
        diagnostics=rows.diagnostics,
        environment=environment,
        ended=(run_dir / run_files.RESULT).stat().st_mtime if result else 0.0,
    )


def check_final_loss(run_dir: Path, record: Record) -> None:
    """Raises: RecordsError: if the final loss is not that of the evaluation after the last step."""
    steps, losses = record.curve["step"], record.curve["val/loss"]
    at_end = [loss for step, loss in zip(steps, losses, strict=True) if step == record.step]
    if record.loss is not None and at_end and number(at_end[-1]) != record.loss:
        raise RecordsError(
            f"{run_dir}: result.json says val/loss={shown(record.loss)}, metrics.jsonl {shown(at_end[-1])} at that "
            "step: one of them was changed; delete the folder, and the same command runs it again"
        )


def check_same_data(checksums: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that all runs had the same data; checksums: by name, those of its splits.

    Raises: RecordsError: if two had not.
    """
    for split, words in (("val", "validation"), ("train", "training")):
        known = {name: splits[split] for name, splits in checksums.items() if split in splits}
        first = next(iter(known), None)
        for name, checksum in known.items():
            if first is not None and checksum != known[first]:
                raise RecordsError(
                    f"{first} and {name} have different {words} data (checksums {known[first][:12]} and "
                    f"{checksum[:12]}), so their losses do not compare"
                )


def of_length(runs: Sequence[Recorded], arm: str, steps: int) -> list[Recorded]:
    """An arm's runs over so many steps."""
    return [run for run in runs if (run.plan.arm, run.plan.steps) == (arm, steps)]


def losses(runs: Sequence[Recorded], arm: str, steps: int) -> dict[int, float | None]:
    """Final losses of an arm's runs over so many steps, by seed."""
    return {run.plan.seed: run.record.loss for run in of_length(runs, arm, steps)}


def budgets(runs: Sequence[Recorded], arm: str) -> dict[int, list[tuple[float, float | None]]]:
    """By seed, (steps, final loss) of an arm's runs, each with a full schedule of its own, shortest first."""
    found: dict[int, dict[float, float | None]] = {}
    for run in runs:
        if run.plan.arm == arm:
            found.setdefault(run.plan.seed, {})[float(run.plan.steps)] = run.record.loss
    return {seed: sorted(points.items()) for seed, points in found.items()}


def flops_per_step(runs: Sequence[Recorded], arm: str) -> float | None:
    """Returns the FLOPs per step of an arm's longest run, in which curvature passes weigh most evenly."""
    known = [run for run in runs if run.plan.arm == arm and run.record.flops and run.record.step]
    longest = max(known, key=lambda run: run.record.step, default=None)
    return None if longest is None else (longest.record.flops or 0.0) / longest.record.step


def losses_at(runs: Sequence[Recorded], arm: str, steps: float) -> dict[int, float | None]:
    """Final losses that runs over so many steps would have, by seed, between those over fewer and more.

    Straight between neighbours on a logarithmic axis of steps. None where a neighbour is missing or diverged.
    """
    return {seed: between(points, steps) for seed, points in budgets(runs, arm).items()}


def between(points: Sequence[tuple[float, float | None]], x: float) -> float | None:
    """y at x on straight lines over log x; points by rising x."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1 and is_finite(y0) and is_finite(y1):
            return y0 + (y1 - y0) * math.log(x / x0) / math.log(x1 / x0)
    return None


def undecayed(run: Recorded, step: int) -> float | None:
    """The loss that a run had at a step on its way, None if none was measured there."""
    curve = run.record.curve
    return next((loss for at, loss in zip(curve["step"], curve["val/loss"], strict=True) if at == step), None)


def share_near_best(points: Sequence[tuple[float, float | None]], tolerance: float) -> float | None:
    """The share of the logarithmic range of x in which y stays within the tolerance of the best one.

    points: by rising x. Straight lines over log x between neighbours; next to a None (a diverged run) it does not.
    """
    known = [y for _, y in points if is_finite(y)]
    if not known or len(points) < 2:
        return None
    level = min(known) + tolerance
    near = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        near += math.log(x1 / x0) * _share_below(y0, y1, level)
    return near / math.log(points[-1][0] / points[0][0])


def mean_curves(runs: Sequence[Recorded]) -> dict[str, list[float | None]]:
    """The mean over runs that differ in the seed alone, row by row; low and high are the extremes of val/loss."""
    curves = [_by_step(run.record.curve) for run in runs if run.record.curve["step"]]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    mean: dict[str, list[float | None]] = {column: [] for column in (*COLUMNS, "low", "high")}
    for step in steps:
        for column in COLUMNS:
            values = [curve[step][column] for curve in curves]
            known = [value for value in values if is_finite(value)]
            mean[column].append(sum(known) / len(known) if len(known) == len(values) else None)
        found = [value for curve in curves if is_finite(value := curve[step]["val/loss"])]
        mean["low"].append(min(found, default=None))
        mean["high"].append(max(found, default=None))
    return mean


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether it is a number to reckon with; whoever ranks losses puts any other last."""
    return number(value) is not None


class _Rows:
    """What is kept of metrics.jsonl while its rows go by: evaluations, the last of some numbers, the mean of others.

    Of two rows with an evaluation at the same step the later one counts. Counts leave out the first quarter of the
    steps, and diagnostics the first half: the start says little about the run (check R9).
    """

    LAST = ("memory/peak_bytes", "optim/state_bytes")
    MOST_EVALUATIONS = 1_000_000

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / run_files.METRICS
        self.last: dict[str, float] = {}
        self.last_step = 0
        self._clipped: list[tuple[int, float]] = []  # (steps, how many of them were clipped)
        self._diagnostics: dict[str, list[tuple[int, float]]] = {}  # by name, (step, value)
        self._evaluations: dict[int, dict[str, float | None]] = {}
        for row in run_files.read_rows(run_dir):
            self.last_step = max(self.last_step, row["step"])
            for key in self.LAST:
                if (found := run_files.number_in(row, key, path)) is not None:
                    self.last[key] = found
            if (clipped := run_files.number_in(row, "clipped_steps", path)) is not None:
                self._clipped.append((row["step"] + 1, clipped))  # the count is of the steps up to and with its own
            self._add_diagnostics(row, path)
            if "val/loss" in row:
                self._evaluations[row["step"]] = {key: run_files.number_in(row, key, path) for key in COLUMNS}
                if len(self._evaluations) > self.MOST_EVALUATIONS:
                    raise RecordsError(f"{path} has more than {self.MOST_EVALUATIONS:,} evaluations")

    def curve(self) -> dict[str, list[float | None]]:
        """COLUMNS, by rising step."""
        rows = [self._evaluations[step] for step in sorted(self._evaluations)]
        return {column: [row[column] for row in rows] for column in COLUMNS}

    @property
    def clipped_share(self) -> float | None:
        """Of the steps after the first quarter; of a single row, of all its steps."""
        if not self._clipped:
            return None
        last_steps, last = self._clipped[-1]
        early = [each for each in self._clipped[:-1] if each[0] <= last_steps / 4]
        steps, count = early[-1] if early else (0, 0.0)
        return (last - count) / (last_steps - steps)

    @property
    def diagnostics(self) -> dict[str, float]:
        """Their means over the rows of the last half."""
        late = {
            key: [value for step, value in rows if step >= self.last_step / 2]
            for key, rows in self._diagnostics.items()
        }
        means = {key: number(sum(values) / len(values)) for key, values in late.items() if values}
        return {key: mean for key, mean in means.items() if mean is not None}

    def _add_diagnostics(self, row: Mapping[str, Any], path: Path) -> None:
        for key in row:
            found = run_files.number_in(row, key, path) if key.startswith(DIAGNOSTIC) else None
            if found is not None and key not in self.LAST:
                self._diagnostics.setdefault(key, []).append((row["step"], found))


def _by_step(curve: Mapping[str, Sequence[float | None]]) -> dict[float, dict[str, float | None]]:
    rows = (dict(zip(curve, values, strict=True)) for values in zip(*curve.values(), strict=True))
    return {step: row for row in rows if (step := row["step"]) is not None}


def _share_below(y0: float | None, y1: float | None, level: float) -> float:
    if not is_finite(y0) or not is_finite(y1):
        return 0.0
    low, high = min(y0, y1), max(y0, y1)
    if high <= level:
        return 1.0
    return (level - low) / (high - low) if low < level else 0.0
