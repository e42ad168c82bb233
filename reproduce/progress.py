"""How far a claim has come that is not finished, from the atlas alone: runs done, and hours that are left."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from launch import run_files
from report.results import Table
from reproduce import claims, protocols
from reproduce.atlas import Atlas
from reproduce.claim import Claim
from reproduce.plans import Planned
from reproduce.records import Record


@dataclass(frozen=True)
class Progress:
    """done, left: runs, the latter as if every optimum were where tuning starts. hours_left: None if unknown."""

    claim: str
    scale: str
    done: int
    left: int
    hours_done: float
    hours_left: float | None


def begun(root: Path, done: Collection[tuple[str, str]]) -> list[Progress]:
    """All claims, at every scale, that have runs in the atlases below root but are not among the done (claim, scale).

    Those that are nowhere done and have no run anywhere are in it once, with the first of their scales.

    Raises: ClaimError, RecordsError, ReadingError: if a claim or a run cannot be read.
    """
    found = []
    for name in claims.names():
        scales = claims.scales(name)
        open_ = [scale for scale in scales if (name, scale) not in done and any(root.glob(f"{scale}-*"))]
        known = [each for scale in open_ if (each := progress(claims.load(name, scale), root)) is not None]
        is_new = not known and not any((name, scale) in done for scale in scales)
        found += [Progress(name, scales[0], 0, 0, 0.0, None)] if is_new else known
    return found


def progress(claim: Claim[Any], root: Path) -> Progress | None:
    """How far the claim has come in the atlases below root; None if it has not begun, or trains nothing.

    Raises: RecordsError, ReadingError: if a run is damaged.
    """
    wanted = protocols.of(claim)
    atlases = {each.name: Atlas(root, each.claim) for each in wanted}
    outcomes: dict[str, float | None] = {}
    done: list[tuple[Planned, Record]] = []
    while batch := protocols.next_runs(wanted, outcomes):
        found = [(run, record) for run in batch if (record := _finished(atlases[run.protocol], run)) is not None]
        done += found
        outcomes |= {run.config_hash: record.loss for run, record in found}
        if len(found) < len(batch):
            break
    if not done:
        return None
    per_step = [record.seconds / run.steps for run, record in done if record.seconds]
    rest = protocols.expected(wanted, outcomes)
    hours_left = sum(run.own_steps for run in rest) * median(per_step) / 3600 if per_step else None
    return Progress(claim.id, claim.scale, len(done), len(rest), _hours(done), hours_left)


def table(rows: Sequence[Progress]) -> Table:
    """For the ledger."""
    cells = [
        [
            each.claim,
            each.scale,
            str(each.done),
            f"about {each.left}" if each.done else "not begun",
            f"{each.hours_done:.1f}",
            "?" if each.hours_left is None else f"{each.hours_left:.1f}",
        ]
        for each in rows
    ]
    columns = ["claim", "scale", "runs done", "runs left", "hours done", "hours left"]
    note = (
        "Hours of training, one run at a time. What is left is a forecast: as if every optimum lay where tuning "
        "starts, at the median seconds per step of the runs that are done."
    )
    return Table("Begun, and not finished", columns, cells, note)


def _finished(atlas: Atlas, planned: Planned) -> Record | None:
    if not run_files.is_run(atlas.place(planned)):
        return None
    record = atlas.read(planned)
    return record if record.status in ("finished", "diverged") else None


def _hours(done: Sequence[tuple[Planned, Record]]) -> float:
    return sum((record.seconds or 0.0) * run.own_steps / run.steps for run, record in done) / 3600
