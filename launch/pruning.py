"""Deletes run directories, or the checkpoints in them; says of each why it must stay, if it must.

What another process uses stays, and so does what another run still needs: the trunk of one that has not ended. A
directory that holds more than one run's files stays, too.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.start import recorded
from files.errors import ReadingError
from files.lock import Lock
from files.writing import fsync_folder
from launch.listing import LIVE, ListedRun
from launch.processes import log_path
from launch.run_files import CHECKPOINTS, CONFIG, ENVIRONMENT, EVALUATION, HEARTBEAT, LOCK, METRICS, RESULT
from launch.slurm_runs import record_path

RUNS = "runs"
KINDS = (RUNS, CHECKPOINTS)
ENDED = ("finished", "diverged")
OF_A_RUN = {  # all that train.py and the scripts write into a run directory
    *(CONFIG, ENVIRONMENT, METRICS, RESULT, LOCK, CHECKPOINTS, HEARTBEAT, EVALUATION),
    *("tokenizer.json", "loss.png", "trace.json.gz", "phases.txt", "tensorboard", "wandb", "wandb_id"),
}


@dataclass(frozen=True)
class Candidate:
    """What may be deleted of a run. stays: why it must not be deleted, empty if it may."""

    run: ListedRun
    paths: tuple[Path, ...]
    n_bytes: int
    stays: str = ""


def candidates(
    chosen: Sequence[ListedRun], everything: Sequence[ListedRun], kind: str, queued: Collection[Path]
) -> Iterator[Candidate]:
    """Yields what of the chosen runs to delete: "runs", with what lies beside them, or their "checkpoints".

    everything: all runs that are known, which may need a chosen one. queued: directories of runs in SLURM's queue.
    """
    reasons = {
        run.path: "it is in SLURM's queue" if run.path.resolve() in queued else _reason(run, kind) for run in chosen
    }
    gone = {run.path.resolve() for run in chosen if kind == RUNS and not reasons[run.path]}
    kept = [run for run in everything if run.path.resolve() not in gone]
    needed = {trunk: run for run in kept for trunk in _needed_by(run)}
    for run in chosen:
        folder = run.path / CHECKPOINTS
        paths = [folder] if kind == CHECKPOINTS else [run.path, log_path(run.path), record_path(run.path)]
        there = tuple(path for path in paths if path.exists())
        needing = needed.get(run.path.resolve())
        stays = reasons[run.path] or (f"{needing.progress.name} begins from it" if needing else "")
        stays = stays or ("" if there else "it has none")
        yield Candidate(run, there, sum(map(_size, there)), stays)


def delete(candidate: Candidate) -> None:
    """Deletes it; each path is renamed first, so that what is left of an interrupted deletion is no run.

    Raises: InUseError: if a process uses the run meanwhile. OSError: if something cannot be deleted.
    """
    lock = Lock(candidate.run.path / LOCK)
    try:
        for path in candidate.paths:
            doomed = path.with_name(f".{path.name}.{os.getpid()}.deleted")
            path.rename(doomed)
            if doomed.is_dir():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()
            fsync_folder(path.parent)
    finally:
        lock.release()


def _reason(run: ListedRun, kind: str) -> str:
    """Why the run itself forbids it."""
    if run.state in LIVE:
        return "it is running"
    if kind == CHECKPOINTS and run.state not in ENDED:
        return f"it is {run.state}, and continues from them"
    if kind == RUNS and run.path.is_symlink():
        return "it is a symbolic link"
    if not (run.path / ENVIRONMENT).is_file():
        return f"it has no {ENVIRONMENT}, so train.py has not made it"
    if kind == CHECKPOINTS:
        return "they are a symbolic link" if (run.path / CHECKPOINTS).is_symlink() else ""
    foreign = sorted(each.name for each in run.path.iterdir() if each.name not in OF_A_RUN and not _is_temporary(each))
    return f"it holds {foreign[0]!r}, which no run makes" if foreign else ""


def _is_temporary(path: Path) -> bool:
    """Whether a process that was killed left it: files.writing and CheckpointStore name what is unfinished so."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _needed_by(run: ListedRun) -> set[Path]:
    """Where the run that this one begins from may lie, if it has not ended and has no checkpoint of its own.

    A relative path is of the working directory of then, which is likely to be above the run.
    """
    if run.state in ENDED or any((run.path / CHECKPOINTS).glob("step_*")):
        return set()
    try:
        found = recorded(run.path)
    except ReadingError:
        return set()
    places = (Path(), *run.path.resolve().parents)
    return set() if found is None else {(above / found.run).resolve() for above in places}


def _size(path: Path) -> int:
    """In bytes, of the file or of all files below the folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file() and not each.is_symlink()]
    return sum(each.stat().st_size for each in files)
