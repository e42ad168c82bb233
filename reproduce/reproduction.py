"""A claim from start to finish: plan, run, measure, check the regime, write results.json and the report.

Nothing is remembered but the run directories in the atlas (and the step times, which no run holds), so the same command
continues after any interruption and ends with the same results, and claims share what they have in common.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from files.errors import shown
from files.reading import number, read_json
from files.writing import write_text
from inference import verdicts
from inference.intervals import Interval
from launch.job import Job, Outcome
from launch.jobs import run_jobs
from launch.processes import log_path
from report.files import write_report
from report.results import Results, Run, Table, finite, read, write
from reproduce import environments, findings, protocols
from reproduce.atlas import Atlas
from reproduce.claim import Claim
from reproduce.environments import DEVICE
from reproduce.findings import Findings
from reproduce.records import Ratios, Recorded
from reproduce.surroundings import surroundings

RESULTS, STEP_TIMES, ATLAS = "results.json", "step_times.json", "atlas"
RunJobs = Callable[[Sequence[Job]], list[Outcome]]
TimeArms = Callable[[Claim[Any]], Ratios]
Timed = tuple[Ratios, Any]
Call = Callable[[str, Callable[[], Timed]], Timed]


def _in_this_process(what: str, function: Callable[[], Timed]) -> Timed:
    return function()


class ReproductionError(ValueError):
    """A folder that cannot be used; one clear line."""


class RunsFailedError(RuntimeError):
    """Some runs crashed; the same command retries. One line per run, and how many were not started after them."""

    def __init__(self, outcomes: Sequence[Outcome], not_started: int = 0) -> None:
        lines = [f"{each.job.name}: {each.message or each.status}; log: {log_path(each.run_dir)}" for each in outcomes]
        rest = [f"{not_started} more were not started, as they would fail in the same way"] if not_started else []
        super().__init__("\n".join([*lines, *rest]))


def reproduce(
    claim: Claim[Any],
    folder: Path,
    command: str,
    *,
    atlas: Path | None = None,
    run: RunJobs = run_jobs,
    time_arms: TimeArms | None = None,
    call: Call = _in_this_process,
) -> Results:
    """The results of the claim, which are also written to the folder, with the report.

    atlas: the folder of all claims' runs, beside the folder if not given. run: runs jobs, by their own rules skipping
    those that are done. time_arms: step times beside the baselines', if not measured as the claim's kind does. call:
    calls that where runs are.

    Raises: ReproductionError: if the folder holds something else.
    RunsFailedError: if runs crashed; nothing final is written.
    """
    check_folder(folder, claim)
    runs: list[Recorded] = []
    if wanted := protocols.of(claim):
        root = atlas or folder.parent / ATLAS
        runs = run_all(wanted, root, run, drop_checkpoints=claim.fields.drop_checkpoints)
        ratios, note, timed_on = step_times(claim, folder, time_arms or claim.kind.time_arms, call)
        found = findings.of_training(
            [each.comparison(runs, ratios) for each in wanted],
            lambda each, evidence: surroundings(each, evidence, Atlas(root, each.claim), folder.parent),
        )
        found.notes += [note] if note else []
        found.notes += environments.note([each.record.environment for each in runs], timed_on)
    else:
        found = findings.of_measurement(claim, claim.kind.measure(claim))
    results = assemble(claim, found, runs, command)
    folder.mkdir(parents=True, exist_ok=True)
    write(results, folder / RESULTS)
    write_report(results, folder)
    return results


def check_folder(folder: Path, claim: Claim[Any]) -> None:
    """Raises: ReproductionError or ResultsError: if results of another claim, scale or version lie there."""
    if not (folder / RESULTS).exists():
        return
    before = read(folder / RESULTS)
    if (before.claim, before.scale) != (claim.id, claim.scale):
        raise ReproductionError(
            f"{folder} holds results of claim={before.claim} scale={before.scale}, not of claim={claim.id} "
            f"scale={claim.scale}; choose another out="
        )


def run_all(
    wanted: Sequence[protocols.Protocol[Any]], root: Path, run: RunJobs, *, drop_checkpoints: bool
) -> list[Recorded]:
    """All runs of the protocols, batch by batch, each configuration once; what the run directories then say.

    root: of the atlases.

    Raises: RunsFailedError. RecordsError: if runs had different validation data.
    """
    outcomes: dict[str, float | None] = {}
    done: list[Recorded] = []
    atlases = {each.name: Atlas(root, each.claim) for each in wanted}
    for atlas in atlases.values():
        atlas.check_data()
    while batch := protocols.next_runs(wanted, outcomes):
        ended = run([atlases[planned.protocol].job(planned) for planned in batch])
        if failed := [each for each in ended if each.status not in ("finished", "diverged")]:
            raise RunsFailedError(failed, len(batch) - len(ended))
        for planned in batch:
            record = atlases[planned.protocol].read(planned)
            done.append(Recorded(planned, record))
            outcomes[planned.config_hash] = record.loss
        for atlas in atlases.values():
            atlas.check_data()
    if drop_checkpoints:
        for each in done:
            atlases[each.plan.protocol].drop_checkpoints([each.plan])
    return done


def step_times(
    claim: Claim[Any], folder: Path, time_arms: TimeArms, call: Call = _in_this_process
) -> tuple[Ratios, str, str | None]:
    """Seconds per step of the arms beside each other's, measured once per folder and set of arms; or why not.

    And the device on which they were measured, None if that is not known or none was.
    """
    settings = [claim.common, *((arm.name, arm.overrides) for arm in claim.arms)]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = folder / STEP_TIMES
    known = read_json(path) or {}
    if known.get("key") != key:
        try:
            ratios, device = call("step times", partial(_timed, time_arms, claim))
        except ValueError as error:
            return {}, f"Nothing is known in seconds: {error}", None
        known = {"key": key, DEVICE: device}
        known |= {"ratios": [[*pair, *map(number, interval)] for pair, interval in ratios.items()]}
        write_text(path, json.dumps(known, indent=1, allow_nan=False) + "\n")
    rows = known.get("ratios")
    ratios = dict(_ratio(row, path) for row in (rows if isinstance(rows, list) else [rows]))
    timed_on = known.get(DEVICE)
    return ratios, "", timed_on if ratios and isinstance(timed_on, str) else None


def _timed(time_arms: TimeArms, claim: Claim[Any]) -> tuple[Ratios, Any]:
    """The ratios, and the device on which they were measured."""
    return time_arms(claim), here()[DEVICE]


def _ratio(row: Any, path: Path) -> tuple[tuple[str, str], Interval]:
    """A row of the file; null stands for a bound that is not known, which too few rounds leave infinite.

    Raises: ReproductionError: if it is none.
    """
    is_row = isinstance(row, list) and len(row) == 5 and all(isinstance(name, str) for name in row[:2])
    pairs = zip(row[2:], (None, 0.0, math.inf), strict=True) if is_row else ()
    numbers = [unknown if each is None else number(each) for each, unknown in pairs]
    known = [each for each in numbers if each is not None]
    if len(known) < 3 or min(known) < 0 or not known[0] or not known[2]:
        raise ReproductionError(f"{path}: {shown(row)} is no ratio of step times; delete the file")
    return (row[0], row[1]), Interval(*known)


def assemble(claim: Claim[Any], found: Findings, runs: Sequence[Recorded], command: str) -> Results:
    """Everything that a report shows."""
    return finite(_assembled(claim, found, runs, command))


def _assembled(claim: Claim[Any], found: Findings, runs: Sequence[Recorded], command: str) -> Results:
    last = max(runs, key=lambda each: each.record.ended, default=None)
    ended = last.record.ended if last else time.time()
    of_runs = [each.record.environment for each in runs]
    return Results(
        claim=claim.id,
        title=claim.fields.title,
        scale=claim.scale,
        date=datetime.fromtimestamp(ended, UTC).date().isoformat(),
        command=command,
        source=claim.fields.source,
        contrary=claim.fields.contrary,
        rule=f"{verdicts.RULE} {claim.fields.rule}",
        verdict=found.verdict,
        sentence=found.sentence,
        protocols=found.protocols,
        tuning=found.tuning,
        checks=found.checks,
        key_figure=found.figures[0].name if found.figures else "",
        published=claim.fields.evidence,
        difference=found.difference,
        arms=found.arms,
        runs=[_run(each, getattr(claim.fields, "shows", [])) for each in runs],
        curves={each.plan.name: each.record.curve for each in runs},
        figures=found.figures,
        tables=[*_statements(claim), *found.tables],
        environment=environments.merged(of_runs) if last else here(),
        data=last.record.data if last else {},
        notes=[*claim.fields.notes, *found.notes],
    )


def here() -> dict[str, Any]:
    """What this process computes on."""
    from trainer import environment

    return environment.describe(environment.pick_device("auto"))


def _statements(claim: Claim[Any]) -> list[Table]:
    cells = [[row.statement, row.finding, row.why] for row in claim.fields.statements]
    if not cells:
        return []
    return [Table("The statements, one by one", ["statement", "finding", "why"], cells)]


def _run(each: Recorded, shows: Sequence[str]) -> Run:
    """shows: the diagnostics that are kept."""
    plan, record = each
    return Run(
        name=plan.name,
        arm=plan.arm,
        protocol=plan.protocol,
        purpose=plan.purpose,
        seed=plan.seed,
        steps=plan.steps,
        overrides=list(plan.overrides),
        config_hash=plan.config_hash,
        diagnostics={key: record.diagnostics[key] for key in shows if key in record.diagnostics},
        **record.facts,
    )
